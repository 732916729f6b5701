"""model_index.json: which classes a diffusers folder's parts are, and which of them we run."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medsd_jax.errors import UserError
from medsd_jax.files import read_object

_LOG = logging.getLogger(__name__)


class Part(NamedTuple):
    """A component: the library of its class, and the classes that are supported (none: any)."""

    library: str
    class_names: tuple[str, ...] = ()


PARTS = {
    "unet": Part("diffusers", ("UNet2DConditionModel",)),
    "vae": Part("diffusers", ("AutoencoderKL",)),
    "text_encoder": Part("transformers", ("CLIPTextModel", "BertModel")),
    "tokenizer": Part("transformers", ("CLIPTokenizer", "BertTokenizer")),
    "scheduler": Part("diffusers"),  # which settings are understood is the diffusion's business
}
INDEX = "model_index.json"
"""Without it a folder is no model."""
PROJECTION_FOLDER = "text_encoder_projection"
"""Holds a projection on top of the text encoder, where there is one."""
DROPPED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that no image from a prompt needs: the first blacks out radiographs, the last is an
IP-Adapter's."""
DIFFUSERS_VERSION = "0.42.1"
"""The release whose folder layout is written; diffusers patches configs that name an old one."""

# Private, so that diffusers skips it; its presence tells a lost folder from one that never was.
_PROJECTION_KEY = "_text_encoder_projection"
_PIPELINE = "StableDiffusionPipeline"
_NOTHING = [None, None]
_LONGEST = 100  # characters of a name in a message; a file may hold anything
_OTHER_KINDS = re.compile(r"XL|StableDiffusion3|Flux|AltDiffusion")
"""In the names of pipelines whose parts may be called as ours are, and are not."""
# The projection of this class follows the hidden states, which are all that a U-Net reads.
_SAME_AS = {"CLIPTextModelWithProjection": "CLIPTextModel"}
_ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "AutoTokenizer")
"""Classes that say nothing of the family; the text encoder does."""


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
    encoder, tokenizer = (_plain_class(index[part]) for part in ("text_encoder", "tokenizer"))
    if tokenizer in _ANY_TOKENIZER:
        tokenizer = "CLIPTokenizer" if encoder.startswith("CLIP") else "BertTokenizer"
    return TextClasses(encoder, tokenizer, projection=_PROJECTION_KEY in index)


def names_any_tokenizer(path: Path) -> bool:
    """Whether a model_index.json says no more of the tokenizer than that it is one."""
    return _plain_class(read_json(path)["tokenizer"]) in _ANY_TOKENIZER


def has_projection(path: Path) -> bool:
    """Whether a model_index.json, of whatever kind of model, names `PROJECTION_FOLDER`."""
    return _PROJECTION_KEY in read_json(path)


def check_index(path: Path) -> list[str]:
    """Raises UserError unless model_index.json describes a model that we run.

    The parts decide, not the name of the pipeline that saved them: one that edits images, or one
    of somebody's own, has the very parts of StableDiffusionPipeline.

    Returns:
        The parts in it that are not loaded, out of `DROPPED`.
    """
    index = read_json(path)
    check_kind(path, index)
    pipeline = index["_class_name"][:_LONGEST]
    kind = "" if pipeline == _PIPELINE else f" of a {pipeline}"
    listed = _listed(index)
    for name, part in PARTS.items():
        allowed = (*part.class_names, *(_ANY_TOKENIZER if name == "tokenizer" else ()))
        if part.class_names and _plain_class(listed[name]) not in allowed:
            raise UserError(
                f"{path}: {name}{kind} is a {_class_name(listed[name])}; only "
                f"{' or '.join(part.class_names)} is supported"
            )
    encoder, tokenizer, projection = read_text_classes(path)
    if encoder.startswith("CLIP") != tokenizer.startswith("CLIP"):
        raise UserError(
            f"{path}: tokenizer is a {tokenizer}, which is none of a {encoder}'s; take both from "
            "the same model"
        )
    if projection and encoder != "BertModel":
        raise UserError(f"{path}: {_PROJECTION_KEY} needs a BertModel, not a {encoder}")
    if kind:
        _LOG.info("%s: saved by a %s; its parts are Stable Diffusion's", path, pipeline)
    return [name for name in DROPPED if name in listed]


def check_kind(path: Path, index: Mapping[str, Any]) -> None:
    """Raises UserError unless the parts that an index names are those of Stable Diffusion 1 and 2.

    Args:
        path: of the model_index.json, for the message.
        index: what it holds.
    """
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or _OTHER_KINDS.search(pipeline):
        raise UserError(
            f"{path}: _class_name is {repr(pipeline)[:_LONGEST]}; only {_PIPELINE} and pipelines "
            "of the same parts (Stable Diffusion 1 and 2) are supported"
        )
    pipeline = pipeline[:_LONGEST]
    kind = "" if pipeline == _PIPELINE else f" of a {pipeline}"
    listed = _listed(index)
    foreign = [name for name in listed if name not in PARTS and name not in DROPPED]
    absent = [name for name in PARTS if name not in listed]
    if absent and (kind or foreign):
        others = ", ".join([x for x in listed if x not in PARTS][:5]) or "nothing else"
        raise UserError(
            f"{path} names no {', '.join(absent)}, but {others}: a "
            f"{pipeline} is another kind of model; only Stable Diffusion 1 and 2 are supported"
        )
    if absent:
        raise UserError(f"{path} names no {', '.join(absent)}; download the model again")
    for name in foreign:
        raise UserError(
            f"{path}: the component {name} ({_class_name(listed[name])}){kind} is not supported"
        )


def _listed(index: Mapping[str, Any]) -> dict[str, list]:
    """The parts of an index that are there."""
    return {k: v for k, v in index.items() if isinstance(v, list) and v != _NOTHING}


def _class_name(listed: list) -> Any:
    """The class of a component [library, class]; what is none is cut for a message."""
    name = listed[-1] if listed else None
    return name if name is None else str(name)[:_LONGEST]


def _plain_class(listed: list) -> str:
    """The same without what names the framework or the speed; "" where there is no name."""
    name = _class_name(listed)
    if not isinstance(name, str):
        return ""
    name = name.removeprefix("Flax").removesuffix("Fast")
    return _SAME_AS.get(name, name)


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler_config.json of a diffusers folder, its class by the index where it says none.

    Raises:
        UserError: one of the two files is missing or no JSON object.
    """
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if "_class_name" not in scheduler:
        listed = read_json(folder / INDEX).get("scheduler")
        if isinstance(listed, list) and listed:
            scheduler = {"_class_name": listed[-1], **scheduler}
    # The classes of the former Flax models have torch's keys; torch has no such classes any more.
    name = scheduler.get("_class_name")
    return (
        {**scheduler, "_class_name": name.removeprefix("Flax")}
        if isinstance(name, str)
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
    index |= dict.fromkeys(DROPPED, _NOTHING)
    return {**index, "requires_safety_checker": False}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises UserError if there is none."""
    return read_object(path, "copy or download the model again")
