"""A feature network as a differentiable function of images: what a perceptual loss compares.

    classifier=FOLDER   the classifier that train-classifier wrote
    xrv=FILE            torchxrayvision's DenseNet-121, fed as its own README says
    inception=FILE      InceptionV3 of the FID literature, fed as clean-fid does

Elsewhere images are prepared on the host, by Pillow (preprocessing.py). Here it is done in JAX,
so that the gradient passes: the same filters, and nothing is rounded to 8 bits on the way.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medsd_jax.arrays import Params
from medsd_jax.classifier.model import load_classifier, network_input, structure
from medsd_jax.evaluation.features.specs import kind_and_path
from medsd_jax.models.params import abstract, bind
from medsd_jax.vision.densenet import XRV_DENSENET121, DenseNet
from medsd_jax.vision.inception import InceptionV3
from medsd_jax.vision.weights import load_weights

KINDS = ("classifier", "xrv", "inception")

_Images = Float[Array, "B H W C"]
_Prepared = Float[Array, "B h w D"]


@dataclass(frozen=True)
class FeatureMaps:
    """A frozen network.

    Attributes:
        maps: ``(params, images) -> maps``: [B, H, W, 3] float32 in [-1, 1], square, of any size ->
            a list of [B, h, w, D] float32, from the first layers to the last; traced.
        params: weights on the host.
    """

    maps: Callable[[Params, jax.Array], list[jax.Array]]
    params: Mapping[str, Any]


def open_feature_maps(spec: str) -> FeatureMaps:
    """Reads ``kind=path``.

    Raises:
        UserError: another kind, or the weights cannot be read.
    """
    kind, where = kind_and_path(
        spec, KINDS, f"perceptual features {spec!r} are not known: write one of"
    )
    path = Path(where).expanduser()
    if kind == "classifier":
        classifier = load_classifier(path)
        graphdef, _ = structure(classifier.network)
        params, size = classifier.params, classifier.image_size

        def prepare(images: _Images) -> _Prepared:
            return network_input(classifier.network, resize(_grey(images), size, "bilinear"))

    else:
        make, prepare = {
            "xrv": (functools.partial(DenseNet, XRV_DENSENET121), _xrv),
            "inception": (InceptionV3, _clean_fid),
        }[kind]
        graphdef, like = abstract(make)
        params = load_weights(path, like, kind)
    return FeatureMaps(
        lambda params, images: bind(graphdef, params).feature_maps(prepare(images)), params
    )


def resize(images: _Images, size: int, method: str) -> _Prepared:
    """Antialiased resize of square images, as Pillow's in float32; "bilinear" or "cubic"."""
    b, height, _, channels = images.shape
    if height == size:
        return images
    return jax.image.resize(images, (b, size, size, channels), method, antialias=True)


def _grey(images: _Images) -> _Prepared:
    return jnp.mean(images, axis=-1, keepdims=True)


def _xrv(images: _Images) -> _Prepared:
    """As torchxrayvision's README feeds its DenseNets."""
    return resize(1024.0 * _grey(images), 224, "bilinear")


def _clean_fid(images: _Images) -> _Prepared:
    """`preprocessing.CLEAN_FID` in JAX."""
    pixels = resize(127.5 * (images + 1.0), 299, "cubic")
    return (jnp.clip(pixels, 0.0, 255.0) - 128.0) / 128.0
