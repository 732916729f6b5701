"""Batches of one shape: every row once, in order, and one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.parallel.batching import batch_rows, filled, over_devices
from medsd_jax.parallel.mesh import batch_sharding, make_mesh

MESH = make_mesh({"data": -1})
SHARDS = MESH.shape["data"]


def test_filled_repeats_the_last_row():
    rows = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(filled(rows, 5), rows[[0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(filled(rows, 3), rows)


@pytest.mark.parametrize(
    ("count", "most", "each"),
    [(1, 4, 1), (4 * SHARDS, 4, 4), (4 * SHARDS + 1, 4, 4), (SHARDS, 4, 1)],
)
def test_rows_of_a_batch(count, most, each):
    """No more on a device than it has the memory for, and no more than there is to do."""
    assert batch_rows(count, most, MESH) == SHARDS * each


@pytest.mark.parametrize("count", [1, 2 * SHARDS, 2 * SHARDS + 1])
def test_every_row_is_worked_on_once(count):
    shapes = []

    @jax.jit
    def run(params, rows):
        shapes.append(rows.shape)  # at each trace
        return {"scaled": params["scale"] * rows, "first": rows[:, 0] > 0}

    run = jax.jit(run, out_shardings=batch_sharding(MESH))
    call = over_devices(run, {"scale": jnp.float32(3)}, MESH)
    rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    size = 2 * SHARDS
    out = [call(rows[start : start + size], size) for start in range(0, count, size)]
    np.testing.assert_array_equal(np.concatenate([x["scaled"] for x in out]), 3 * rows)
    np.testing.assert_array_equal(np.concatenate([x["first"] for x in out]), rows[:, 0] > 0)
    assert shapes == [(size, 2)]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(out))
