"""What depends on no network in a run of a sampler, laid out as tables: one row per network call.

Symbols: x0 clean latents, z unit noise.

    (1)  x = signal[i] x0 + noise[i] z     known latents, noised to the level that call i expects

The tables are arguments of the compiled program, padded to one length, so that all numbers of steps
and all spacings run in the same program.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from medsd_jax.arrays import Latents


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepTable:
    """One run of one sampler: a pytree of arrays, all of which may be traced.

    Attributes:
        num_calls: [] int32, network calls of this run.
        start_scale: [] float32: what unit noise is multiplied with to start from noise.
        times: [N] int32 or float32, the time that the network is given in each call.
        signal: [N + 1] float32: signal of (1). Row num_calls belongs to the result and is 1.
        noise: [N + 1] float32: noise of (1), 0 in row num_calls.
        columns: the sampler's own tables, [N, ...] each.
    """

    # Untyped, because JAX rebuilds pytrees with shapes, shardings or booleans for leaves.
    num_calls: Any
    start_scale: Any
    times: Any
    signal: Any
    noise: Any
    columns: Any

    @classmethod
    def of(
        cls,
        times: np.ndarray,
        signal: np.ndarray,
        noise: np.ndarray,
        columns: Mapping[str, np.ndarray],
        start_scale: float = 1.0,
    ) -> "StepTable":
        """Makes the table of as many calls as there are times; the row of the result is added."""
        # A column that is too short would give its last row to the calls beyond: they are traced.
        for column in (signal, noise, *columns.values()):
            assert len(column) == len(times), (len(column), len(times))
        return cls(
            num_calls=np.int32(len(times)),
            start_scale=np.float32(start_scale),
            times=times,
            signal=np.append(signal, 1.0).astype(np.float32),
            noise=np.append(noise, 0.0).astype(np.float32),
            columns=dict(columns),
        )

    def with_column(self, name: str, value: float) -> "StepTable":
        """Adds a float32 column that holds one value in every row."""
        assert name not in self.columns, name
        column = np.full(len(self.times), value, np.float32)
        return dataclasses.replace(self, columns={**self.columns, name: column})

    def padded(self, num_rows: int) -> "StepTable":
        """Fills the tables up to `num_rows` rows with repetitions that are never used."""

        def fill(table: np.ndarray, rows: int) -> np.ndarray:
            margins = [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1)
            return np.pad(table, margins, mode="edge")

        return dataclasses.replace(
            self,
            times=fill(self.times, num_rows),
            signal=fill(self.signal, num_rows + 1),
            noise=fill(self.noise, num_rows + 1),
            columns={name: fill(table, num_rows) for name, table in self.columns.items()},
        )

    def noised(self, i: Int[Array, ""] | int, x0: Latents, z: Latents) -> Latents:
        """Noises known latents to the level of the state before call i, by (1).

        Args:
            i: [] int32 in [0, num_calls]; num_calls gives x0 itself.
            x0: [B, h, w, C] float32, clean latents, multiplied by vae.scaling_factor.
            z: [B, h, w, C] float32, standard normal.

        Returns:
            [B, h, w, C] float32.
        """
        return jnp.asarray(self.signal)[i] * x0 + jnp.asarray(self.noise)[i] * z
