"""What differs when several processes share one mesh. With one process, all of it is free."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from medsd_jax.arrays import Params
from medsd_jax.parallel.mesh import replicated


def is_main_process() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def put_params(params: Mapping[str, Any], shardings: Mapping[str, Any]) -> Params:
    """Weights from the host to their places; every process holds all of them on its host.

    With several processes each puts its own shards: device_put would first compare all the weights
    across the processes.
    """
    if jax.process_count() == 1:
        return jax.device_put(dict(params), dict(shardings))
    return {
        name: jax.make_array_from_callback(x.shape, shardings[name], lambda at, x=x: x[at])
        for name, x in params.items()
    }


def replicated_key(seed: int, mesh: Mesh) -> jax.Array:
    """jax.random.key(seed) on all devices: device_put refuses those of other processes."""
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=replicated(mesh))(seed)


def on_every_host(params: Params) -> Mapping[str, Any]:
    """Weights that this process can read in full. All processes call it, or none does."""
    if jax.process_count() == 1:
        return params
    # One weight at a time: gathered, it lies on every device as a whole.
    return {
        name: np.asarray(multihost_utils.process_allgather(x, tiled=True))
        for name, x in params.items()
    }
