"""An image tower from a folder of transformers: its shape, its weights and its input chain.

config.json                the shape
model.safetensors          the weights, whole or sharded
preprocessor_config.json   the input chain
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from medsd_jax.errors import UserError
from medsd_jax.interop.model_index import read_json
from medsd_jax.interop.safetensors_io import read_weights
from medsd_jax.interop.torch_layout import from_torch
from medsd_jax.models.params import abstract, bind
from medsd_jax.vision import clip_vision, dinov2
from medsd_jax.vision.image_processor import read_image_processor
from medsd_jax.vision.preprocessing import Preprocessing

_log = logging.getLogger(__name__)


class _Family(NamedTuple):
    example: str
    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any], str], Any]
    modernize: Callable[[Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], dict[str, int]]]
    module: Callable[..., nnx.Module]


_FAMILIES = {
    "clip": _Family(
        "openai/clip-vit-base-patch32",
        ("clip", "clip_vision_model"),
        clip_vision.read_config,
        clip_vision.modernize,
        clip_vision.CLIPVisionModelWithProjection,
    ),
    "rad-dino": _Family(
        "microsoft/rad-dino",
        ("dinov2",),
        dinov2.read_config,
        dinov2.modernize,
        dinov2.Dinov2Model,
    ),
}


@dataclass(frozen=True)
class ImageTower:
    """A network of images with its weights and its input chain.

    Attributes:
        config: the shape, a `CLIPVisionConfig` or a `Dinov2Config`.
        chain: images of any size to the network's input.
        graphdef: structure.
        params: float32 weights on the host.
    """

    config: Any
    chain: Preprocessing
    graphdef: nnx.GraphDef
    params: Mapping[str, np.ndarray]


def open_tower(kind: str, folder: Path) -> ImageTower:
    """Reads a folder that transformers wrote or that was downloaded from its hub.

    Args:
        kind: "clip": a CLIPModel or a CLIPVisionModelWithProjection; "rad-dino": a Dinov2Model.
        folder: see the module's text.

    Raises:
        UserError: no such folder, another model, a shape or an input chain that is not implemented,
            pickled weights, or weights that do not fit the shape; one line names all that do not.
    """
    family = _FAMILIES[kind]
    if not folder.is_dir():
        raise UserError(
            f"{kind}={folder}: no such folder; give one that holds config.json, model.safetensors "
            f"and preprocessor_config.json, as `hf download {family.example} --local-dir FOLDER` "
            "leaves it"
        )
    where = str(folder / "config.json")
    values = read_json(folder / "config.json")
    if (result := values.get("model_type")) not in family.model_types:
        known = " or ".join(map(repr, family.model_types))
        raise UserError(
            f"{where}: model_type = {result!r}, but {kind}=FOLDER reads {known}, such as "
            f"{family.example}"
        )
    config = family.read_config(values, where)
    chain = read_image_processor(folder)
    graphdef, like = abstract(functools.partial(family.module, config))
    # A size that the network does not take is told now, not at the first image.
    images = jax.ShapeDtypeStruct((1, chain.size, chain.size, 3), np.float32)
    jax.eval_shape(lambda w, x: bind(graphdef, w).pooled_features(x), like, images)
    tensors, left_out = family.modernize(read_weights(folder, "model"))
    if left_out:
        counts = ", ".join(f"{count} {what}" for what, count in left_out.items())
        _log.info("%s: the image tower does not use: %s", folder, counts)
    return ImageTower(config, chain, graphdef, from_torch(tensors, like, str(folder)))
