"""What differs when several processes share one mesh. With one process, all of it is free."""

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from medsd_jax.arrays import Params
from medsd_jax.locks import give_back, try_lock
from medsd_jax.parallel.mesh import replicated

Tree = TypeVar("Tree")


def is_main_process() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def put_global(tree: Tree, shardings: Tree) -> Tree:
    """Arrays from the host to their places; every process holds all of them on its host.

    With several processes each puts its own shards: device_put would first compare all the values
    across the processes. Arrays that are on the devices already move only if they must.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])

    return jax.tree.map(put, tree, shardings)


def fetch(x: jax.Array) -> np.ndarray:
    """The whole of a sharded array, on every host. All processes call it, or none does."""
    if jax.process_count() == 1:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def true_everywhere(here: bool) -> bool:
    """Whether all processes say yes, so that they take the same branch. All of them call it."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.bool_(here)).all())


def from_main(value: int) -> int:
    """The main process' number, in every process. All of them call it, or none does."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def is_first_on_disk(folder: Path) -> bool:
    """Whether this process writes into a folder for all that share its disk. All of them call it.

    That is the one with the lowest number: the main process alone where all hosts share the disk,
    one on each host where none do.
    """
    if jax.process_count() == 1:
        return True
    run = from_main(secrets.randbits(31))

    def mark(process: int) -> Path:
        return folder / f".{run:08x}-{process}.lock"

    here, descriptor = mark(jax.process_index()), None
    with contextlib.suppress(OSError):  # who cannot write here says so when it is to write
        # Locked, so that nobody takes it for left over. A disk without locks has the file alone.
        descriptor = try_lock(here)
    true_everywhere(True)
    is_first = not any(mark(process).exists() for process in range(jax.process_index()))
    true_everywhere(True)
    give_back(here, descriptor)
    with contextlib.suppress(OSError):
        here.unlink(missing_ok=True)
    return is_first


def replicated_key(seed: int, mesh: Mesh) -> jax.Array:
    """jax.random.key(seed) on all devices: device_put refuses those of other processes."""
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=replicated(mesh))(seed)


def on_every_host(params: Params) -> Mapping[str, Any]:
    """Weights that this process can read in full. All processes call it, or none does."""
    if jax.process_count() == 1:
        return params
    # One weight at a time: gathered, it lies on every device as a whole.
    return {name: fetch(x) for name, x in params.items()}
