"""Images of a split as arrays: decoded, made square, and kept where they fit."""

import concurrent.futures
from collections.abc import Sequence

import numpy as np

from medsd_jax.data.records import Split
from medsd_jax.data.transforms import ResizeMode, check_resize_mode, load_image
from medsd_jax.errors import UserError


class DecodedImages:
    """Decoded, resized images of a split by position; small splits are decoded only once.

    Attributes:
        cache_bytes: memory that is set aside for them; 0 where they do not fit.
    """

    def __init__(
        self,
        split: Split,
        image_size: int,
        resize_mode: ResizeMode,
        num_threads: int,
        cache_bytes: int,
    ):
        check_resize_mode(resize_mode)
        if image_size < 1:
            raise UserError(f"image_size is {image_size}: it must be at least 1 pixel")
        if num_threads < 0:
            raise UserError(f"num_threads is {num_threads}: 0 or more threads decode images")
        self._split, self._size, self._mode = split, image_size, resize_mode
        self._pool = (
            concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
            if num_threads > 1
            else None
        )
        shape = (len(split), image_size, image_size, 3)
        fits = np.prod(shape, dtype=np.int64) <= cache_bytes
        self._cache = np.empty(shape, np.uint8) if fits else None
        self.cache_bytes: int = self._cache.nbytes if fits else 0
        self._cached = np.zeros(len(split), bool)

    def _load(self, index: int) -> np.ndarray:
        return load_image(self._split[int(index)].read_bytes(), self._size, self._mode)

    def _load_all(self, indices: Sequence[int]) -> list[np.ndarray]:
        run = map if self._pool is None else self._pool.map
        return list(run(self._load, indices))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return images [b, H, W, 3] uint8."""
        if self._cache is None:
            return np.stack(self._load_all(indices))
        missing = np.unique(indices[~self._cached[indices]])
        for index, image in zip(missing, self._load_all(missing), strict=True):
            self._cache[index] = image
        self._cached[missing] = True
        return self._cache[indices]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
