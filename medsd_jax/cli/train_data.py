"""What a run is trained and validated on: data set, few pictures, prior, batches."""

import functools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.cli.train_latents import make_encoder, vae_fingerprint
from medsd_jax.cli.train_prior import prior_pictures
from medsd_jax.data.dataset import Dataset, open_dataset
from medsd_jax.data.few_shot import few_shot
from medsd_jax.data.latents import Processes, encode_split
from medsd_jax.data.loader import BatchIterator, EvalBatches, eval_batches, make_loader
from medsd_jax.data.record_lists import JoinedSplits
from medsd_jax.data.records import Split
from medsd_jax.errors import UserError
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import process_rows
from medsd_jax.parallel.multihost import is_first_on_disk, is_main_process, true_everywhere

log = logging.getLogger(__name__)


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
    validation = dataset.validation
    if len(validation):  # where it is empty, `make_validation` says so if it is asked for
        validation = choose(validation, images_per_prompt=None)
    chosen = replace(
        dataset, train=choose(dataset.train, images_per_prompt=count), validation=validation
    )
    log.info("trained on %d pictures: %s", len(chosen.train), ", ".join(chosen.train.keys))
    return chosen


def _input_settings(config: ConfigDict, model: StableDiffusion, split: Split) -> dict:
    return {
        "columns": {"prompt_ids": encode_prompts(model.tokenizer, split.texts)},
        "image_size": config.data.image_size,
        "resize_mode": config.data.resize_mode,
        "num_threads": config.data.num_workers,
    }


def optimizer_batch(config: ConfigDict) -> int:
    """Images per optimizer step, over all devices and accumulation steps."""
    return config.data.batch_size + (config.prior.batch_size if config.prior.weight else 0)


def _forward_batch(config: ConfigDict) -> int:
    """Images at once outside of training: as many as one micro-batch, which is known to fit."""
    return optimizer_batch(config) // config.train.accumulation_steps


def make_batches(
    config: ConfigDict, model: StableDiffusion, dataset: Dataset, workdir: Path, mesh: Mesh
) -> BatchIterator:
    """Training batches: of the data, and of the prior behind them where there is one."""
    parts, prior_settings = [(dataset.train, dataset.info.folder)], {}
    split = dataset.train
    if config.prior.weight:
        prior, folder = prior_pictures(config, model, workdir, mesh)
        parts.append((prior, folder))
        split = JoinedSplits([dataset.train, prior], dataset.train.name)
        prior_settings = {"beside": len(prior), "beside_batch_size": config.prior.batch_size}
    moments = None
    if config.data.cache_latents:
        encoder, key = make_encoder(model, mesh), vae_fingerprint(model)
        found = [
            encode_split(
                part,
                encoder,
                batch_size=_forward_batch(config),
                image_size=config.data.image_size,
                resize_mode=config.data.resize_mode,
                key=key,
                folder=folder,
                rows=process_rows(mesh, _forward_batch(config)),
                num_threads=config.data.num_workers,
                processes=Processes(is_main_process(), true_everywhere, is_first_on_disk),
            )
            for part, folder in parts
        ]
        # One set alone stays in its file: it may be larger than the memory.
        moments = found[0] if len(found) == 1 else np.concatenate(found)
    settings = _input_settings(config, model, split)
    if config.prior.weight:
        is_prior = np.arange(len(split)) >= len(dataset.train)
        settings["columns"]["is_prior"] = is_prior.astype(np.float32)
    return make_loader(
        split,
        batch_size=config.data.batch_size,
        seed=config.seed,
        latent_moments=moments,
        rows=process_rows(mesh, optimizer_batch(config)),
        **prior_settings,
        **settings,
    )


def make_validation(
    config: ConfigDict, model: StableDiffusion, dataset: Dataset, mesh: Mesh
) -> EvalBatches | None:
    """The first validation images as batches; None where nothing asks for them.

    Raises:
        UserError: there are none.
    """
    asked = []
    if config.validation.every_steps:
        asked.append("validation.every_steps=0")
    if config.task == "vae" and config.vae.measure_scaling_factor:
        asked.append("vae.measure_scaling_factor=False")
    if config.evaluation.every_steps and "validation_loss" in config.evaluation.metrics:
        asked.append("evaluation.every_steps=0")
    if not asked:
        return None
    if not len(dataset.validation):
        patients = len(set(dataset.train.patient_ids))
        help_of_more = (
            "one patient cannot be on both sides"
            if patients == 1
            else "or raise data.validation_fraction or name a split column"
        )
        raise UserError(
            f"the validation split is empty ({len(dataset.train)} images of {patients} "
            f"patient(s) are for training): train without it by {' and '.join(asked)}; "
            f"{help_of_more}"
        )
    return eval_batches(
        dataset.validation,
        batch_size=_forward_batch(config),
        num_examples=config.validation.num_images,
        rows=process_rows(mesh, _forward_batch(config)),
        **_input_settings(config, model, dataset.validation),
    )
