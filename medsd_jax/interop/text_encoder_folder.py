"""The text encoder of a diffusers folder: CLIP or BERT, its tokenizer, and a projection.

    text_encoder/               config.json and safetensors of transformers' class
    tokenizer/                  of the same family
    text_encoder_projection/    config.json and model.safetensors, where model_index.json says so

transformers has no class for the projection, so it lies in a folder of its own, which torch reads
into ``torch.nn.Sequential(Linear, GELU, Linear)`` or, where it is linear, ``Sequential(Linear)``.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.files import write_json
from medsd_jax.interop.bert_folder import read_bert_weights
from medsd_jax.interop.legacy import modernize
from medsd_jax.interop.model_index import (
    INDEX,
    PROJECTION_FOLDER,
    TextClasses,
    names_any_tokenizer,
    read_json,
)
from medsd_jax.interop.safetensors_io import read_weights, write_weights
from medsd_jax.interop.tokenization import check_same_ids, load_tokenizer, require_known_ids
from medsd_jax.interop.torch_layout import from_torch
from medsd_jax.interop.weight_names import WEIGHT_STEMS
from medsd_jax.models.bert_config import BertTextConfig, TextProjectionConfig
from medsd_jax.models.config import CLIPTextConfig
from medsd_jax.models.networks import weight_shapes
from medsd_jax.models.params import component, with_prefix
from medsd_jax.models.text_encoder import PROJECTION, LoadedTextEncoder, TextEncoderConfig

_STEM = WEIGHT_STEMS["text_encoder"]
_CLASSES: dict[str, tuple[type[TextEncoderConfig], str]] = {
    "CLIPTextModel": (CLIPTextConfig, "CLIPTokenizer"),
    "BertModel": (BertTextConfig, "BertTokenizer"),
}


def text_classes(config: TextEncoderConfig) -> TextClasses:
    """What model_index.json says of this text encoder."""
    name = next(k for k, (kind, _) in _CLASSES.items() if isinstance(config, kind))
    return TextClasses(name, _CLASSES[name][1], getattr(config, "projection", None) is not None)


def read_text_config(folder: Path, classes: TextClasses) -> TextEncoderConfig:
    """Reads the shape of the text encoder and of its projection.

    Args:
        folder: the diffusers folder.
        classes: what its model_index.json says.

    Raises:
        UserError: a config.json is missing or describes what is not supported.
    """
    path = folder / "text_encoder" / "config.json"
    config = _CLASSES[classes.text_encoder][0].from_dict(read_json(path), str(path))
    if not classes.projection:
        return config
    path = folder / PROJECTION_FOLDER / "config.json"
    values = read_json(path)
    projection = TextProjectionConfig.from_dict(values, str(path))
    if projection.in_features != config.hidden_size:
        raise UserError(
            f"{path}: in_features = {projection.in_features}, but the text encoder is "
            f"{config.hidden_size} wide; take both from the same model"
        )
    return dataclasses.replace(config, projection=projection)


def read_text_params(
    folder: Path, config: TextEncoderConfig, variant: str | None, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Reads the weights, those of a projection under ``projection.``.

    Raises:
        UserError: they are missing, pickled, or do not fit the config.
    """
    where = folder / "text_encoder"
    if not isinstance(config, BertTextConfig):
        tensors = modernize(
            "text_encoder", read_weights(where, _STEM, variant=variant, dtype=dtype)
        )
        return from_torch(tensors, weight_shapes("text_encoder", config), str(where))
    params = read_bert_weights(where, config, variant=variant, dtype=dtype)
    if config.projection is not None:
        where = folder / PROJECTION_FOLDER
        # The projection is written by us alone, and in no variant.
        tensors = read_weights(where, _STEM, dtype=dtype)
        like = component(weight_shapes("text_encoder", config), PROJECTION)
        params |= with_prefix(from_torch(tensors, like, str(where)), PROJECTION)
    return params


def read_text_encoder(
    folder: Path, classes: TextClasses, variant: str | None, dtype: np.dtype
) -> LoadedTextEncoder:
    """Reads config, tokenizer and weights; errors as of the functions above."""
    config = read_text_config(folder, classes)
    tokenizer = read_text_tokenizer(folder, config)
    if names_any_tokenizer(folder / INDEX):
        check_same_ids(tokenizer, folder / "tokenizer")
    return LoadedTextEncoder(config, tokenizer, read_text_params(folder, config, variant, dtype))


def read_text_tokenizer(folder: Path, config: TextEncoderConfig) -> Any:
    """Reads the tokenizer and bounds its length by the encoder's positions.

    Raises:
        UserError: it cannot be read, or has a token that the encoder does not know.
    """
    tokenizer = load_tokenizer(folder / "tokenizer", text_classes(config).tokenizer)
    require_known_ids(tokenizer, config.vocab_size, folder)
    if tokenizer.model_max_length > config.max_position_embeddings:
        tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer


def split_projection(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parts torch's tensors into those of transformers' class and those of the projection."""
    projection = component(tensors, PROJECTION)
    return {k: x for k, x in tensors.items() if not k.startswith(f"{PROJECTION}.")}, projection


def write_projection(
    folder: Path, config: TextProjectionConfig, tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes a projection's folder below a new diffusers folder."""
    (folder / PROJECTION_FOLDER).mkdir()
    write_json(folder / PROJECTION_FOLDER / "config.json", config.to_dict())
    write_weights(folder / PROJECTION_FOLDER, f"{_STEM}.safetensors", tensors)
