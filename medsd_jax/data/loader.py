"""Batches for training and validation, the same ones whatever happens in between.

The order of the images is one global sequence that depends on the seed alone. Every process
takes its own rows of every global batch, those that its devices hold, so the number of processes
and the order of the devices change who loads an image but never which images form step k. A
saved state names a place in that sequence.

Images stay 8-bit until they are on a device: a quarter of the bytes of float32 travels there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from medsd_jax.data.decoded_images import DecodedImages
from medsd_jax.data.records import Split
from medsd_jax.data.saved_state import ADVICE, parse_state
from medsd_jax.data.transforms import ResizeMode
from medsd_jax.errors import UserError

Columns = Mapping[str, np.ndarray]
"""What travels with the images: name -> one row for each record of the split."""

Batch = dict[str, np.ndarray]

CACHE_BYTES = 2**30
"""Decoded images are kept in memory when the whole split fits in this many bytes."""

_STATE_VERSION = 3


@dataclass(frozen=True)
class Source:
    """A set of images that has rows of its own in every batch, in an order of its own.

    Attributes:
        split: the images.
        batch_size: rows of it in each global batch, over all processes.
        columns: e.g. {"prompt_ids": int32 [n, S]}, in the split's order; all sources of a loader
            have the same ones.
        latent_moments: [n, h, w, 2C] float32 by `latents.encode_split`, which batches then carry in
            the place of images; no image is decoded. None for images. Equal for all sources.
    """

    split: Split
    batch_size: int
    columns: Columns
    latent_moments: np.ndarray | None = None

    def setup(self) -> dict[str, Any]:
        """What a saved place in its order depends on."""
        return {
            "split": self.split.name,
            "num_images": len(self.split),
            "batch_size": self.batch_size,
            "records": self.split.identity,
        }


class BatchIterator(Iterator[Batch]):
    """An iterator over batches that can be saved and restored."""

    def __init__(self, batches: grain.DatasetIterator, readers: Sequence["_Reader"], seed: int):
        self._batches = batches
        self._readers = readers
        self._seed = seed

    def __next__(self) -> Batch:
        """Return {"images": uint8 [b, H, W, 3]} and the columns' rows [b, ...]."""
        return next(self._batches)

    def get_state(self) -> bytes:
        """Return the place after the last batch handed out, as JSON; equal in all processes."""
        state = {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "sources": [reader.source.setup() for reader in self._readers],
            "grain": self._batches.get_state(),
        }
        return json.dumps(state, sort_keys=True).encode()

    def set_state(self, state: bytes) -> None:
        """Go to a place that `get_state` returned.

        Raises:
            UserError: the place belongs to other data, another batch size or another order; going
                on from it would repeat some images and never show others.
        """
        saved = parse_state(state)
        if saved.get("version") != _STATE_VERSION:
            raise UserError(
                "the saved data state is of another version of medsd_jax, "
                f"{saved.get('version')!r} where this one writes {_STATE_VERSION}: whether the "
                "data is the same cannot be told; go on with the version that saved it, or start "
                "a new run in another workdir"
            )
        _check_same("seed", saved.get("seed"), self._seed)
        sources = saved.get("sources")
        if not isinstance(sources, list) or not all(isinstance(x, dict) for x in sources):
            raise UserError(f"the saved data state names no sources: {ADVICE}")
        _check_same("number of sources", len(sources), len(self._readers))
        for before, reader in zip(sources, self._readers, strict=True):
            now = reader.source.setup()
            for key, value in now.items():
                if key == "records" and before.get(key) != value:
                    raise UserError(
                        f"the saved data state is of other records: names, sizes or texts of the "
                        f"{now['num_images']} images of {now['split']} differ; resume with the "
                        "same data, or start a new run in another workdir"
                    )
                name = key if key == "split" else f"{key} of {now['split']}"
                _check_same(name, before.get(key), value)
        try:
            self._batches.set_state(saved["grain"])
        except Exception as error:  # whatever the library makes of a place that is none
            message = f"{type(error).__name__}: {error}"[:200]
            raise UserError(f"the saved data state is no place ({message}): {ADVICE}") from error

    def close(self) -> None:
        """End the background threads."""
        self._batches.close()
        for reader in self._readers:
            reader.images.close()


def _check_same(name: str, saved: Any, now: Any) -> None:
    if saved != now:
        raise UserError(
            f"the saved data state has another {name}: {saved!r} where this run has {now!r}; "
            f"resume with the same {name}, or start a new run in another workdir"
        )


@dataclass(frozen=True)
class _Reader:
    """The rows of one source that this process loads.

    Attributes:
        source: what is read.
        images: its decoded images.
        order: for each batch, the records [batch_size] of its rows.
        rows: [b] of those rows that this process loads; none where other processes load all.
    """

    source: Source
    images: DecodedImages
    order: grain.MapDataset
    rows: np.ndarray

    def read(self, number: int) -> Batch:
        """This process's rows of the source in a batch."""
        records = self.order[number][self.rows]
        carried = {name: column[records] for name, column in self.source.columns.items()}
        if self.source.latent_moments is not None:
            return {"latent_moments": self.source.latent_moments[records], **carried}
        return {"images": self.images.rows(records), **carried}


