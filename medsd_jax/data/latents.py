"""Posterior moments of a whole split, encoded once and kept on disk.

What is kept are mean and log variance, not one draw: every epoch then sees fresh posterior noise,
the same as without the cache. Encoding is float32 whatever the training's compute dtype.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medsd_jax.data.loader import EvalBatches, eval_batches
from medsd_jax.data.records import Split
from medsd_jax.data.transforms import ResizeMode
from medsd_jax.errors import UserError
from medsd_jax.files import read_array
from medsd_jax.folders import alone_at, beside, remove_leftovers, wait_until_seen
from medsd_jax.interrupts import stop_if_asked

_AGAIN = "remove {}, and it is encoded again"


@dataclass(frozen=True)
class Processes:
    """What is asked of the processes that encode together; as it stands, of a single one.

    Attributes:
        is_main: whether this is the one that waits for other runs.
        true_everywhere: whether all say yes; all call it.
        is_first_on_disk: whether this one writes into a folder, for all that share its disk; all
            call it.
    """

    is_main: bool = True
    true_everywhere: Callable[[bool], bool] = bool
    is_first_on_disk: Callable[[Path], bool] = bool


def encode_split(
    split: Split,
    encode_images: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int,
    image_size: int,
    resize_mode: ResizeMode,
    key: str,
    folder: Path,
    rows: np.ndarray | None = None,
    num_threads: int = 2,
    processes: Processes | None = None,
) -> np.ndarray:
    """Encodes every image of the split, or opens what was encoded before.

    Args:
        split: the images.
        encode_images: this process's [b, H, W, 3] uint8 -> moments [B, h, w, 2C]
            float32 of all processes' images.
        batch_size: images at once, B, over all processes; the last batch is filled up, so that
            one shape is compiled.
        image_size: pixels, square.
        resize_mode: how images become square.
        key: names the VAE; other weights have another key.
        folder: where the file goes, beside the prepared records.
        rows: [b] of a batch that this process loads, from `parallel.mesh.process_rows`; all of them
            if None.
        num_threads: threads that decode images.
        processes: those that call this with their rows; this one alone if None.

    Returns:
        [n, h, w, 2C] float32 in the split's order, memory-mapped from the file.

    Raises:
        UserError: the VAE gives numbers that are not finite; nothing is kept then.
    """
    path = folder / f"latents-{split.name}-{image_size}-{resize_mode}-{key}.npy"
    remove_leftovers(folder)
    processes = processes or Processes()
    with contextlib.ExitStack() as held:
        if not processes.true_everywhere(path.exists()):
            if processes.is_main:
                held.enter_context(alone_at(path))
            processes.true_everywhere(True)  # the main process has waited for any other run
            if not processes.true_everywhere(path.exists()):
                batches = eval_batches(
                    split,
                    num_examples=None,
                    batch_size=batch_size,
                    columns={},
                    image_size=image_size,
                    resize_mode=resize_mode,
                    rows=rows,
                    num_threads=num_threads,
                    cache_bytes=0,
                )
                moments = _encoded(split, batches, batch_size, encode_images)
                if processes.is_first_on_disk(folder):
                    _write(path, moments, len(split))
                else:
                    for _ in moments:
                        pass
                processes.true_everywhere(True)  # all files are written
                wait_until_seen(path)
    moments = read_array(path, _AGAIN.format(path), mapped=True)
    if moments.ndim != 4 or moments.dtype != np.float32 or len(moments) != len(split):
        given = f"{moments.dtype} {list(moments.shape)}"
        raise UserError(f"{path} holds {given} for {len(split)} images; {_AGAIN.format(path)}")
    return moments


def _encoded(
    split: Split,
    batches: EvalBatches,
    batch_size: int,
    encode_images: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """The moments of the split, without what the last batch was filled up with."""
    for i, batch in enumerate(tqdm(batches, desc=f"encode {split.name}", unit="batch")):
        stop_if_asked()
        rows = encode_images(batch["images"])[: len(split) - i * batch_size]
        _require_finite(rows, split, i * batch_size)
        yield rows


def _write(path: Path, batches: Iterable[np.ndarray], count: int) -> None:
    """Writes batches of together `count` rows as one array."""
    # Renamed at the end: a killed run leaves no half file, and two runs do not mix theirs.
    # Written in order, not through a memory map, which a full disk would end with a SIGBUS.
    with beside(path) as work, (work / "moments.npy").open("wb") as file:
        for i, rows in enumerate(batches):
            if i == 0:
                shape = (count, *rows.shape[1:])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows, "<f4").data)
        file.close()
        (work / "moments.npy").rename(path)


def _require_finite(moments: np.ndarray, split: Split, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(moments).all(axis=(1, 2, 3)))
    if len(bad):
        raise UserError(
            f"the VAE's encoder gives numbers that are not finite (NaN or infinite) for "
            f"{len(bad)} of {len(moments)} images at once, the first is "
            f"{split.keys[first + bad[0]]} of {split.name}: take another VAE, or another copy of it"
        )
