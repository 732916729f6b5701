"""What can be wrong with a training config, found before anything is loaded or computed."""

import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from medsd_jax.config.ranges import check_ranges
from medsd_jax.diffusion.samplers import make_step_table
from medsd_jax.errors import UserError
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.workflows.sample import MAX_STEPS, schedule_of
from medsd_jax.workflows.train.evaluation import check_evaluation
from medsd_jax.workflows.train.vae import check_perceptual, check_vae_patterns

_CHOICES = {
    "task": ("diffusion", "vae"),
    "model.dtype": ("float32", "bfloat16"),
    "adaptation.name": ("full", "lora", "textual_inversion"),
}
_OWN_KEYS = {
    "lora": ("lora_rank", "lora_alpha"),
    "textual_inversion": ("placeholder_token", "initializer_token", "num_vectors"),
}
"""Keys of `adaptation` that one kind reads and needs, and no other reads."""


def _value(config: ConfigDict, key: str):
    for name in key.split("."):
        config = config[name]
    return config


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values that no later check names as clearly."""
    for key, allowed in _CHOICES.items():
        value = _value(config, key)
        if value not in allowed:
            raise UserError(f"{key} = {value!r} does not exist (one of {', '.join(allowed)})")
    check_ranges(config)
    if config.data.cache_latents and config.task == "vae":
        raise UserError("data.cache_latents = True needs a frozen VAE, but task = 'vae' trains it")
    if config.task == "diffusion":
        _check_adaptation(config)
    check_perceptual(config)
    if config.prior.weight:
        _check_prior(config)
    check_evaluation(config)


def _check_adaptation(config: ConfigDict) -> None:
    settings = config.adaptation
    for name, keys in _OWN_KEYS.items():
        for key in keys:
            if name == settings.name and settings[key] is None:
                raise UserError(f"adaptation.name = {name!r} needs adaptation.{key}")
            if name != settings.name and settings[key] is not None:
                raise UserError(
                    f"adaptation.{key} = {settings[key]!r} would not be read: it is for "
                    f"adaptation.name = {name!r}, not {settings.name!r}"
                )
    if settings.name == "textual_inversion":
        if settings.train:
            raise UserError(
                f"adaptation.train = {tuple(settings.train)} would not be read: textual inversion "
                "trains the placeholder token alone; set it to ()"
            )


def _check_prior(config: ConfigDict) -> None:
    if config.task == "vae":
        raise UserError(f"prior.weight = {config.prior.weight} needs task = 'diffusion'")
    if not config.prior.prompts:
        raise UserError("prior.prompts is empty: name what the model shall draw before training")
    if config.prior.num_images < config.prior.batch_size:
        raise UserError(
            f"prior.num_images = {config.prior.num_images} are fewer than prior.batch_size = "
            f"{config.prior.batch_size}"
        )
    if config.few_shot.images_per_prompt:
        check_prior_prompts(config, (config.few_shot.prompt_with, config.few_shot.prompt_without))
    for name in ("data", "prior"):
        if config[name].batch_size % config.train.accumulation_steps:
            raise UserError(
                f"{name}.batch_size = {config[name].batch_size} must be a multiple of "
                f"train.accumulation_steps = {config.train.accumulation_steps}: with prior.weight "
                "above 0 every micro-batch holds both kinds of images"
            )


def check_prior_prompts(config: ConfigDict, texts: Sequence[str]) -> None:
    """Raises UserError where a prompt of the prior is a caption that is trained on.

    Equal means equal to CLIP's tokenizer, which sees neither case nor the width of spaces.
    """
    reason = config.prior.same_prompts_because
    if not config.prior.weight or reason is not None:
        return
    captions = {" ".join(text.lower().split()) for text in texts}
    for prompt in config.prior.prompts:
        if " ".join(prompt.lower().split()) in captions:
            raise UserError(
                f"prior.prompts: {prompt!r} is a caption of the training images, too: what the "
                "model drew before would be learnt as what they show; name their class, such as "
                "'A photo of an x-ray', or set prior.same_prompts_because to the reason"
            )


def check_model(config: ConfigDict, model: StableDiffusion) -> None:
    """Raises UserError where the config asks for what this model cannot do."""
    downscale = model.vae.downscale
    if config.data.image_size % downscale:
        raise UserError(
            f"data.image_size = {config.data.image_size} must be a multiple of {downscale} pixels"
        )
    if config.task == "vae":
        check_vae_patterns(config.vae.train, model)
        return
    channels = {model.unet.in_channels, model.unet.out_channels, model.vae.latent_channels}
    if len(channels) > 1:
        raise UserError(
            f"the U-Net works on {model.unet.in_channels} -> {model.unet.out_channels} channels, "
            f"the VAE on {model.vae.latent_channels}: only plain text-to-image models train"
        )
    check_patterns(config.adaptation.train, model)
    if config.preview.every_steps and config.preview.prompts:
        _check_sampling(config, model, "preview", config.preview.images_per_prompt)
    if config.evaluation.every_steps:
        _check_sampling(config, model, "evaluation", config.evaluation.num_images)
    if config.prior.weight:
        _check_sampling(config, model, "prior", config.prior.num_images)


def _check_sampling(config: ConfigDict, model: StableDiffusion, section: str, count: int) -> None:
    """Says now what the first image would say after hundreds of steps."""
    settings = config[section]
    if not math.isfinite(settings.guidance_scale):
        raise UserError(
            f"{section}.guidance_scale = {settings.guidance_scale} must be a finite number"
        )
    if settings.num_steps > MAX_STEPS:
        raise UserError(f"{section}.num_steps = {settings.num_steps} must be at most {MAX_STEPS}")
    if settings.seed + count > 2**32:
        raise UserError(f"{section}.seed = {settings.seed} must be below 2**32")
    make_step_table(settings.sampler, schedule_of(model), settings.num_steps, MAX_STEPS)


def check_patterns(patterns: tuple[str, ...], model: StableDiffusion) -> None:
    """Raises UserError where the diffusion loss would train the VAE.

    The latents are the data of that loss: an encoder that is trained by it makes them all alike.
    """
    for pattern in patterns:
        try:
            trained = [name for name in model.params if re.search(pattern, name)]
        except re.error:
            return  # the adaptation says so
        if any(name.startswith("vae.") for name in trained):
            raise UserError(
                f"adaptation.train: {pattern!r} matches weights of the VAE, which task = "
                "'diffusion' cannot train; use task = 'vae', or a narrower pattern such as "
                r"'^unet\.'"
            )