def _local_rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """Return the rows of a global batch that this process loads: all of them if None is given."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    if rows is None:
        return np.arange(batch_size)
    rows = np.asarray(rows)
    assert len(rows) and rows.min() >= 0 and rows.max() < batch_size, (rows, batch_size)
    return rows


def make_loader(
    sources: Sequence[Source],
    *,
    image_size: int,
    resize_mode: ResizeMode = "pad",
    seed: int = 0,
    rows: np.ndarray | None = None,
    num_threads: int = 2,
    cache_bytes: int = CACHE_BYTES,
) -> BatchIterator:
    """Build the training input of this process: batches for ever.

    Every source is shuffled anew each time all its images have been seen.

    Args:
        sources: what each batch is made of; the rows of a source follow those of the one before.
        image_size: side length in pixels.
        resize_mode: "pad", "crop" or "squash", see `transforms`.
        seed: of the order.
        rows: [b] of a global batch that this process loads, ascending, from
            `parallel.mesh.process_rows`; all of them if None.
        num_threads: threads that decode images; 0 loads in the caller's thread, ahead of nothing.
        cache_bytes: decoded images of a source stay in memory when they need no more than what the
            sources before it leave of this.

    Returns:
        An iterator over {"images": uint8 [b, H, W, 3]} and the rows [b, ...] of the columns, with
        b = len(rows); "latent_moments" float32 [b, h, w, 2C] instead of "images" where they are
        given.
    """
    local = _local_rows(sum(source.batch_size for source in sources), rows)
    assert (np.diff(local) > 0).all(), local
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: it must be at least 0 and below 2**32")
    readers, first = [], 0
    for source in sources:
        _check_source(source)
        mine = local[(local >= first) & (local < first + source.batch_size)] - first
        first += source.batch_size
        kept_bytes = cache_bytes if source.latent_moments is None else 0
        images = DecodedImages(source.split, image_size, resize_mode, num_threads, kept_bytes)
        cache_bytes -= images.cache_bytes
        order = grain.MapDataset.range(len(source.split)).shuffle(seed=seed).repeat(None)
        order = order.batch(source.batch_size, drop_remainder=True)
        readers.append(_Reader(source, images, order, mine))
    reading = [reader for reader in readers if len(reader.rows)]

    def load(number: int, _: Any) -> Batch:
        parts = [reader.read(number) for reader in reading]
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}

    # One thread runs ahead by two batches; decoding inside a batch is parallel already.
    ahead = grain.ReadOptions(
        num_threads=1 if num_threads else 0, prefetch_buffer_size=2 if num_threads else 0
    )
    batches = iter(readers[0].order.map_with_index(load).to_iter_dataset(ahead))
    return BatchIterator(batches, readers, seed)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_source(source: Source) -> None:
    split, expected = source.split, source.batch_size
    if expected < 1:
        raise UserError(f"batch_size of {split.name} is {expected}: it must be at least 1")
    if len(split) < expected:
        raise UserError(
            f"{split.name} has {len(split)} images, fewer than one batch of {expected}: lower its "
            f"batch_size to {len(split)} or less, or add images"
        )
    _check_columns(source.columns, split)
    moments = source.latent_moments
    assert moments is None or len(moments) == len(split), (len(moments), len(split))


class EvalBatches:
    """The first records of a split as batches of one size; iterate over it as often as needed.

    Attributes:
        num_examples: real examples over all processes, without the padding.
    """

    def __init__(
        self,
        images: DecodedImages,
        columns: Columns,
        num_examples: int,
        rows: np.ndarray,
        batch_size: int,
    ):
        self.num_examples = num_examples
        self._images, self._columns = images, columns
        self._rows = rows
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield images, the columns and mask (float32 [b], 1 for real rows, 0 for padding)."""
        for number in range(len(self)):
            base = number * self._batch_size
            places = base + self._rows
            # Padding repeats the last example: every row is an image that a model can be run on.
            indices = np.minimum(places, self.num_examples - 1)
            yield {
                "images": self._images.rows(indices),
                **{name: column[indices] for name, column in self._columns.items()},
                "mask": (places < self.num_examples).astype(np.float32),
            }


def eval_batches(
    split: Split,
    *,
    num_examples: int | None,
    batch_size: int,
    columns: Columns,
    image_size: int,
    resize_mode: ResizeMode = "pad",
    rows: np.ndarray | None = None,
    num_threads: int = 2,
    cache_bytes: int = CACHE_BYTES,
) -> EvalBatches:
    """Build the fixed validation input of this process.

    Args:
        split: usually `dataset.validation`.
        num_examples: the first so many records, or all when there are fewer; None for all.
        batch_size: rows a global batch, over all processes; the last one is padded.
        columns: e.g. {"prompt_ids": int32 [n, S]}, in the split's order.
        image_size: side length in pixels.
        resize_mode: "pad", "crop" or "squash".
        rows: [b] of a global batch that this process loads, from `parallel.mesh.process_rows`; all
            of them if None.
        num_threads: threads that decode images.
        cache_bytes: decoded images stay in memory when the split needs no more than this.

    Returns:
        Batches with images (uint8 [b, H, W, 3]), the columns and mask. A mean over examples is
        sum(value * mask) over sum(mask), over all batches and processes.
    """
    local = _local_rows(batch_size, rows)
    if len(split) == 0:
        raise UserError(
            f"the {split.name} split is empty: raise validation_fraction (a single patient is "
            "never parted) or name a split column"
        )
    if num_examples is not None and num_examples < 1:
        raise UserError(f"num_examples is {num_examples}: it must be at least 1")
    count = len(split) if num_examples is None else min(num_examples, len(split))
    _check_columns(columns, split)
    images = DecodedImages(split, image_size, resize_mode, num_threads, cache_bytes)
    return EvalBatches(images, columns, count, local, batch_size)


def _check_columns(columns: Columns, split: Split) -> None:
    for name, column in columns.items():
        assert len(column) == len(split), (name, len(column), len(split))
