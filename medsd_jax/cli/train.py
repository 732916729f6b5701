"""train.py: a recipe becomes a run. Here the config ends; below are typed arguments only."""

import functools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax import api
from medsd_jax.adaptation.full import full
from medsd_jax.cli.device_setup import start_devices
from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.data.dataset import Dataset, open_dataset
from medsd_jax.data.latents import encode_split
from medsd_jax.data.loader import eval_batches, make_loader
from medsd_jax.diffusion.schedule import NoiseSchedule
from medsd_jax.errors import UserError
from medsd_jax.interop.pipeline_dir import check_writable
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.attention import attention_implementation
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.parallel.mesh import batch_sharding, check_batch, make_mesh, put_batch
from medsd_jax.sampling.images import make_grid, save_png
from medsd_jax.training.checkpoint import write_json_atomically
from medsd_jax.training.loop import LoopSettings, train
from medsd_jax.training.optim import make_optimizer, make_schedule
from medsd_jax.training.step import DiffusionModel, make_eval_step, make_train_step
from medsd_jax.training.vae_step import make_vae_eval_step, make_vae_train_step

log = logging.getLogger(__name__)

TASKS = ("diffusion", "vae")
DTYPES = ("float32", "bfloat16")


def run(argv: Sequence[str]) -> int:
    """Trains by the command line's recipe; the result is a diffusers folder WORKDIR/model."""
    flags = parse_train_flags(argv)
    start_devices()
    train_by_config(flags.config, flags.workdir)
    print(f"the trained model is in {flags.workdir / 'model'}")
    return 0


