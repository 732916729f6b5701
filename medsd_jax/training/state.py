"""What a training run carries from step to step."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from medsd_jax.arrays import Params


@struct.dataclass
class TrainState:
    """All that changes while training, and all that a checkpoint holds of the model.

    Attributes:
        step: [] int32, optimizer steps done.
        trainable: the adaptation's parameters, float32.
        opt_state: optax's; its moments keep the weights' names in their paths.
        ema: exponential moving average of `trainable`, float32; None when it is switched off.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState
    ema: Params | None

    @property
    def averaged(self) -> Params:
        """The weights to measure and to keep: the moving average where there is one."""
        return self.trainable if self.ema is None else self.ema


def init_state(trainable: Params, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """Step 0.

    Call it inside jit: there the copy below becomes a buffer of its own, which donation needs.
    """
    averaged = jax.tree.map(jnp.copy, trainable) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, tx.init(trainable), averaged)


def ema_decay_at(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)): short memory at first, to forget the start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def apply_gradients(
    state: TrainState, grads: Params, tx: optax.GradientTransformation, *, ema_decay: float
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step and the EMA update.

    Returns:
        The next state, and the float32 scalars grad_norm (before clipping) and update_norm.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    ema = state.ema
    if ema is not None:
        ema = optax.incremental_update(trainable, ema, 1.0 - ema_decay_at(state.step, ema_decay))
    norms = {"grad_norm": _global_norm(grads), "update_norm": _global_norm(updates)}
    return TrainState(state.step + 1, trainable, opt_state, ema), norms


def _global_norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))
