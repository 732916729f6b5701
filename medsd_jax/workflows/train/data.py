"""What a run is trained and validated on: data set, few images, prior, batches."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.data.dataset import Dataset, open_dataset
from medsd_jax.data.few_shot import few_shot
from medsd_jax.data.latents import Processes, encode_split
from medsd_jax.data.loader import BatchIterator, EvalBatches, Source, eval_batches, make_loader
from medsd_jax.data.records import Split
from medsd_jax.errors import UserError
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import process_rows
from medsd_jax.parallel.multihost import is_first_on_disk, is_main_process, true_everywhere
from medsd_jax.workflows.train.latents import make_encoder, vae_fingerprint
from medsd_jax.workflows.train.prior import prior_images

log = logging.getLogger(__name__)


def open_data(config: ConfigDict, workdir: Path) -> Dataset:
    """The data set of the config, prepared on first use."""
    params = {}
    if config.data.source == "phantom":
        if config.data.path is not None:
            raise UserError(
                f"data.path = {config.data.path} would not be read: data.source = 'phantom' draws "
                "its images; set data.source to 'folder' or 'nih14'"
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
    """What a run trains and validates on: the data set of the config, or a few images of it."""
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
    log.info("trained on %d images: %s", len(chosen.train), ", ".join(chosen.train.keys))
    return chosen


def _columns(model: StableDiffusion, split: Split) -> dict[str, np.ndarray]:
    return {"prompt_ids": encode_prompts(model.tokenizer, split.texts)}


def _image_settings(config: ConfigDict) -> dict:
    return {
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
    """Training batches as `batch_shapes` says: of the data, and of the prior where there is one."""
    splits = [(dataset.train, dataset.info.folder, config.data.batch_size)]
    if config.prior.weight:
        splits.append((*prior_images(config, model, workdir, mesh), config.prior.batch_size))
    latents_of = _latents_of(config, model, mesh)
    sources = []
    for is_prior, (split, folder, batch_size) in enumerate(splits):
        columns = _columns(model, split)
        if config.prior.weight:
            columns["is_prior"] = np.full(len(split), is_prior, np.float32)
        sources.append(Source(split, batch_size, columns, latents_of(split, folder)))
    return make_loader(
        sources,
        seed=config.seed,
        rows=process_rows(mesh, optimizer_batch(config)),
        **_image_settings(config),
    )


def batch_shapes(
    config: ConfigDict, model: StableDiffusion, size: int, tokens: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a training batch of `size` images with prompts of `tokens` tokens holds.

    `is_prior` is 1 on the rows of the prior, and there where the config has a prior only.
    """
    side, vae = config.data.image_size, model.vae
    batch = {"prompt_ids": jax.ShapeDtypeStruct((size, tokens), np.int32)}
    if config.data.cache_latents:
        h = side // vae.downscale
        moments = (size, h, h, 2 * vae.latent_channels)
        batch["latent_moments"] = jax.ShapeDtypeStruct(moments, np.float32)
    else:
        batch["images"] = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8)
    if config.prior.weight:
        batch["is_prior"] = jax.ShapeDtypeStruct((size,), np.float32)
    return batch


def _latents_of(
    config: ConfigDict, model: StableDiffusion, mesh: Mesh
) -> Callable[[Split, Path], np.ndarray | None]:
    """``(split, folder) -> latent_moments``, cached in the folder; None without such a cache."""
    if not config.data.cache_latents:
        return lambda split, folder: None
    encoder, key = make_encoder(model, mesh), vae_fingerprint(model)
    return lambda split, folder: encode_split(
        split,
        encoder,
        batch_size=_forward_batch(config),
        key=key,
        folder=folder,
        rows=process_rows(mesh, _forward_batch(config)),
        processes=Processes(is_main_process(), true_everywhere, is_first_on_disk),
        **_image_settings(config),
    )


def make_validation(
    config: ConfigDict, model: StableDiffusion, dataset: Dataset, mesh: Mesh
) -> EvalBatches | None:
    """The first validation images as batches; None where nothing asks for them.

    Raises:
        UserError: there are none.
    """
    settings = []
    if config.validation.every_steps:
        settings.append("validation.every_steps=0")
    if config.task == "vae" and config.vae.measure_scaling_factor:
        settings.append("vae.measure_scaling_factor=False")
    if config.evaluation.every_steps and "validation_loss" in config.evaluation.metrics:
        settings.append("evaluation.every_steps=0")
    if not settings:
        return None
    if not len(dataset.validation):
        patients = len(set(dataset.train.patient_ids))
        help_of_more = (
            "one patient cannot be in both splits"
            if patients == 1
            else "or raise data.validation_fraction or name a split column"
        )
        raise UserError(
            f"the validation split is empty ({len(dataset.train)} images of {patients} "
            f"patient(s) are for training): train without it by {' and '.join(settings)}; "
            f"{help_of_more}"
        )
    return eval_batches(
        dataset.validation,
        batch_size=_forward_batch(config),
        num_examples=config.validation.num_images,
        rows=process_rows(mesh, _forward_batch(config)),
        columns=_columns(model, dataset.validation),
        **_image_settings(config),
    )