def train_by_config(config: ConfigDict, workdir: Path) -> None:
    """One run. Everything that can be wrong with the config is found before the first step.

    Args:
        config: all keys of configs/base.py.
        workdir: checkpoints, curves, pictures and the final model go here.

    Raises:
        UserError: the config, the model or the data cannot be used.
    """
    check_config(config)
    mesh = make_mesh(config.mesh.to_dict())
    check_batch(config.data.batch_size, mesh, config.train.accumulation_steps)
    check_writable(workdir / "model")
    model = api.load(config.model.path, variant=config.model.variant)
    check_image_size(config, model)
    workdir.mkdir(parents=True, exist_ok=True)
    dataset = open_data(config, workdir)
    write_json_atomically(workdir / "config.json", config.to_dict())

    build = _build_vae_run if config.task == "vae" else _build_diffusion_run
    train_step, eval_step, optimizer, adaptation = build(config, model)
    batches, validation = _make_input(config, model, dataset, mesh)
    on_main_host = jax.process_index() == 0
    params = train(
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
        ),
        mesh=mesh,
        params=model.params,
        adaptation=adaptation,
        tx=optimizer,
        learning_rate=_learning_rate(config),
        train_step=train_step,
        eval_step=eval_step,
        batches=batches,
        validation=lambda: iter(validation),
        preview=_make_preview(config, model, mesh, workdir) if config.task == "diffusion" else None,
        config=config.to_dict(),
    )
    trained = replace(model, params=params)
    if config.task == "vae" and config.vae.measure_scaling_factor:
        trained = _with_measured_scale(trained, validation, mesh)
    if on_main_host:
        api.save(trained, workdir / "model")


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values that no later check names as clearly."""
    choices = {"task": TASKS, "model.dtype": DTYPES, "adaptation.name": ("full",)}
    for key, allowed in choices.items():
        value = functools.reduce(lambda node, name: node[name], key.split("."), config)
        if value not in allowed:
            raise UserError(f"{key} = {value!r} does not exist (one of {', '.join(allowed)})")
    at_least_one = ("train.steps", "train.accumulation_steps", "data.batch_size", "data.image_size", "log.every_steps",
                    "checkpoint.every_steps", "checkpoint.keep", "validation.num_images", "preview.num_steps",
                    "preview.images_per_prompt")  # fmt: skip
    at_least_zero = ("validation.every_steps", "preview.every_steps", "optim.learning_rate", "optim.weight_decay",
                     "optim.clip_norm", "vae.kl_weight")  # fmt: skip
    for keys, least in ((at_least_one, 1), (at_least_zero, 0)):
        for key in keys:
            section, name = key.split(".")
            if not config[section][name] >= least:
                raise UserError(f"{key} = {config[section][name]} must be at least {least}")
    for key in ("train.caption_dropout", "train.ema_decay", "data.validation_fraction"):
        section, name = key.split(".")
        if not 0 <= config[section][name] < 1:
            raise UserError(f"{key} = {config[section][name]} must be at least 0 and below 1")
    if config.train.min_snr_gamma is not None and config.train.min_snr_gamma <= 0:
        raise UserError(f"train.min_snr_gamma = {config.train.min_snr_gamma} must be above 0, or None")
    if config.data.cache_latents and config.task == "vae":
        raise UserError("data.cache_latents = True needs a frozen VAE, but task = 'vae' trains it")


def check_image_size(config: ConfigDict, model: StableDiffusion) -> None:
    """Raises UserError unless the VAE can halve the picture as often as it wants."""
    if config.data.image_size % model.vae.downscale:
        raise UserError(f"data.image_size = {config.data.image_size} must be a multiple of {model.vae.downscale} pixels")


def open_data(config: ConfigDict, workdir: Path) -> Dataset:
    """The data set of the config, prepared on first use."""
    params = {}
    if config.data.source == "phantom":
        params = {
            "num_images": config.data.num_images, "seed": config.data.phantom_seed, "image_size": config.data.image_size
        }  # fmt: skip
    return open_dataset(
        config.data.source,
        config.data.path,
        params=params,
        cache_dir=config.data.cache_dir or workdir / "data",
        validation_fraction=config.data.validation_fraction,
    )


def _learning_rate(config: ConfigDict):
    return make_schedule(
        config.optim.schedule,
        config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps,
        total_steps=config.train.steps,
    )


def _optimizer(config: ConfigDict):
    settings = config.optim.to_dict()
    for name in ("learning_rate", "schedule", "warmup_steps"):
        del settings[name]
    return make_optimizer(_learning_rate(config), **settings)


def _build_diffusion_run(config: ConfigDict, model: StableDiffusion):
    patterns = tuple(config.adaptation.train)
    if config.data.cache_latents and any(re.search(p, n) for p in patterns for n in model.params if n[:4] == "vae."):
        raise UserError("data.cache_latents = True needs a frozen VAE, but adaptation.train matches weights of it")
    adaptation, optimizer = full(patterns), _optimizer(config)
    diffusion_model = make_diffusion_model(
        model, dtype=config.model.dtype, attention=config.model.attention, remat=config.model.remat
    )
    empty = encode_prompts(model.tokenizer, [""])[0]
    train_step = make_train_step(
        diffusion_model, adaptation, optimizer,
        empty_prompt_ids=empty, caption_dropout=config.train.caption_dropout,
        min_snr_gamma=config.train.min_snr_gamma, accumulation_steps=config.train.accumulation_steps,
        ema_decay=config.train.ema_decay,
    )  # fmt: skip
    return train_step, make_eval_step(diffusion_model, adaptation, empty_prompt_ids=empty), optimizer, adaptation


def make_diffusion_model(model: StableDiffusion, *, dtype: str, attention: str, remat: bool) -> DiffusionModel:
    """Graph definitions of the three networks in one compute dtype."""
    attend, compute = attention_implementation(attention), jnp.dtype(dtype)
    unet, _ = abstract(
        functools.partial(UNet2DConditionModel, model.unet, dtype=compute, attend=attend, remat=remat)
    )
    vae, _ = abstract(functools.partial(AutoencoderKL, model.vae, dtype=compute))
    text_encoder, _ = abstract(functools.partial(CLIPTextModel, model.text_encoder, dtype=compute))
    return DiffusionModel(
        unet, vae, text_encoder, NoiseSchedule.from_config(api.schedule_of(model)),
        scaling_factor=model.vae.scaling_factor, latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
    )  # fmt: skip


def _build_vae_run(config: ConfigDict, model: StableDiffusion):
    adaptation, optimizer = full((r"^vae\.",)), _optimizer(config)
    vae, _ = abstract(functools.partial(AutoencoderKL, model.vae, dtype=jnp.dtype(config.model.dtype)))
    train_step = make_vae_train_step(
        vae, adaptation, optimizer,
        latent_channels=model.vae.latent_channels, downscale=model.vae.downscale, kl_weight=config.vae.kl_weight,
        accumulation_steps=config.train.accumulation_steps, ema_decay=config.train.ema_decay,
    )  # fmt: skip
    return train_step, make_vae_eval_step(vae, adaptation), optimizer, adaptation


def _make_input(config: ConfigDict, model: StableDiffusion, dataset: Dataset, mesh: Mesh):
    encode = functools.partial(encode_prompts, model.tokenizer)
    shared = {
        "batch_size": config.data.batch_size, "encode": encode, "image_size": config.data.image_size,
        "resize_mode": config.data.resize_mode, "num_threads": config.data.num_workers,
    }  # fmt: skip
    validation = eval_batches(dataset.validation, num_examples=config.validation.num_images, **shared)
    moments = None
    if config.data.cache_latents:
        moments = encode_split(
            dataset.train, _make_encoder(model, mesh), batch_size=config.data.batch_size,
            image_size=config.data.image_size, resize_mode=config.data.resize_mode,
            key=vae_fingerprint(model), folder=dataset.info.folder,
        )  # fmt: skip
    return make_loader(dataset.train, seed=config.seed, latent_moments=moments, **shared), validation


def vae_fingerprint(model: StableDiffusion) -> str:
    """Changes with any bit of the VAE: cached latents belong to one VAE."""
    vae = {name: x for name, x in model.params.items() if name.startswith("vae.")}
    return replace(model, params=vae).fingerprint()


def _make_encoder(model: StableDiffusion, mesh: Mesh):
    """Images [B, H, W, 3] on the host -> posterior moments [B, h, w, 2C] on the host, over all devices."""
    vae, _ = abstract(functools.partial(AutoencoderKL, model.vae))
    weights = jax.device_put(component(model.params, "vae"), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    encode = jax.jit(
        lambda weights, images: jnp.concatenate(bind(vae, weights).encode(images), axis=-1),
        out_shardings=batch_sharding(mesh),
    )
    return lambda images: np.asarray(encode(weights, put_batch({"images": images}, mesh)["images"]))


def _make_preview(config: ConfigDict, model: StableDiffusion, mesh: Mesh, workdir: Path):
    """Samples the fixed prompts from fixed seeds into WORKDIR/samples/STEP.png."""
    each = config.preview.images_per_prompt
    prompts = [prompt for prompt in config.preview.prompts for _ in range(each)]
    seeds = [config.preview.seed + i for _ in config.preview.prompts for i in range(each)]
    size = config.data.image_size

    def preview(params, step: int) -> None:
        images = api.sample(
            replace(model, params=params), prompts, seeds=seeds, num_steps=config.preview.num_steps,
            guidance_scale=config.preview.guidance_scale, height=size, width=size, mesh=mesh,
            dtype=config.model.dtype, attention=config.model.attention, progress=False,
        )  # fmt: skip
        if jax.process_index() == 0:
            folder = workdir / "samples"
            folder.mkdir(exist_ok=True)
            about = {"step": step, "prompts": list(config.preview.prompts), "seeds": seeds[:each]}
            save_png(make_grid(images, columns=each), folder / f"{step:07d}.png", about)

    return preview


def _with_measured_scale(model: StableDiffusion, validation: Iterator, mesh: Mesh) -> StableDiffusion:
    """Sets scaling_factor so that the latents of the validation images have unit standard deviation."""
    encode = _make_encoder(model, mesh)
    means = [encode(batch["images"])[batch["mask"] > 0] for batch in validation]
    latents = np.concatenate(means)[..., : model.vae.latent_channels]
    scale = float(1.0 / latents.std())
    log.info("vae.scaling_factor = %.5f: 1 / std of %d validation latents", scale, len(latents))
    return replace(model, vae=replace(model.vae, scaling_factor=scale))
