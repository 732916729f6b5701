"""The diffusion train step: one for every adaptation.

    z   = scaling_factor (mean + exp(logvar / 2) u)         latents of the images, u ~ N(0, I)
    x_t = sqrt(abar_t) z + sqrt(1 - abar_t) n               t uniform in [0, T), n ~ N(0, I)
    L   = E || model(x_t, t, text) - target(z, n, t) ||^2   weighted by min-SNR if asked

Prior preservation (DreamBooth, 2208.12242, eq. 2) adds lambda times the same mean over images
that the model drew before training: L = L_data + lambda L_prior.

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
from medsd_jax.arrays import Params, from_uint8
from medsd_jax.diffusion.loss import min_snr_weights
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


def encode_images(
    model: DiffusionModel, params: Params, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and log variance of the batch, each [B, h, w, C] float32.

    They come from `latent_moments` where the batch carries them, else from the VAE, which sees the
    images on [-1, 1].
    """
    if "latent_moments" in batch:
        mean, logvar = jnp.split(batch["latent_moments"].astype(jnp.float32), 2, axis=-1)
        return mean, logvar
    return bind(model.vae, component(params, "vae")).encode(from_uint8(batch["images"]))


def denoising_loss(
    model: DiffusionModel,
    params: Params,
    batch: Batch,
    draws: Draws,
    *,
    empty_prompt_ids: np.ndarray,
    min_snr_gamma: float | None,
) -> jax.Array:
    """Loss of each example, [B] float32.

    Args:
        model: graph definitions and schedule.
        params: all weights.
        batch: prompt_ids [B, S] int32, and images [B, H, W, 3] uint8 or latent_moments
            [B, h, w, 2C].
        draws: the step's random numbers.
        empty_prompt_ids: [S] int32, the empty prompt, put in the place of dropped captions.
        min_snr_gamma: gamma of arXiv 2303.09556; None weighs all timesteps alike.
    """
    mean, logvar = encode_images(model, params, batch)
    latents = model.scaling_factor * sample_posterior(mean, logvar, draws.posterior)
    noisy = add_noise(model.schedule, latents, draws.noise, draws.timesteps)
    empty = jnp.asarray(empty_prompt_ids)[None]
    ids = jnp.where(draws.drop_caption[:, None], empty, batch["prompt_ids"])
    context = bind(model.text_encoder, component(params, "text_encoder"))(ids)
    output = bind(model.unet, component(params, "unet"))(noisy, draws.timesteps, context)
    expected = target(model.schedule, latents, draws.noise, draws.timesteps)
    per_example = jnp.mean(jnp.square(output - expected), axis=(1, 2, 3))
    if min_snr_gamma is not None:
        per_example *= min_snr_weights(model.schedule, draws.timesteps, min_snr_gamma)
    return per_example


def make_train_step(
    model: DiffusionModel,
    adaptation: Adaptation,
    tx: optax.GradientTransformation,
    *,
    empty_prompt_ids: np.ndarray,
    caption_dropout: float,
    min_snr_gamma: float | None,
    accumulation_steps: int,
    ema_decay: float,
    prior_weight: float = 0.0,
) -> Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the pure ``train_step(state, frozen, batch, rng) -> (state, metrics)``.

    `rng` is the run's key, the same at every step: the step folds its own number in. Where
    `prior_weight` (lambda) is above 0, `batch["is_prior"]` [B] float32 is 1 on the prior's rows;
    every micro-batch holds as many of them, and the metrics tell the two losses apart.
    """

    def train_step(state: TrainState, frozen: Params, batch: Batch, rng: jax.Array):
        rng = jax.random.fold_in(rng, state.step)
        draws = draw(model, batch, rng, caption_dropout=caption_dropout)

        def loss_fn(trainable: Params, micro_batch):
            losses = denoising_loss(
                model,
                adaptation.apply(frozen, trainable),
                *micro_batch,
                empty_prompt_ids=empty_prompt_ids,
                min_snr_gamma=min_snr_gamma,
            )
            if not prior_weight:
                return jnp.mean(losses), {}
            prior_rows = micro_batch[0]["is_prior"]
            of_data = jnp.average(losses, weights=1.0 - prior_rows)
            of_prior = jnp.average(losses, weights=prior_rows)
            apart = {"data_loss": of_data, "prior_loss": of_prior}
            return of_data + prior_weight * of_prior, apart

        scalars, grads = accumulated_grad(
            loss_fn, state.trainable, (dict(batch), draws), accumulation_steps
        )
        state, norms = apply_gradients(state, grads, tx, ema_decay=ema_decay)
        return state, {**scalars, **norms}

    return train_step


def eval_draws(model: DiffusionModel, batch: Batch, rng: jax.Array, first_row: jax.Array) -> Draws:
    """The fixed random numbers of validation examples.

    Example i of the validation set has noise of its own and a timestep of its own, whatever the
    batch size, the number of devices and the padding. The timesteps are an additive sequence with
    the golden ratio: the first n of it are spread almost evenly over [0, T), for every n.

    Args:
        model: gives the shapes and T.
        batch: of validation examples.
        rng: the fixed key.
        first_row: [] int32, number of the batch's first example in the whole set.
    """
    shape = latent_shape(model, batch)
    rows = first_row + jnp.arange(shape[0])

    def noise_of(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        rng_noise, rng_posterior = jax.random.split(jax.random.fold_in(rng, row))
        return (
            jax.random.normal(rng_noise, shape[1:]),
            jax.random.normal(rng_posterior, shape[1:]),
        )

    noise, posterior = jax.vmap(noise_of)(rows)
    # (row + 1) / golden ratio, modulo 1, as a 32-bit fraction; its upper 24 bits are exact floats.
    fraction = (rows.astype(jnp.uint32) + 1) * jnp.uint32(2654435769) >> 8
    size = model.schedule.num_train_timesteps
    timesteps = (fraction.astype(jnp.float32) * (size / 2**24)).astype(jnp.int32)
    return Draws(
        noise=noise,
        posterior=posterior,
        timesteps=jnp.minimum(timesteps, size - 1),
        drop_caption=jnp.zeros(shape[:1], bool),
    )


def make_eval_step(
    model: DiffusionModel, adaptation: Adaptation, *, empty_prompt_ids: np.ndarray
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the validation step.

    It is ``eval_step(trainable, frozen, batch, rng, first_row) -> (sum of losses, examples)``: a
    number to compare over a whole run. The same `rng` gives the same noise and timesteps, captions
    are never dropped and no min-SNR weight is applied. `batch["mask"]` [B] is 0 on padding rows.
    """

    def eval_step(
        trainable: Params, frozen: Params, batch: Batch, rng: jax.Array, first_row: jax.Array
    ):
        losses = denoising_loss(
            model,
            adaptation.apply(frozen, trainable),
            batch,
            eval_draws(model, batch, rng, first_row),
            empty_prompt_ids=empty_prompt_ids,
            min_snr_gamma=None,
        )
        return jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])

    return eval_step
