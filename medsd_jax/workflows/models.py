"""Models as a notebook and all commands open, extend and save them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsd_jax.adaptation.lora import merge
from medsd_jax.errors import UserError
from medsd_jax.interop.bert_folder import load_bert
from medsd_jax.interop.diffusers_folder import load_pipeline, save_pipeline
from medsd_jax.interop.learned_embeddings import read_embeddings, with_embeddings
from medsd_jax.interop.lora_files import read_lora
from medsd_jax.models import text_encoder_swap
from medsd_jax.models.stable_diffusion import StableDiffusion

load = load_pipeline
save = save_pipeline


def add_lora(model: StableDiffusion, path: Path | str, scale: float = 1.0) -> StableDiffusion:
    """The model with a LoRA merged into its weights.

    Args:
        model: from `load`, weights on the host.
        path: a safetensors file in PEFT's or kohya's layout, or a folder with
            pytorch_lora_weights.safetensors or one file of another name.
        scale: the difference is multiplied by it; 0 changes nothing.

    Raises:
        UserError: the file cannot be read or is of another model, or the scale is not finite.
    """
    if not math.isfinite(scale):
        raise UserError(f"LoRA scale = {scale} must be a finite number")
    result = read_lora(Path(path).expanduser(), model.params)
    scales = {kernel: scale * own for kernel, own in result.scales.items()}
    merged = merge(model.params, result.matrices, scales)
    for kernel in result.scales:
        if not np.isfinite(merged[kernel]).all():
            raise UserError(
                f"{path} with scale {scale:g} gives {kernel} numbers that are not finite: take a "
                "smaller scale, or another copy of the LoRA"
            )
    return replace(model, params=merged)


def add_embedding(
    model: StableDiffusion, path: Path | str, placeholder_token: str | None = None
) -> StableDiffusion:
    """The model with the placeholder token of a textual inversion, to be written in prompts.

    Args:
        model: from `load`, weights on the host.
        path: learned_embeds.safetensors, a file of A1111, or a folder that holds one.
        placeholder_token: instead of the file's own, which is the name of the file for those of
            A1111.

    Raises:
        UserError: the file cannot be read, is of another width, or the token is there already.
    """
    return with_embeddings(model, *read_embeddings(Path(path).expanduser(), placeholder_token))


def swap_text_encoder(
    model: StableDiffusion,
    encoder: Path | str,
    *,
    projection: str = "none",
    hidden_features: int | None = None,
    fresh_unet: bool = False,
    max_length: int = 77,
    seed: int = 0,
) -> StableDiffusion:
    """The model with a BERT in the place of its text encoder. Nothing is trained.

    Args:
        model: from `load`, weights on the host.
        encoder: folder or hub id of a BERT.
        projection: "none"; "linear" or "mlp" (one hidden layer) put random weights between the
            encoder and the U-Net, to the width that the U-Net has.
        hidden_features: width of the "mlp"'s hidden layer; the encoder's own if None.
        fresh_unet: a U-Net of random weights that attends to the encoder's width.
        max_length: tokens of a prompt with its two special ones.
        seed: of random weights.

    Raises:
        UserError: the encoder cannot be read, the widths do not fit, or two of the choices
            contradict each other.
    """
    return text_encoder_swap.swap_text_encoder(
        model,
        *load_bert(str(encoder)),
        projection=projection,
        hidden_features=hidden_features,
        fresh_unet=fresh_unet,
        max_length=max_length,
        seed=seed,
    )
