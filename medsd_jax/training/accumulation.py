"""Gradients of a large batch from several small ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split_micro_batches(batch: Any, steps: int) -> Any:
    """[B, ...] leaves -> [steps, B/steps, ...]; micro-batch i holds the rows i, i + steps, ...

    Rows are dealt out in turn, not cut into blocks: with the batch axis sharded, every device then
    keeps its own rows and nothing moves.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, steps, *x.shape[1:]), 1, 0), batch)


def accumulated_grad(loss_fn: Callable, trainable: Any, batch: Any, steps: int) -> tuple[jax.Array, Any]:
    """Mean loss and gradient over the batch, `steps` micro-batches one after the other.

    Args:
        loss_fn: ``(trainable, micro_batch) -> scalar`` that is a mean over the rows.
        trainable: differentiated with respect to.
        batch: pytree of [B, ...] arrays, B divisible by `steps`.
        steps: 1 computes the whole batch at once.

    Returns:
        (loss, grads), equal to those of one call on the whole batch within float error.
    """
    if steps == 1:
        return jax.value_and_grad(loss_fn)(trainable, batch)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(trainable, micro_batch)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trainable))
    total, _ = jax.lax.scan(add, zeros, split_micro_batches(batch, steps))
    return jax.tree.map(lambda x: x / steps, total)
