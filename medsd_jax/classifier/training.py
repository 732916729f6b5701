"""Training the classifier: a DenseNet on labelled images, several findings per image.

The step is pure, as the diffusion's is: ``step(state, frozen, batch, rng) -> (state, metrics)``.
Unknown labels (NaN) carry no loss. Nothing is frozen in a network with group norm, and the stored
statistics are in one with batch norm: see features/densenet.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from medsd_jax.arrays import Params, from_uint8
from medsd_jax.classifier.model import network_input, structure
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.models.params import bind
from medsd_jax.parallel.mesh import put_batch, replicated
from medsd_jax.parallel.multihost import put_global, replicated_key
from medsd_jax.training.state import TrainState, apply_gradients, init_state
from medsd_jax.vision.densenet import DenseNetConfig
from medsd_jax.vision.layers import is_statistic


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes that leave every finding as it is. No mirroring: the heart is on the left.

    Attributes:
        shift: largest displacement along each axis, as a share of the side.
        contrast: grey values are scaled by a factor in 1 +- contrast.
        brightness: and moved by at most this, on the [-1, 1] range.
    """

    shift: float
    contrast: float
    brightness: float

    def __call__(self, images: jax.Array, rng: jax.Array) -> jax.Array:
        """Images [B, H, W, 1] float32 in [-1, 1] -> changed ones; edges are repeated."""
        b, height, width, _ = images.shape
        down, right, scale, offset = jax.random.split(rng, 4)
        dy, dx = int(self.shift * height), int(self.shift * width)
        padded = jnp.pad(images, ((0, 0), (dy, dy), (dx, dx), (0, 0)), mode="edge")
        top = jax.random.randint(down, (b,), 0, 2 * dy + 1)
        left = jax.random.randint(right, (b,), 0, 2 * dx + 1)
        moved = jax.vmap(
            lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (height, width, 1))
        )(padded, top, left)
        factor, added = (
            jax.random.uniform(key, (b, 1, 1, 1), minval=-size, maxval=size)
            for key, size in ((scale, self.contrast), (offset, self.brightness))
        )
        return (1.0 + factor) * moved + added


def classification_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of the known labels.

    Args:
        logits: [B, labels] float32.
        targets: [B, labels] float32: 1 present, 0 absent, NaN unknown.

    Returns:
        [] float32; 0 where nothing is known.
    """
    known = ~jnp.isnan(targets)
    losses = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, targets, 0.0))
    return jnp.sum(losses * known) / jnp.maximum(known.sum(), 1)


def make_step(
    network: DenseNetConfig, tx: optax.GradientTransformation, augment: Augmentation
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the pure ``step(state, frozen, batch, rng) -> (state, metrics)``.

    `frozen` are the weights that stay, by name. A batch is {"images": [B, H, W, 3] uint8,
    "targets": [B, labels] float32}.
    """
    graphdef, _ = structure(network)

    def step(state: TrainState, frozen: Params, batch: Mapping[str, jax.Array], rng: jax.Array):
        rng = jax.random.fold_in(rng, state.step)
        images = augment(from_uint8(batch["images"]).mean(axis=-1, keepdims=True), rng)
        images = network_input(network, images)

        def loss(trainable: Params) -> jax.Array:
            scores = bind(graphdef, trainable | frozen)(images)
            return classification_loss(scores, batch["targets"])

        value, grads = jax.value_and_grad(loss)(state.trainable)
        state, norms = apply_gradients(state, grads, tx, ema_decay=0.0)
        return state, {"loss": value, **norms}

    return step


@functools.lru_cache(maxsize=8)
def _compiled_step(
    network: DenseNetConfig, tx: optax.GradientTransformation, augment: Augmentation
):
    return jax.jit(make_step(network, tx, augment), donate_argnums=0)


def fit(
    params: Mapping[str, np.ndarray],
    network: DenseNetConfig,
    batches: Iterator[Mapping[str, np.ndarray]],
    tx: optax.GradientTransformation,
    *,
    steps: int,
    augment: Augmentation,
    seed: int,
    mesh: Mesh,
    on_step: Callable[[int, Mapping[str, jax.Array]], None] = lambda step, metrics: None,
) -> dict[str, np.ndarray]:
    """Trains for `steps` optimizer steps, data parallel over the mesh.

    Args:
        params: initial weights on the host: random ones, or those of an earlier call.
        network: their shape.
        batches: this process's rows of each global batch, for ever; see `make_step`.
        tx: optimizer; calls with the same one, network and augmentation share a compiled step.
        steps: how many.
        augment: random changes of the images.
        seed: of the augmentation.
        mesh: the devices.
        on_step: called after each step with its number from 1 and the step's metrics.

    Returns:
        The trained weights on the host.
    """
    whole = replicated(mesh)
    placed = put_global(dict(params), dict.fromkeys(params, whole))
    frozen = {name: x for name, x in placed.items() if is_statistic(name)}
    trainable = {name: x for name, x in placed.items() if name not in frozen}
    state = jax.jit(lambda p: init_state(p, tx, ema=False), out_shardings=whole)(trainable)
    step = _compiled_step(network, tx, augment)
    rng = replicated_key(seed, mesh)
    for number in range(1, steps + 1):
        stop_if_asked()
        state, metrics = step(state, frozen, put_batch(next(batches), mesh), rng)
        on_step(number, metrics)
    trained = state.trainable | frozen
    return {name: np.asarray(trained[name]) for name in params}
