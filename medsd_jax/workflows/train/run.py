"""A training: a recipe becomes a run. Here the config ends; below are typed arguments only."""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.interop.diffusers_folder import check_writable
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import check_batch, make_mesh
from medsd_jax.parallel.multihost import is_main_process, on_every_host
from medsd_jax.training.loop import LoopSettings, run_loop
from medsd_jax.workflows.models import load, save
from medsd_jax.workflows.train.adaptation import (
    check_word,
    make_adaptation,
    save_adaptation,
    with_new_word,
)
from medsd_jax.workflows.train.checks import check_config, check_model, check_prior_prompts
from medsd_jax.workflows.train.data import (
    make_batches,
    make_validation,
    open_training_data,
    optimizer_batch,
)
from medsd_jax.workflows.train.evaluation import make_evaluation
from medsd_jax.workflows.train.latents import with_measured_scale
from medsd_jax.workflows.train.preview import make_preview
from medsd_jax.workflows.train.steps import diffusion_steps, optimizer_of
from medsd_jax.workflows.train.vae import frozen_features, make_vae_steps, open_features
from medsd_jax.workflows.workdir import working_in

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path | str) -> None:
    """One run. Everything that can be wrong with the config is found before the first step.

    Args:
        config: by `medsd_jax.config.training_config`.
        workdir: checkpoints, curves, images and the final model go here.

    Raises:
        UserError: the config, the model or the data cannot be used, or another run has the workdir.
        DivergedError: the training diverged.
        KeyboardInterrupt: it was interrupted, and can be resumed.
    """
    workdir = Path(workdir)
    check_config(config)
    mesh = make_mesh(config.mesh.to_dict())
    names = ["data.batch_size"] + (["prior.batch_size"] if config.prior.weight else [])
    check_batch(optimizer_batch(config), mesh, config.train.accumulation_steps, " + ".join(names))
    learning_rate, optimizer = optimizer_of(config)
    check_writable(workdir / "model")
    with working_in(workdir, "a training"):
        model = load(config.model.path, variant=config.model.variant)
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
        trainable = run_loop(
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
        save(trained, workdir / "model")
        if not is_vae:
            save_adaptation(config, workdir, trainable, trained)
