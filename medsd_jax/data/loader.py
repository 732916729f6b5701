"""Batches for training and validation, the same ones whatever happens in between.

The order of the pictures is one global sequence that depends on the seed alone. Every process
takes its own rows of every global batch, those that its devices hold, so the number of processes
and the order of the devices change who loads a picture but never which pictures form step k. A
saved state names a place in that sequence.
"""

import json
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from medsd_jax.data.decoded_images import DecodedImages
from medsd_jax.data.records import Split
from medsd_jax.data.saved_state import ADVICE, parse_state
from medsd_jax.data.transforms import ResizeMode, flip_some, to_float
from medsd_jax.errors import UserError

Columns = Mapping[str, np.ndarray]
"""What travels with the pictures: name -> one row for each record of the split."""

Batch = dict[str, np.ndarray]

CACHE_BYTES = 2**30
"""Decoded pictures are kept in memory when the whole split fits in this many bytes."""

_STATE_VERSION = 2


class BatchIterator(Iterator[Batch]):
    """An iterator over batches that can be saved and restored.

    Attributes:
        batches_per_epoch: global batches that one pass over the split fills.
    """

    def __init__(self, batches: grain.DatasetIterator, pictures: DecodedImages, setup: dict):
        self._batches = batches
        self._pictures = pictures
        self._setup = setup
        self.batches_per_epoch: int = setup["num_images"] // setup["batch_size"]

    def __next__(self) -> Batch:
        """Return {"images": float32 [b, H, W, 3] in [-1, 1]} and the columns' rows [b, ...]."""
        return next(self._batches)

    def get_state(self) -> bytes:
        """Return the place after the last batch handed out, as JSON; equal in all processes."""
        state = {"version": _STATE_VERSION, **self._setup, "grain": self._batches.get_state()}
        return json.dumps(state, sort_keys=True).encode()

    def set_state(self, state: bytes) -> None:
        """Go to a place that `get_state` returned.

        Raises:
            UserError: the place belongs to other data, another batch size or another order; going
                on from it would repeat some pictures and never show others.
        """
        saved = parse_state(state)
        if saved.get("version") != _STATE_VERSION:
            raise UserError(
                "the saved data state is of another version of medsd_jax, "
                f"{saved.get('version')!r} where this one writes {_STATE_VERSION}: whether the "
                "data is the same cannot be told; go on with the version that saved it, or start "
                "a new run in another --workdir"
            )
        for key, value in self._setup.items():
            if key == "records" and saved.get(key) != value:
                raise UserError(
                    f"the saved data state is of other records: names, sizes or texts of the "
                    f"{self._setup['num_images']} images differ; resume with the same data, or "
                    "start a new run in another --workdir"
                )
            if saved.get(key) != value:
                raise UserError(
                    f"the saved data state has {key} {saved.get(key)!r} but this run has {value!r}:"
                    f" resume with the same {key}, or start a new run"
                )
        try:
            self._batches.set_state(saved["grain"])
        except Exception as error:  # whatever the library makes of a place that is none
            said = f"{type(error).__name__}: {error}"[:200]
            raise UserError(f"the saved data state is no place ({said}): {ADVICE}") from error

    def close(self) -> None:
        """End the background threads."""
        self._batches.close()
        self._pictures.close()


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
    split: Split,
    *,
    batch_size: int,
    columns: Columns,
    image_size: int,
    resize_mode: ResizeMode = "pad",
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    rows: np.ndarray | None = None,
    num_threads: int = 2,
    drop_remainder: bool = True,
    flip: bool = False,
    cache_bytes: int = CACHE_BYTES,
    latent_moments: np.ndarray | None = None,
    beside: int = 0,
    beside_batch_size: int = 0,
) -> BatchIterator:
    """Build the training input of this process.

    Args:
        split: usually `dataset.train`.
        batch_size: pictures a global batch, over all processes.
        columns: e.g. {"prompt_ids": int32 [n, S]}, in the split's order.
        image_size: side length in pixels.
        resize_mode: "pad", "crop" or "squash", see `transforms`.
        seed: of the order (and the flips).
        shuffle: a new order every epoch; False keeps the data set's order.
        num_epochs: how often every picture is seen; None goes on for ever.
        rows: [b] of a global batch that this process loads, from `parallel.mesh.process_rows`; all
            of them if None.
        num_threads: threads that decode pictures; 0 loads in the caller's thread, ahead of nothing.
        drop_remainder: leave out the last, smaller batch; False needs a single process.
        flip: mirror half of the pictures. Read `transforms.flip_some` before: laterality.
        cache_bytes: decoded pictures stay in memory when the split needs no more than this.
        latent_moments: [n, h, w, 2C] float32 by `latents.encode_split`; batches then carry these
            in the place of pictures, and no picture is decoded.
        beside: the last so many records are a set of their own (prior preservation), with an order
            of its own.
        beside_batch_size: its rows in each global batch; they follow the `batch_size` others.

    Returns:
        An iterator over {"images": float32 [b, H, W, 3] in [-1, 1]} and the rows [b, ...] of the
        columns, with b = len(rows); "latent_moments" float32 [b, h, w, 2C] instead of "images"
        where they are given.
    """
    local = _local_rows(batch_size + beside_batch_size, rows)
    count = len(split) - beside
    for name, size, wanted, key in (
        (f"the {split.name} split", count, batch_size, "data.batch_size"),
        ("the prior", beside, beside_batch_size, "prior.batch_size"),
    ):
        if size < wanted:
            raise UserError(
                f"{name} has {size} images, fewer than one batch of {wanted}: lower {key} to "
                f"{size} or less, or add images"
            )
    if not drop_remainder and rows is not None:
        raise UserError("drop_remainder=False needs a single process: the last batch is smaller")
    if num_epochs is not None and num_epochs < 1:
        raise UserError(f"num_epochs is {num_epochs}: it must be at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: it must be at least 0 and below 2**32")
    if latent_moments is not None:
        assert len(latent_moments) == len(split), (len(latent_moments), len(split))
        if flip:
            raise UserError("cached latents cannot be mirrored: switch the cache or the flips off")
        cache_bytes = 0
    _check_columns(columns, split)
    pictures = DecodedImages(split, image_size, resize_mode, num_threads, cache_bytes)

    def in_order(size: int, epochs: int | None) -> grain.MapDataset:
        order = grain.MapDataset.range(size)
        order = order.shuffle(seed=seed) if shuffle else order
        return order.repeat(epochs)

    others = None
    if beside_batch_size:
        others = in_order(beside, None).batch(beside_batch_size, drop_remainder=True)

    def load(number: int, indices: np.ndarray) -> Batch:
        if others is not None:
            indices = np.concatenate([indices, count + others[number]])
        mine = indices if rows is None else indices[local]
        carried = {name: column[mine] for name, column in columns.items()}
        if latent_moments is not None:
            return {"latent_moments": latent_moments[mine], **carried}
        images = to_float(pictures.rows(mine))
        if flip:
            # Drawn for the global batch, so that the process count does not matter here either.
            mirrored = np.random.default_rng([seed, number]).random(len(indices)) < 0.5
            images = flip_some(images, mirrored if rows is None else mirrored[local])
        return {"images": images, **carried}

    order = in_order(count, num_epochs).batch(batch_size, drop_remainder=drop_remainder)
    # One thread runs ahead by two batches; decoding inside a batch is parallel already.
    ahead = grain.ReadOptions(
        num_threads=1 if num_threads else 0, prefetch_buffer_size=2 if num_threads else 0
    )
    batches = iter(order.map_with_index(load).to_iter_dataset(ahead))
    setup = {
        "split": split.name,
        "num_images": count,
        "batch_size": batch_size,
        "seed": seed,
        "shuffle": shuffle,
        "prior.num_images": beside,
        "prior.batch_size": beside_batch_size,
        "records": split.identity,
    }
    return BatchIterator(batches, pictures, setup)


