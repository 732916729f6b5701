"""train.py: a recipe becomes a run. Here the config ends; below are typed arguments only."""

import contextlib
import functools
import logging
import sys
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
from medsd_jax.adaptation.lora import LoraSettings, lora
from medsd_jax.adaptation.textual_inversion import textual_inversion
from medsd_jax.arrays import Params
from medsd_jax.cli.device_setup import start_devices
from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.cli.train_checks import check_config, check_model
from medsd_jax.cli.train_evaluation import make_evaluation
from medsd_jax.cli.train_latents import make_encoder, vae_fingerprint, with_measured_scale
from medsd_jax.cli.train_preview import make_preview
from medsd_jax.cli.train_prior import prior_pictures
from medsd_jax.cli.train_vae import frozen_features, make_vae_steps, open_features
from medsd_jax.data.dataset import Dataset, open_dataset
from medsd_jax.data.few_shot import few_shot
from medsd_jax.data.latents import encode_split
from medsd_jax.data.loader import BatchIterator, eval_batches, make_loader
from medsd_jax.data.record_lists import JoinedSplits
from medsd_jax.data.records import Split
from medsd_jax.diffusion.schedule import NoiseSchedule
from medsd_jax.errors import UserError
from medsd_jax.interop.learned_embeddings import TABLE, add_word, write_embeddings
from medsd_jax.interop.lora_files import write_lora
from medsd_jax.interop.pipeline_dir import check_writable
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.attention import attention_implementation
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.params import abstract
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.parallel.mesh import check_batch, make_mesh
from medsd_jax.parallel.multihost import (
    is_main_process,
    on_every_host,
    true_everywhere,
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
    start_devices()
    try:
        train_by_config(flags.config, flags.workdir)
    except FloatingPointError as error:
        print("medsd_jax: error:", error, file=sys.stderr)
        return 1
    print(f"the trained model is in {flags.workdir / 'model'}")
    return 0


def train_by_config(config: ConfigDict, workdir: Path) -> None:
    """One run. Everything that can be wrong with the config is found before the first step.

    Args:
        config: all keys of configs/base.py.
        workdir: checkpoints, curves, pictures and the final model go here.

    Raises:
        UserError: the config, the model or the data cannot be used.
        FloatingPointError: the training diverged.
        KeyboardInterrupt: it was interrupted, and can be resumed.
    """
    check_config(config)
    mesh = make_mesh(config.mesh.to_dict())
    names = ["data.batch_size"] + (["prior.batch_size"] if config.prior.weight else [])
    check_batch(_batch_size(config), mesh, config.train.accumulation_steps, " + ".join(names))
    learning_rate = make_schedule(
        config.optim.schedule,
        config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps,
        total_steps=config.train.steps,
    )
    optimizer = make_optimizer(
        learning_rate,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        no_decay=config.optim.no_decay,
    )
    check_writable(workdir / "model")
    model = api.load(config.model.path, variant=config.model.variant)
    if config.task == "diffusion" and config.adaptation.name == "textual_inversion":
        model = add_word(
            model,
            config.adaptation.word,
            like=config.adaptation.word_like,
            num_vectors=config.adaptation.word_vectors,
        )
    check_model(config, model)
    workdir.mkdir(parents=True, exist_ok=True)
    dataset = open_training_data(config, workdir)
    check_word(config, dataset.train.texts)
    is_vae = config.task == "vae"
    adaptation = full(tuple(config.vae.train)) if is_vae else make_adaptation(config)
    features = open_features(config) if is_vae else None
    if is_vae:
        train_step, eval_step = make_vae_steps(config, model, adaptation, optimizer, features)
    else:
        train_step, eval_step = _diffusion_steps(config, model, adaptation, optimizer)
    validation = _make_validation(config, model, dataset)
    evaluation = make_evaluation(config, model, dataset, mesh, workdir)
    with contextlib.closing(_make_batches(config, model, dataset, workdir, mesh)) as batches:
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
    trainable = on_every_host(trainable)
    frozen = frozen_params(model.params, trainable)
    trained = replace(model, params=adaptation.apply(frozen, trainable))
    if is_vae and config.vae.measure_scaling_factor:
        trained = with_measured_scale(trained, validation, mesh)
    if is_main_process():
        api.save(trained, workdir / "model")
        if not is_vae:
            _save_adaptation(config, workdir, trainable, trained)


def open_data(config: ConfigDict, workdir: Path) -> Dataset:
    """The data set of the config, prepared on first use."""
    params = {}
    if config.data.source == "phantom":
        if config.data.path is not None:
            raise UserError(
                f"data.path = {config.data.path} would not be read: data.source = 'phantom' draws "
                "its pictures; set data.source to 'folder' or 'nih14'"
            )
        params = {
            "num_images": config.data.num_images,
            "seed": config.data.phantom_seed,
            "image_size": config.data.image_size,
            "findings": tuple(config.data.phantom_findings),
        }
    return open_dataset(
        config.data.source,
        config.data.path,
        params=params,
        cache_dir=config.data.cache_dir or workdir / "data",
        validation_fraction=config.data.validation_fraction,
    )


def open_training_data(config: ConfigDict, workdir: Path) -> Dataset:
    """What a run trains and validates on: the data set of the config, or a few pictures of it."""
    dataset = open_data(config, workdir)
    count = config.few_shot.images_per_prompt
    if not count:
        return dataset
    choose = functools.partial(
        few_shot,
        label=config.few_shot.label,
        prompt_with=config.few_shot.prompt_with,
        prompt_without=config.few_shot.prompt_without,
    )
    chosen = replace(
        dataset,
        train=choose(dataset.train, images_per_prompt=count),
        validation=choose(dataset.validation, images_per_prompt=None),
    )
    log.info("trained on %d pictures: %s", len(chosen.train), ", ".join(chosen.train.keys))
    return chosen


def check_word(config: ConfigDict, texts: Sequence[str]) -> None:
    """Raises UserError where a word shall be learnt that no caption holds."""
    word = config.adaptation.word
    if word is not None and not any(word in text for text in texts):
        raise UserError(
            f"adaptation.word = {word!r} is in no caption: nothing would be learnt; write it into "
            "few_shot.prompt_with and few_shot.prompt_without, or into the captions"
        )


def make_adaptation(config: ConfigDict) -> Adaptation:
    """The adaptation of the config, which `check_config` has seen."""
    asked = config.adaptation
    match asked.name:
        case "lora":
            return lora(LoraSettings(tuple(asked.train), asked.lora_rank, asked.lora_alpha))
        case "textual_inversion":
            return textual_inversion(TABLE, asked.word_vectors)
        case _:
            return full(tuple(asked.train))


def _save_adaptation(
    config: ConfigDict, workdir: Path, trainable: Params, trained: StableDiffusion
) -> None:
    """The small files of what was trained, beside the model that has it built in."""
    asked = config.adaptation
    if asked.name == "lora":
        write_lora(workdir / "lora", trainable, asked.lora_alpha)
    elif asked.name == "textual_inversion":
        write_embeddings(workdir, asked.word, trained.params, asked.word_vectors)


def _diffusion_steps(
    config: ConfigDict,
    model: StableDiffusion,
    adaptation: Adaptation,
    optimizer: optax.GradientTransformation,
) -> tuple[Callable, Callable]:
    diffusion_model = make_diffusion_model(
        model,
        dtype=config.model.dtype,
        attention=config.model.attention,
        remat=config.model.remat,
    )
    empty = encode_prompts(model.tokenizer, [""])[0]
    train_step = make_train_step(
        diffusion_model,
        adaptation,
        optimizer,
        empty_prompt_ids=empty,
        caption_dropout=config.train.caption_dropout,
        min_snr_gamma=config.train.min_snr_gamma,
        accumulation_steps=config.train.accumulation_steps,
        ema_decay=config.train.ema_decay,
        prior_weight=config.prior.weight,
    )
    return train_step, make_eval_step(diffusion_model, adaptation, empty_prompt_ids=empty)


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
    text_encoder, _ = abstract(functools.partial(CLIPTextModel, model.text_encoder, dtype=compute))
    return DiffusionModel(
        unet,
        vae,
        text_encoder,
        NoiseSchedule.from_config(api.schedule_of(model)),
        scaling_factor=model.vae.scaling_factor,
        latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
    )


def _input_settings(config: ConfigDict, model: StableDiffusion, split: Split) -> dict:
    return {
        "columns": {"prompt_ids": encode_prompts(model.tokenizer, split.texts)},
        "image_size": config.data.image_size,
        "resize_mode": config.data.resize_mode,
        "num_threads": config.data.num_workers,
    }


def _batch_size(config: ConfigDict) -> int:
    """Images per optimizer step, over all devices and accumulation steps."""
    return config.data.batch_size + (config.prior.batch_size if config.prior.weight else 0)


def _forward_batch(config: ConfigDict) -> int:
    """Images at once outside of training: as many as one micro-batch, which is known to fit."""
    return _batch_size(config) // config.train.accumulation_steps


def _make_batches(
    config: ConfigDict, model: StableDiffusion, dataset: Dataset, workdir: Path, mesh: Mesh
) -> BatchIterator:
    parts, prior_settings = [(dataset.train, dataset.info.folder)], {}
    split = dataset.train
    if config.prior.weight:
        prior, folder = prior_pictures(config, model, workdir, mesh)
        parts.append((prior, folder))
        split = JoinedSplits([dataset.train, prior], dataset.train.name)
        prior_settings = {"beside": len(prior), "beside_batch_size": config.prior.batch_size}
    moments = None
    if config.data.cache_latents:
        moments = np.concatenate(
            [
                encode_split(
                    part,
                    make_encoder(model, mesh),
                    batch_size=_forward_batch(config),
                    image_size=config.data.image_size,
                    resize_mode=config.data.resize_mode,
                    key=vae_fingerprint(model),
                    folder=folder,
                    true_everywhere=true_everywhere,
                )
                for part, folder in parts
            ]
        )
    settings = _input_settings(config, model, split)
    if config.prior.weight:
        is_prior = np.arange(len(split)) >= len(dataset.train)
        settings["columns"]["is_prior"] = is_prior.astype(np.float32)
    return make_loader(
        split,
        batch_size=config.data.batch_size,
        seed=config.seed,
        latent_moments=moments,
        **prior_settings,
        **settings,
    )


def _make_validation(config: ConfigDict, model: StableDiffusion, dataset: Dataset):
    """The first validation images as batches; None where nothing asks for them."""
    measured = config.task == "vae" and config.vae.measure_scaling_factor
    judged = config.evaluation.every_steps and "validation_loss" in config.evaluation.metrics
    if not config.validation.every_steps and not measured and not judged:
        return None
    return eval_batches(
        dataset.validation,
        batch_size=_forward_batch(config),
        num_examples=config.validation.num_images,
        **_input_settings(config, model, dataset.validation),
    )
