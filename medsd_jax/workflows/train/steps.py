"""A training: a recipe becomes a run. Here the config ends; below are typed arguments only."""

from collections.abc import Callable

import numpy as np
import optax
from ml_collections import ConfigDict

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.diffusion.schedule import NoiseSchedule
from medsd_jax.models.networks import networks
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.training.optim import make_optimizer, make_schedule
from medsd_jax.training.step import DiffusionModel, make_eval_step, make_train_step
from medsd_jax.workflows.sample import schedule_of


def optimizer_of(config: ConfigDict) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate by optimizer step, and the optimizer."""
    learning_rate = make_schedule(
        config.optim.schedule,
        config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps,
        total_steps=config.train.steps,
    )
    return learning_rate, make_optimizer(
        learning_rate,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        no_decay=config.optim.no_decay,
    )


def diffusion_steps(
    config: ConfigDict,
    model: StableDiffusion,
    adaptation: Adaptation,
    optimizer: optax.GradientTransformation,
    empty_prompt_ids: np.ndarray,
) -> tuple[Callable, Callable]:
    """The train step and the validation step of task "diffusion"; [S] ids of the empty prompt."""
    diffusion_model = make_diffusion_model(
        model,
        dtype=config.model.dtype,
        attention=config.model.attention,
        remat=config.model.remat,
    )
    train_step = make_train_step(
        diffusion_model,
        adaptation,
        optimizer,
        empty_prompt_ids=empty_prompt_ids,
        caption_dropout=config.train.caption_dropout,
        min_snr_gamma=config.train.min_snr_gamma,
        accumulation_steps=config.train.accumulation_steps,
        ema_decay=config.train.ema_decay,
        prior_weight=config.prior.weight,
    )
    return train_step, make_eval_step(
        diffusion_model, adaptation, empty_prompt_ids=empty_prompt_ids
    )


def make_diffusion_model(
    model: StableDiffusion, *, dtype: str, attention: str, remat: bool
) -> DiffusionModel:
    """Graph definitions of the three networks in one compute dtype."""
    unet, vae, text_encoder = networks(
        model.unet, model.vae, model.text_encoder, dtype=dtype, attention=attention, remat=remat
    )
    return DiffusionModel(
        unet,
        vae,
        text_encoder,
        NoiseSchedule.from_config(schedule_of(model)),
        scaling_factor=model.vae.scaling_factor,
        latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
    )
