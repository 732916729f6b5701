"""train.py: a recipe becomes a run. Here the config ends; below are typed arguments only."""

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax import api
from medsd_jax.adaptation.adaptation import Adaptation, frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.cli.device_setup import start_devices
from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.cli.recipes import check_recipe
from medsd_jax.cli.train_adaptation import (
    check_word,
    make_adaptation,
    save_adaptation,
    with_new_word,
)
from medsd_jax.cli.train_checks import check_config, check_model, check_prior_prompts
from medsd_jax.cli.train_data import (
    make_batches,
    make_validation,
    open_training_data,
    optimizer_batch,
)
from medsd_jax.cli.train_evaluation import make_evaluation
from medsd_jax.cli.train_latents import with_measured_scale
from medsd_jax.cli.train_preview import make_preview
from medsd_jax.cli.train_vae import frozen_features, make_vae_steps, open_features
from medsd_jax.cli.workdir import working_in
from medsd_jax.diffusion.schedule import NoiseSchedule
from medsd_jax.interop.pipeline_dir import check_writable
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.models.attention import attention_implementation
from medsd_jax.models.params import abstract
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.text_encoder import text_encoder_module
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.parallel.mesh import check_batch, make_mesh
from medsd_jax.parallel.multihost import (
    is_main_process,
    on_every_host,
)
from medsd_jax.training.loop import LoopSettings, train
from medsd_jax.training.optim import make_optimizer, make_schedule
from medsd_jax.training.step import DiffusionModel, make_eval_step, make_train_step

log = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> int:
    """Trains by the command line's recipe; the result is a diffusers folder WORKDIR/model.

    Returns:
        0; or 1 when the training diverged.
    """
    flags = parse_train_flags(argv)
    check_recipe(flags.config, flags.config_file, "get_config", "configs/finetune.py")
    start_devices(flags.hosts)
    train_by_config(flags.config, flags.workdir)
    print(f"the trained model is in {flags.workdir / 'model'}")
    return 0


def train_by_config(config: ConfigDict, workdir: Path) -> None:
    """One run. Everything that can be wrong with the config is found before the first step.

    Args:
        config: all keys of configs/base.py.
        workdir: checkpoints, curves, pictures and the final model go here.

    Raises:
        UserError: the config, the model or the data cannot be used, or another run has the workdir.
        DivergedError: the training diverged.
        KeyboardInterrupt: it was interrupted, and can be resumed.
    """
    check_config(config)
    mesh = make_mesh(config.mesh.to_dict())
    names = ["data.batch_size"] + (["prior.batch_size"] if config.prior.weight else [])
    check_batch(optimizer_batch(config), mesh, config.train.accumulation_steps, " + ".join(names))
    learning_rate, optimizer = optimizer_of(config)
    check_writable(workdir / "model")
    with working_in(workdir, "a training"):
        model = api.load(config.model.path, variant=config.model.variant)
        model = with_new_word(config, model)
        check_model(config, model)
        _train(config, workdir, model, mesh, learning_rate, optimizer)


def _train(
    config: ConfigDict,
    workdir: Path,
    model: StableDiffusion,
    mesh: Mesh,
    learning_rate: optax.Schedule,
    optimizer: optax.GradientTransformation,
) -> None:
    dataset = open_training_data(config, workdir)
    check_word(config, dataset.train.texts)
    check_prior_prompts(config, dataset.train.texts)
    is_vae = config.task == "vae"
    adaptation = full(tuple(config.vae.train)) if is_vae else make_adaptation(config, model)
    features = open_features(config) if is_vae else None
    if is_vae:
        train_step, eval_step = make_vae_steps(config, model, adaptation, optimizer, features)
    else:
        (empty,) = encode_prompts(model.tokenizer, [""])
        train_step, eval_step = diffusion_steps(config, model, adaptation, optimizer, empty)
    validation = make_validation(config, model, dataset, mesh)
    evaluation = make_evaluation(config, model, dataset, mesh, workdir)
    with contextlib.closing(make_batches(config, model, dataset, workdir, mesh)) as batches:
        trainable = train(
            workdir,
            LoopSettings(
                steps=config.train.steps,
                seed=config.seed,
                ema=config.train.ema_decay > 0,
                log_every=config.log.every_steps,
                checkpoint_every=config.checkpoint.every_steps,
                keep_checkpoints=config.checkpoint.keep,
                validate_every=config.validation.every_steps,
                validation_seed=config.validation.seed,
                preview_every=config.preview.every_steps,
                evaluate_every=config.evaluation.every_steps,
            ),
            mesh=mesh,
            params=model.params | frozen_features(features),
            adaptation=adaptation,
            tx=optimizer,
            learning_rate=learning_rate,
            train_step=train_step,
            eval_step=eval_step,
            batches=batches,
            validation=validation,
            preview=None if is_vae else make_preview(config, model, mesh, workdir),
            evaluation=evaluation,
            config=config.to_dict(),
        )
    stop_if_asked()
    trainable = on_every_host(trainable)
    frozen = frozen_params(model.params, trainable)
    trained = replace(model, params=adaptation.apply(frozen, trainable))
    if is_vae and config.vae.measure_scaling_factor:
        trained = with_measured_scale(trained, validation, mesh)
    if is_main_process():
        api.save(trained, workdir / "model")
        if not is_vae:
            save_adaptation(config, workdir, trainable, trained)


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
    attend, compute = attention_implementation(attention), jnp.dtype(dtype)
    unet, _ = abstract(
        functools.partial(
            UNet2DConditionModel, model.unet, dtype=compute, attend=attend, remat=remat
        )
    )
    vae, _ = abstract(functools.partial(AutoencoderKL, model.vae, dtype=compute))
    text_encoder, _ = abstract(text_encoder_module(model.text_encoder, dtype=compute))
    return DiffusionModel(
        unet,
        vae,
        text_encoder,
        NoiseSchedule.from_config(api.schedule_of(model)),
        scaling_factor=model.vae.scaling_factor,
        latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
    )
