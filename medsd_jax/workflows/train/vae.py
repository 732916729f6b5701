"""`train` with task = "vae": its steps, and the frozen network of its perceptual term."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features.perceptual import FeatureMaps, open_feature_maps
from medsd_jax.models.networks import graph
from medsd_jax.models.params import with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.training.perceptual import PREFIX
from medsd_jax.training.vae_step import make_vae_eval_step, make_vae_train_step


def check_perceptual(config: ConfigDict) -> None:
    """Raises UserError where a key of the perceptual term is missing or would not be read."""
    weight, spec = config.vae.perceptual_weight, config.vae.perceptual_features
    if weight and config.task != "vae":
        raise UserError(f"vae.perceptual_weight = {weight} needs task = 'vae'")
    if weight and spec is None:
        raise UserError(
            f"vae.perceptual_weight = {weight} needs vae.perceptual_features, such as "
            "classifier=FOLDER"
        )
    if spec is not None and not weight:
        raise UserError(
            f"vae.perceptual_features = {spec!r} would not be read: vae.perceptual_weight is 0"
        )


def check_vae_patterns(patterns: tuple[str, ...], model: StableDiffusion) -> None:
    """Raises UserError where the VAE's loss would decay weights that it does not use."""
    for pattern in patterns:
        try:
            trained = [name for name in model.params if re.search(pattern, name)]
        except re.error:
            return  # the adaptation says so
        others = [name for name in trained if not name.startswith("vae.")]
        if others:
            raise UserError(
                f"vae.train: {pattern!r} matches {others[0]}, which is no weight of the VAE; begin "
                r"it with '^vae\.'"
            )


def open_features(config: ConfigDict) -> FeatureMaps | None:
    """The network of the perceptual term; None where its weight is 0."""
    if not config.vae.perceptual_weight:
        return None
    return open_feature_maps(config.vae.perceptual_features)


def frozen_features(features: FeatureMaps | None) -> Mapping[str, Any]:
    """Its weights by the names that they have among a run's frozen weights."""
    return {} if features is None else with_prefix(features.params, PREFIX)


def make_vae_steps(
    config: ConfigDict,
    model: StableDiffusion,
    adaptation: Adaptation,
    optimizer: optax.GradientTransformation,
    features: FeatureMaps | None,
) -> tuple[Callable, Callable]:
    """The train step and the validation step of the config."""
    dtype = jnp.dtype(config.model.dtype)
    vae = graph("vae", model.vae, dtype=dtype)
    train_step = make_vae_train_step(
        vae,
        adaptation,
        optimizer,
        latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
        kl_weight=config.vae.kl_weight,
        accumulation_steps=config.train.accumulation_steps,
        ema_decay=config.train.ema_decay,
        features=None if features is None else features.maps,
        perceptual_weight=config.vae.perceptual_weight,
    )
    return train_step, make_vae_eval_step(vae, adaptation)
