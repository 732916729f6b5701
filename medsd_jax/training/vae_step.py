"""The VAE train step: L1 reconstruction plus a small KL, and a perceptual term where asked for.

    L = |x - y| + kl_weight KL(q(z | x) || N(0, I)) + perceptual_weight P(x, y)
    y = decode(z),   z = mean + exp(logvar / 2) u,   P as in perceptual.py

The first two terms are sums divided by the number of pixel values, so `kl_weight` means what it
means in latent diffusion (arXiv 2112.10752, appendix G; 1e-6 there).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.arrays import Params, from_uint8
from medsd_jax.models.params import bind, component
from medsd_jax.models.vae import sample_posterior
from medsd_jax.training.accumulation import accumulated_grad
from medsd_jax.training.perceptual import PREFIX, Features, perceptual_distance
from medsd_jax.training.state import TrainState, apply_gradients

Batch = Mapping[str, jax.Array]


def vae_losses(vae: nnx.GraphDef, params: Params, images: jax.Array, noise: jax.Array | None):
    """Reconstruction and KL terms of each image, and the reconstruction.

    Args:
        vae: graph definition.
        params: all weights; those below ``vae.`` are used.
        images: [B, H, W, 3] float32 in [-1, 1].
        noise: [B, h, w, C] float32; None decodes the posterior's mean.

    Returns:
        (l1 [B], kl [B]) float32, both per pixel value, and y [B, H, W, 3] float32.
    """
    module = bind(vae, component(params, "vae"))
    mean, logvar = module.encode(images)
    latents = mean if noise is None else sample_posterior(mean, logvar, noise)
    reconstruction = module.decode(latents)
    l1 = jnp.mean(jnp.abs(reconstruction - images), axis=(1, 2, 3))
    kl = 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))
    kl = kl / (images.shape[1] * images.shape[2] * images.shape[3])
    return l1, kl, reconstruction


def make_vae_train_step(
    vae: nnx.GraphDef,
    adaptation: Adaptation,
    tx: optax.GradientTransformation,
    *,
    latent_channels: int,
    downscale: int,
    kl_weight: float,
    accumulation_steps: int,
    ema_decay: float,
    features: Features | None = None,
    perceptual_weight: float = 0.0,
) -> Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the pure ``train_step(state, frozen, batch, rng) -> (state, metrics)``.

    `rng` is the run's key, the same at every step: the step folds its own number in. With
    `features`, `frozen` holds that network's weights below ``perceptual.``, and the metrics hold
    the term "perceptual", not weighted. A batch is {"images": [B, H, W, 3] uint8}.
    """

    def train_step(state: TrainState, frozen: Params, batch: Batch, rng: jax.Array):
        images_u8 = batch["images"]
        noise = draw_posterior_noise(
            images_u8.shape, state.step, rng, latent_channels=latent_channels, downscale=downscale
        )

        def loss_fn(trainable: Params, micro_batch):
            params = adaptation.apply(frozen, trainable)
            images, noise = from_uint8(micro_batch[0]), micro_batch[1]
            l1, kl, reconstruction = vae_losses(vae, params, images, noise)
            losses, terms = l1 + kl_weight * kl, {"l1": l1, "kl": kl}
            if features is not None:
                terms["perceptual"] = perceptual_distance(
                    features, component(frozen, PREFIX), images, reconstruction
                )
                losses = losses + perceptual_weight * terms["perceptual"]
            return jnp.mean(losses), {name: jnp.mean(term) for name, term in terms.items()}

        scalars, grads = accumulated_grad(
            loss_fn, state.trainable, (images_u8, noise), accumulation_steps
        )
        state, norms = apply_gradients(state, grads, tx, ema_decay=ema_decay)
        return state, {**scalars, **norms}

    return train_step


def draw_posterior_noise(
    image_shape: tuple[int, int, int, int],
    step: jax.Array,
    rng: jax.Array,
    *,
    latent_channels: int,
    downscale: int,
) -> jax.Array:
    """The noise [B, h, w, C] of one step, drawn for the whole batch: see `step.draw`."""
    b, height, width, _ = image_shape
    shape = (b, height // downscale, width // downscale, latent_channels)
    return jax.random.normal(jax.random.fold_in(rng, step), shape)


def make_vae_eval_step(vae: nnx.GraphDef, adaptation: Adaptation) -> Callable:
    """Returns ``eval_step(trainable, frozen, batch, rng, first_row)``; see `step.make_eval_step`.

    The loss is the L1 distance to the reconstruction from the posterior's mean: nothing is random.
    """

    def eval_step(
        trainable: Params, frozen: Params, batch: Batch, rng: jax.Array, first_row: jax.Array
    ):
        del rng, first_row
        images = from_uint8(batch["images"])
        l1, _, _ = vae_losses(vae, adaptation.apply(frozen, trainable), images, None)
        return jnp.sum(l1 * batch["mask"]), jnp.sum(batch["mask"])

    return eval_step
