"""Prompts without images: a text file, and batches of what was made of them.

As in loader.py the order is one global sequence that depends on the seed alone, and every process
takes its own rows of each global batch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import grain
import numpy as np

from medsd_jax.data.saved_state import ADVICE, parse_state
from medsd_jax.data.sources.tables import read_text
from medsd_jax.errors import UserError

Batch = dict[str, np.ndarray]


def read_prompts(path: Path) -> tuple[str, ...]:
    """Reads a UTF-8 text file with one prompt per line; empty lines are left out.

    Raises:
        UserError: there is no such file, or fewer than two prompts in it.
    """
    lines = read_text(path).split("\n")
    prompts = tuple(line.strip() for line in lines if line.strip())
    if len(prompts) < 2:
        raise UserError(f"{path} holds {len(prompts)} prompt(s); two or more are needed")
    return prompts


class PromptBatches:
    """Endless training batches, shuffled anew in every pass, whose place can be saved."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        *,
        batch_size: int,
        seed: int,
        rows: np.ndarray | None = None,
    ):
        """Sets the order.

        Args:
            columns: name -> [n, ...], one row per prompt.
            batch_size: prompts of a global batch, over all processes.
            seed: of the order, in [0, 2^32).
            rows: [b] of a global batch that this process loads, from `parallel.mesh.process_rows`;
                all of them if None.

        Raises:
            UserError: fewer prompts than a batch.
        """
        count = len(next(iter(columns.values())))
        if count < batch_size:
            raise UserError(
                f"{count} prompts are fewer than one batch of {batch_size}: lower data.batch_size"
            )
        self._columns, self._number = columns, 0
        self._rows = slice(None) if rows is None else rows
        order = grain.MapDataset.range(count).shuffle(seed=seed).repeat(None)
        self._order = order.batch(batch_size, drop_remainder=True)
        digest = hashlib.sha256()
        for name in sorted(columns):
            digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
        self._setup = {
            "fingerprint": digest.hexdigest()[:16],
            "batch_size": batch_size,
            "seed": seed,
        }

    def __next__(self) -> Batch:
        """Returns the columns' rows [b, ...] of this process."""
        mine = self._order[self._number][self._rows]
        self._number += 1
        return {name: column[mine] for name, column in self._columns.items()}

    def get_state(self) -> bytes:
        """Returns the place after the last batch; the same in all processes."""
        return json.dumps({**self._setup, "number": self._number}, sort_keys=True).encode()

    def set_state(self, state: bytes) -> None:
        """Goes to a place that `get_state` returned.

        Raises:
            UserError: it is one among other prompts, or in another order.
        """
        saved = parse_state(state)
        for key, value in self._setup.items():
            if saved.get(key) != value:
                raise UserError(
                    f"the saved data state has {key} {saved.get(key)!r} but this run has "
                    f"{value!r}: resume with the same prompts and {key}, or start a new run"
                )
        number = saved.get("number")
        if type(number) is not int or not 0 <= number < 2**63:
            raise UserError(f"the saved data state has no number of batches: {ADVICE}")
        self._number = number


class PromptEvalBatches:
    """The first prompts in batches of one size, as often as they are asked for."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        *,
        num_examples: int,
        batch_size: int,
        rows: np.ndarray | None = None,
    ):
        """Arguments as of `PromptBatches`; `num_examples` at most, the last batch is padded."""
        self._columns, self._size = columns, batch_size
        self.num_examples = min(num_examples, len(next(iter(columns.values()))))
        self._places = np.arange(batch_size) if rows is None else rows

    def __iter__(self) -> Iterator[Batch]:
        """Yields the columns' rows and mask, float32 [b], 0 for padding."""
        for base in range(0, self.num_examples, self._size):
            places = base + self._places
            rows = np.minimum(places, self.num_examples - 1)
            mask = (places < self.num_examples).astype(np.float32)
            yield {name: column[rows] for name, column in self._columns.items()} | {"mask": mask}
