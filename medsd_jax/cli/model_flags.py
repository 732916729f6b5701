"""--model and what can be added to it: a LoRA, a learnt word."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.errors import UserError

if TYPE_CHECKING:  # importing the API waits for JAX, which --help need not
    from medsd_jax.models.stable_diffusion import StableDiffusion


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --variant, --lora and --embedding."""
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="diffusers folder, hub id, or training workdir")
    add("--variant", help="weight files to read, such as fp16")
    add(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]",
        help="merge a LoRA of PEFT's or kohya's layout, its difference times SCALE (default 1); "
        "may be repeated",
    )  # fmt: skip
    add(
        "--embedding", action="append", default=[], metavar="FILE[:TOKEN]",
        help="add the placeholder token of a textual inversion (learned_embeds.safetensors), as "
        "TOKEN; a file of A1111 is called by its name; may be repeated",
    )  # fmt: skip


def load_model(args: argparse.Namespace) -> "StableDiffusion":
    """The model that the flags name, with everything that they add.

    Raises:
        UserError: a file cannot be read or is of another model.
    """
    from medsd_jax.workflows.models import add_embedding, add_lora, load

    loras = [_parse_lora(text) for text in args.lora]
    embeddings = [_parse_embedding(text) for text in args.embedding]
    model = load(args.model, variant=args.variant)
    for path, word in embeddings:
        model = add_embedding(model, path, word)
    for path, scale in loras:
        model = add_lora(model, path, scale)
    return model


def _parse_lora(text: str) -> tuple[Path, float]:
    if Path(text).expanduser().exists():
        return Path(text), 1.0
    path, colon, scale = text.rpartition(":")
    if not colon:
        raise UserError(f"--lora {text} does not exist")
    try:
        return Path(path), float(scale)
    except ValueError:
        raise UserError(
            f"--lora {text}: {scale!r} is no number; write FILE or FILE:SCALE"
        ) from None


def _parse_embedding(text: str) -> tuple[Path, str | None]:
    path, colon, word = text.rpartition(":")
    if Path(text).expanduser().exists() or not colon:
        return Path(text), None  # api.add_embedding says what is missing
    if not word.strip():
        raise UserError(f"--embedding {text}: there is no token; write FILE or FILE:TOKEN")
    return Path(path), word