class EvalBatches:
    """The first records of a split as batches of one size; iterate over it as often as needed.

    Attributes:
        num_examples: real examples over all processes, without the padding.
    """

    def __init__(
        self,
        pictures: DecodedImages,
        columns: Columns,
        num_examples: int,
        rows: np.ndarray,
        batch_size: int,
    ):
        self.num_examples = num_examples
        self._pictures, self._columns = pictures, columns
        self._rows = rows
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield images, the columns and mask (float32 [b], 1 for real rows, 0 for padding)."""
        for number in range(len(self)):
            base = number * self._batch_size
            places = base + self._rows
            # Padding repeats the last example: every row is a picture a model can be run on.
            indices = np.minimum(places, self.num_examples - 1)
            yield {
                "images": to_float(self._pictures.rows(indices)),
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
        num_threads: threads that decode pictures.
        cache_bytes: decoded pictures stay in memory when the split needs no more than this.

    Returns:
        Batches with images, the columns and mask. A mean over examples is sum(value * mask) over
        sum(mask), over all batches and processes.
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
    pictures = DecodedImages(split, image_size, resize_mode, num_threads, cache_bytes)
    return EvalBatches(pictures, columns, count, local, batch_size)


def _check_columns(columns: Columns, split: Split) -> None:
    for name, column in columns.items():
        assert len(column) == len(split), (name, len(column), len(split))
