"""model_index.json: which classes a diffusers folder's parts are, and which of them we run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medsd_jax.errors import UserError


class Part(NamedTuple):
    """A component: the library of its class, and the classes that are supported (none: any)."""

    library: str
    class_names: tuple[str, ...] = ()


PARTS = {
    "unet": Part("diffusers", ("UNet2DConditionModel",)),
    "vae": Part("diffusers", ("AutoencoderKL",)),
    "text_encoder": Part("transformers", ("CLIPTextModel", "BertModel")),
    "tokenizer": Part(
        "transformers",
        ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast"),
    ),
    "scheduler": Part("diffusers"),  # which settings are understood is the diffusion's business
}
INDEX = "model_index.json"
"""Without it a folder is no model."""
PROJECTION_FOLDER = "text_encoder_projection"
"""Holds a projection on top of the text encoder, where there is one."""
DROPPED = ("safety_checker", "feature_extractor")
DIFFUSERS_VERSION = "0.42.1"
"""The release whose folder layout is written; diffusers patches configs that name an old one."""

# Private, so that diffusers skips it; its presence tells a lost folder from one that never was.
_PROJECTION_KEY = "_text_encoder_projection"
_PIPELINE = "StableDiffusionPipeline"
_NOTHING = [None, None]


class TextClasses(NamedTuple):
    """What a model_index.json says of the text encoder.

    Attributes:
        text_encoder: transformers' class, "CLIPTextModel" or "BertModel".
        tokenizer: likewise, "CLIPTokenizer" or "BertTokenizer".
        projection: whether `PROJECTION_FOLDER` belongs to it.
    """

    text_encoder: str
    tokenizer: str
    projection: bool


def read_text_classes(path: Path) -> TextClasses:
    """Reads them from a model_index.json that `check_index` has accepted."""
    index = read_json(path)
    names = (index[part][-1].removesuffix("Fast") for part in ("text_encoder", "tokenizer"))
    return TextClasses(*names, projection=_PROJECTION_KEY in index)


def has_projection(path: Path) -> bool:
    """Whether a model_index.json, of whatever kind of model, names `PROJECTION_FOLDER`."""
    return _PROJECTION_KEY in read_json(path)


def check_index(path: Path) -> list[str]:
    """Raises UserError unless model_index.json describes a model that we run.

    Returns:
        The parts in it that are not loaded, out of `DROPPED`.
    """
    index = read_json(path)
    if (class_name := index.get("_class_name")) != _PIPELINE:
        raise UserError(
            f"{path}: _class_name is {class_name!r}; only {_PIPELINE} (Stable Diffusion 1 and 2) "
            "is supported"
        )
    listed = {k: v for k, v in index.items() if isinstance(v, list) and v != _NOTHING}
    if absent := [name for name in PARTS if name not in listed]:
        raise UserError(f"{path} names no {', '.join(absent)}; download the model again")
    for name, value in listed.items():
        class_name = value[-1] if value else None
        if name in DROPPED:
            continue
        if name not in PARTS:
            raise UserError(f"{path}: the component {name} ({class_name}) is not supported")
        allowed = PARTS[name].class_names
        if allowed and class_name not in allowed:
            raise UserError(
                f"{path}: {name} is a {class_name}; only {' or '.join(allowed)} is supported"
            )
    encoder, tokenizer = (listed[name][-1] for name in ("text_encoder", "tokenizer"))
    if encoder.startswith("CLIP") != tokenizer.startswith("CLIP"):
        raise UserError(
            f"{path}: tokenizer is a {tokenizer}, which is none of a {encoder}'s; take both from "
            "the same model"
        )
    if _PROJECTION_KEY in index and encoder != "BertModel":
        raise UserError(f"{path}: {_PROJECTION_KEY} needs a BertModel, not a {encoder}")
    return [name for name in DROPPED if name in listed]


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler_config.json of a diffusers folder, its class by the index where it says none.

    Raises:
        UserError: one of the two files is missing or no JSON object.
    """
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if "_class_name" in scheduler:
        return scheduler
    listed = read_json(folder / INDEX).get("scheduler")
    return (
        {"_class_name": listed[-1], **scheduler}
        if isinstance(listed, list) and listed
        else scheduler
    )


def make_index(scheduler: Mapping[str, Any], text: TextClasses) -> dict[str, Any]:
    """The model_index.json of a model with this scheduler_config.json and text encoder."""
    index: dict[str, Any] = {"_class_name": _PIPELINE, "_diffusers_version": DIFFUSERS_VERSION}
    classes = {
        **{name: part.class_names[0] for name, part in PARTS.items() if part.class_names},
        "scheduler": scheduler.get("_class_name", "DDIMScheduler"),
        "text_encoder": text.text_encoder,
        "tokenizer": text.tokenizer,
    }
    for name, part in PARTS.items():
        index[name] = [part.library, classes[name]]
    if text.projection:
        index[_PROJECTION_KEY] = PROJECTION_FOLDER
    index |= dict.fromkeys((*DROPPED, "image_encoder"), _NOTHING)
    return {**index, "requires_safety_checker": False}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises UserError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing; copy or download the model again") from error
    except OSError as error:  # a folder of that name, a loop of links, a closed file
        raise UserError(f"{path} cannot be read ({error.strerror}); check the file") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep to be read; download it again") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object as diffusers does: sorted, two spaces."""
    text = json.dumps(dict(value), indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
