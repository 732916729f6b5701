"""Textual projection (arXiv 2210.04133): a frozen encoder is mapped into CLIP's space.

    L = mean over positions and channels of (project(encode(prompt)) - clip(prompt))^2

position by position: token s of one tokenizer stands beside token s of the other, as the U-Net will
meet it, padding included. Only the projection gets a gradient.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.arrays import Params
from medsd_jax.models.params import bind, component
from medsd_jax.training.accumulation import accumulated_grad
from medsd_jax.training.state import TrainState, apply_gradients

Batch = Mapping[str, jax.Array]

TEACHER = "teacher"
"""Prefix of CLIP's weights among the parameters; the projected encoder's is "text_encoder"."""


def projection_losses(
    student: nnx.GraphDef, teacher: nnx.GraphDef, params: Params, batch: Batch
) -> jax.Array:
    """The loss of each prompt, [B] float32.

    Args:
        student: graph definition of the encoder with its projection.
        teacher: graph definition of CLIP's text encoder, as wide as the projection's output.
        params: weights of both.
        batch: prompt_ids [B, S] int32 of the student's tokenizer, teacher_ids [B, S] of CLIP's.
    """
    expected = bind(teacher, component(params, TEACHER))(batch["teacher_ids"])
    result = bind(student, component(params, "text_encoder"))(batch["prompt_ids"])
    return jnp.mean(jnp.square(result - jax.lax.stop_gradient(expected)), axis=(1, 2))


def make_projection_train_step(
    student: nnx.GraphDef,
    teacher: nnx.GraphDef,
    adaptation: Adaptation,
    tx: optax.GradientTransformation,
    *,
    accumulation_steps: int,
    ema_decay: float,
) -> Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the pure ``train_step(state, frozen, batch, rng) -> (state, metrics)``."""

    def train_step(state: TrainState, frozen: Params, batch: Batch, rng: jax.Array):
        del rng  # nothing is random but the order of the prompts

        def loss_fn(trainable: Params, micro_batch: Batch):
            params = adaptation.apply(frozen, trainable)
            return jnp.mean(projection_losses(student, teacher, params, micro_batch)), {}

        scalars, grads = accumulated_grad(loss_fn, state.trainable, dict(batch), accumulation_steps)
        state, norms = apply_gradients(state, grads, tx, ema_decay=ema_decay)
        return state, {**scalars, **norms}

    return train_step


def make_projection_eval_step(
    student: nnx.GraphDef, teacher: nnx.GraphDef, adaptation: Adaptation
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns ``eval_step(trainable, frozen, batch, rng, first_row)``: see `step.py`."""

    def eval_step(
        trainable: Params, frozen: Params, batch: Batch, rng: jax.Array, first_row: jax.Array
    ):
        del rng, first_row
        losses = projection_losses(student, teacher, adaptation.apply(frozen, trainable), batch)
        return jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])

    return eval_step
