"""Where a train step's arguments lie on a mesh."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from medsd_jax.arrays import Params
from medsd_jax.parallel.mesh import batch_sharding, replicated
from medsd_jax.parallel.sharding import tree_shardings
from medsd_jax.training.state import TrainState


class ShardedStep(NamedTuple):
    """A jitted train step and the places of its two large arguments.

    Attributes:
        step: ``(state, frozen, batch, rng) -> (state, metrics)``; the state is donated, the batch
            lies split by rows, key and metrics are everywhere.
        state: the sharding of every leaf of the state.
        frozen: the sharding of every frozen weight.
    """

    step: Callable
    state: TrainState
    frozen: dict[str, jax.sharding.Sharding]


def shard_step(
    train_step: Callable,
    state: TrainState,
    frozen: Params,
    mesh: Mesh,
    *,
    compiler_options: Mapping[str, Any] | None = None,
) -> ShardedStep:
    """Jits a train step for a mesh.

    Args:
        train_step: pure.
        state: arrays, or their shapes.
        frozen: arrays, or their shapes.
        mesh: the devices; of a slice that is not here, too.
        compiler_options: XLA's.
    """
    places = tree_shardings(state, mesh), tree_shardings(frozen, mesh)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    step = jax.jit(
        train_step,
        in_shardings=(*places, rows, whole),
        out_shardings=(places[0], whole),
        donate_argnums=0,
        compiler_options=compiler_options,
    )
    return ShardedStep(step, *places)
