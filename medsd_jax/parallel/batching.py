"""Many rows in batches of one shape, so that one program is compiled.

The last batch is filled up with its last row again; what comes of the copies is cut off.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medsd_jax.arrays import Params
from medsd_jax.parallel.mesh import batch_sharding, batch_shards, replicated
from medsd_jax.parallel.multihost import fetch, put_global


def batch_rows(count: int, most: int, mesh: Mesh) -> int:
    """Rows of a batch over all devices.

    Args:
        count: rows in all.
        most: rows that one device works on at once.
        mesh: the devices.
    """
    shards = batch_shards(mesh)
    return shards * min(most, math.ceil(count / shards))


def filled(rows: np.ndarray, size: int) -> np.ndarray:
    """[b, ...] -> [size, ...], with the last row again in all places that are left."""
    return rows[np.arange(size).clip(max=len(rows) - 1)]


def over_devices(
    run: Callable[[Params, jax.Array], Any], params: Params, mesh: Mesh
) -> Callable[[np.ndarray, int], Any]:
    """Returns ``(rows [b, ...], size) -> run(params, rows)`` on the host, [b, ...] each.

    All processes call it with all rows.

    Args:
        run: jitted; what it returns is a tree of arrays [size, ...].
        params: weights, put on every device once.
        mesh: the devices, over which the rows of a batch are spread.
    """
    placed = put_global(dict(params), dict.fromkeys(params, replicated(mesh)))

    def call(rows: np.ndarray, size: int) -> Any:
        out = run(placed, put_global(filled(rows, size), batch_sharding(mesh)))
        return jax.tree.map(lambda x: fetch(x)[: len(rows)], out)

    return call
