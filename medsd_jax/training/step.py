"""The diffusion train step: one for every adaptation.

    z   = scaling_factor (mean + exp(logvar / 2) u)         latents of the images, u ~ N(0, I)
    x_t = sqrt(abar_t) z + sqrt(1 - abar_t) n               t uniform in [0, T), n ~ N(0, I)
    L   = E || model(x_t, t, text) - target(z, n, t) ||^2   weighted by min-SNR if asked

All random numbers of a step are drawn for the whole batch before anything else, so neither the
number of devices nor gradient accumulation changes what is trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.arrays import Params
from medsd_jax.diffusion.loss import diffusion_loss, min_snr_weights
from medsd_jax.diffusion.process import add_noise, target
from medsd_jax.diffusion.schedule import NoiseSchedule
from medsd_jax.models.params import bind, component
from medsd_jax.models.vae import sample_posterior
from medsd_jax.training.accumulation import accumulated_grad
from medsd_jax.training.state import TrainState, apply_gradients

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class DiffusionModel:
    """What the step computes with; weights come as arguments.

    Attributes:
        unet: graph definition of the U-Net, its compute dtype and remat switch inside.
        vae: graph definition of the VAE.
        text_encoder: graph definition of the text encoder.
        schedule: noise schedule the checkpoint was trained with.
        scaling_factor: of the latents, from the VAE's config.
        latent_channels: of the VAE.
        downscale: pixels per latent cell along a side.
    """

    unet: nnx.GraphDef
    vae: nnx.GraphDef
    text_encoder: nnx.GraphDef
    schedule: NoiseSchedule
    scaling_factor: float
    latent_channels: int
    downscale: int


@struct.dataclass
class Draws:
    """The random numbers of one step, one row an example."""

    noise: jax.Array  # [B, h, w, C] float32
    posterior: jax.Array  # [B, h, w, C] float32
    timesteps: jax.Array  # [B] int32
    drop_caption: jax.Array  # [B] bool


def draw(model: DiffusionModel, batch: Batch, rng: jax.Array, *, caption_dropout: float) -> Draws:
    """Draws a step's random numbers; `rng` is used up."""
    rng_noise, rng_posterior, rng_time, rng_caption = jax.random.split(rng, 4)
    shape = latent_shape(model, batch)
    return Draws(
        noise=jax.random.normal(rng_noise, shape),
        posterior=jax.random.normal(rng_posterior, shape),
        timesteps=jax.random.randint(rng_time, shape[:1], 0, model.schedule.num_train_timesteps),
        drop_caption=jax.random.bernoulli(rng_caption, caption_dropout, shape[:1]),
    )


def latent_shape(model: DiffusionModel, batch: Batch) -> tuple[int, int, int, int]:
    """[B, h, w, C] of the batch's latents."""
    if "latent_moments" in batch:
        return (*batch["latent_moments"].shape[:3], model.latent_channels)
    b, height, width, _ = batch["images"].shape
    return b, height // model.downscale, width // model.downscale, model.latent_channels


def encode_images(model: DiffusionModel, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and log variance [B, h, w, C] of the batch, from `latent_moments` if it carries them."""
    if "latent_moments" in batch:
        mean, logvar = jnp.split(batch["latent_moments"].astype(jnp.float32), 2, axis=-1)
        return mean, logvar
    return bind(model.vae, component(params, "vae")).encode(batch["images"])


def denoising_loss(
    model: DiffusionModel, params: Params, batch: Batch, draws: Draws, *, empty_prompt_ids: np.ndarray,
    min_snr_gamma: float | None,
) -> jax.Array:  # fmt: skip
    """Loss of each example, [B] float32.

    Args:
        model: graph definitions and schedule.
        params: all weights.
        batch: images [B, H, W, 3] in [-1, 1] or latent_moments [B, h, w, 2C]; prompt_ids [B, S] int32.
        draws: the step's random numbers.
        empty_prompt_ids: [S] int32, the empty prompt, put in the place of dropped captions.
        min_snr_gamma: gamma of arXiv 2303.09556; None weighs all timesteps alike.
    """
    mean, logvar = encode_images(model, params, batch)
    latents = model.scaling_factor * sample_posterior(mean, logvar, draws.posterior)
    noisy = add_noise(model.schedule, latents, draws.noise, draws.timesteps)
    ids = jnp.where(draws.drop_caption[:, None], jnp.asarray(empty_prompt_ids)[None], batch["prompt_ids"])
    context = bind(model.text_encoder, component(params, "text_encoder"))(ids)
    output = bind(model.unet, component(params, "unet"))(noisy, draws.timesteps, context)
    wanted = target(model.schedule, latents, draws.noise, draws.timesteps)
    per_example = jnp.mean(jnp.square(output - wanted), axis=(1, 2, 3))
    if min_snr_gamma is not None:
        per_example = per_example * min_snr_weights(model.schedule, draws.timesteps, min_snr_gamma)
    return per_example


def make_train_step(
    model: DiffusionModel, adaptation: Adaptation, tx: optax.GradientTransformation, *,
    empty_prompt_ids: np.ndarray, caption_dropout: float, min_snr_gamma: float | None,
    accumulation_steps: int, ema_decay: float,
) -> Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:  # fmt: skip
    """Returns the pure ``train_step(state, frozen, batch, rng) -> (state, metrics)``.

    `rng` is the run's key, the same at every step: the step folds its own number in.
    """

    def train_step(state: TrainState, frozen: Params, batch: Batch, rng: jax.Array):
        draws = draw(model, batch, jax.random.fold_in(rng, state.step), caption_dropout=caption_dropout)

        def loss_fn(trainable: Params, micro_batch) -> jax.Array:
            micro, micro_draws = micro_batch
            params = adaptation.apply(frozen, trainable)
            return jnp.mean(
                denoising_loss(
                    model, params, micro, micro_draws,
                    empty_prompt_ids=empty_prompt_ids, min_snr_gamma=min_snr_gamma,
                )
            )  # fmt: skip

        loss, grads = accumulated_grad(loss_fn, state.trainable, (dict(batch), draws), accumulation_steps)
        state, norms = apply_gradients(state, grads, tx, ema_decay=ema_decay)
        return state, {"loss": loss, **norms}

    return train_step


def make_eval_step(
    model: DiffusionModel, adaptation: Adaptation, *, empty_prompt_ids: np.ndarray
) -> Callable[[Params, Params, Batch, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns ``eval_step(trainable, frozen, batch, rng) -> (sum of losses, number of examples)``.

    The same `rng` gives the same noise and timesteps, so that the number can be compared over a whole
    run. Timesteps are spread evenly over [0, T), one an example, captions are never dropped and no
    min-SNR weight is applied. `batch["mask"]` [B] is 0 on padding rows.
    """

    def eval_step(trainable: Params, frozen: Params, batch: Batch, rng: jax.Array):
        draws = draw(model, batch, rng, caption_dropout=0.0)
        b, t = draws.timesteps.shape[0], model.schedule.num_train_timesteps
        draws = draws.replace(timesteps=((2 * jnp.arange(b) + 1) * t // (2 * b)).astype(jnp.int32))
        params = adaptation.apply(frozen, trainable)
        losses = denoising_loss(
            model, params, batch, draws, empty_prompt_ids=empty_prompt_ids, min_snr_gamma=None
        )
        return jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])

    return eval_step
