"""A network that says which findings an image shows; it measures generated images.

It is trained on real images alone (classifier_training.py). Its folder holds classifier.json and
classifier.safetensors, the latter with torchvision's DenseNet names.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from medsd_jax.arrays import from_uint8_rounded_once
from medsd_jax.data.labels import label_name
from medsd_jax.data.transforms import check_resize_mode
from medsd_jax.errors import UserError
from medsd_jax.files import json_object, save_tensors, write_json
from medsd_jax.interop.safetensors_io import read_weights_file
from medsd_jax.interop.torch_layout import from_torch, to_torch
from medsd_jax.models.params import abstract, bind
from medsd_jax.parallel.batching import batch_rows, over_devices
from medsd_jax.parallel.mesh import batch_sharding, make_mesh
from medsd_jax.vision.densenet import DenseNet, DenseNetConfig
from medsd_jax.vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD

CONFIG_FILE, WEIGHTS_FILE = "classifier.json", "classifier.safetensors"
_IMAGES_AT_ONCE = 64  # on each device
_LARGEST_SIZE = 8192


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier of findings; several may be present in one image.

    Attributes:
        network: shape of the DenseNet and range of its input; a class for each label.
        labels: names of the findings, in the order of the classes.
        image_size: pixels, square.
        resize_mode: how images of other sizes became square, see data/transforms.py.
        params: float32 weights, numpy or jax arrays.
        slope, intercept: [labels] float32, calibration on images that trained nothing:
            probability = sigmoid(slope * logit + intercept), after Platt (1999).
    """

    network: DenseNetConfig
    labels: tuple[str, ...]
    image_size: int
    resize_mode: str
    params: Mapping[str, Any]
    slope: np.ndarray
    intercept: np.ndarray

    def column(self, label: str) -> int:
        """Which class a label is, in any spelling.

        Raises:
            UserError: the classifier does not know the label.
        """
        names = [label_name(name) for name in self.labels]
        if label_name(label) not in names:
            raise UserError(f"the classifier knows {', '.join(self.labels)}, not {label!r}")
        return names.index(label_name(label))


def logits(network: DenseNetConfig, params: Mapping[str, Any], images_u8: ArrayLike) -> jax.Array:
    """Images [B, H, W] grey or [B, H, W, 3], uint8 -> class scores [B, labels] float32."""
    graphdef, _ = structure(network)
    return bind(graphdef, params)(network_input(network, to_grey(images_u8)))


def to_grey(images_u8: ArrayLike) -> jax.Array:
    """[B, H, W] or [B, H, W, 3] uint8 -> [B, H, W, 1] float32 in [-1, 1]; colours are averaged."""
    images = from_uint8_rounded_once(images_u8)
    return images[..., None] if images.ndim == 3 else images.mean(axis=-1, keepdims=True)


def network_input(network: DenseNetConfig, grey: jax.Array) -> jax.Array:
    """Grey images [B, H, W, 1] float32 in [-1, 1] -> [B, H, W, C] in the network's own range."""
    match network.input_range:
        case "xrv":
            return 1024.0 * grey
        case "imagenet":
            mean, std = (
                jnp.asarray(x, jnp.float32)[None, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD)
            )
            return ((grey + 1.0) / 2.0 - mean) / std
        case _:
            return grey


def predict_logits(
    classifier: Classifier, images_u8: np.ndarray, mesh: Mesh | None = None
) -> np.ndarray:
    """Scores before calibration, computed in batches over all devices.

    Args:
        classifier: the classifier.
        images_u8: [n, H, W] or [n, H, W, 3] uint8, of the classifier's image_size.
        mesh: all devices by default.

    Returns:
        [n, labels] float32.

    Raises:
        UserError: the images have another size, or scores are not finite.
    """
    pixels = classifier.image_size
    if images_u8.shape[1:3] != (pixels, pixels):
        given = "x".join(map(str, images_u8.shape[1:3]))
        raise UserError(f"images of {given}: this classifier was trained on {pixels}x{pixels}")
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    score = over_devices(_compiled(classifier.network, mesh), classifier.params, mesh)
    n = len(images_u8)
    size = batch_rows(n, _IMAGES_AT_ONCE, mesh)
    result = np.concatenate(
        [score(images_u8[start : start + size], size) for start in range(0, n, size)]
    )
    if bad := int((~np.isfinite(result).all(axis=1)).sum()):  # NaN would read as absent
        raise UserError(
            f"the classifier gives scores that are not finite (NaN or infinite) for {bad} of {n} "
            "images: its training diverged, or its weights are damaged; train it again, or take "
            "another copy"
        )
    return result


def predict(classifier: Classifier, images_u8: np.ndarray, mesh: Mesh | None = None) -> np.ndarray:
    """Calibrated probabilities of every finding; arguments as for `predict_logits`.

    Returns:
        [n, labels] float32 in [0, 1]. Above 0.5 the finding is called present.
    """
    scores = predict_logits(classifier, images_u8, mesh)
    return np.asarray(jax.nn.sigmoid(classifier.slope * scores + classifier.intercept))


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Writes the folder that `load_classifier` reads; weights under torchvision's names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(x) for name, x in to_torch(classifier.params).items()}
    save_tensors(folder / WEIGHTS_FILE, tensors)
    config = {
        "network": dataclasses.asdict(classifier.network),
        "labels": list(classifier.labels),
        "image_size": classifier.image_size,
        "resize_mode": classifier.resize_mode,
        "slope": np.asarray(classifier.slope).tolist(),
        "intercept": np.asarray(classifier.intercept).tolist(),
    }
    write_json(folder / CONFIG_FILE, config, sort_keys=False)


def load_classifier(folder: Path) -> Classifier:
    """Reads what `save_classifier` wrote.

    Raises:
        UserError: the folder holds no classifier, or a damaged one.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {CONFIG_FILE}: give the folder that train-classifier wrote"
        )
    with json_object(path, "train the classifier again, or copy its folder again") as config:
        classifier = _described(config)
    tensors = read_weights_file(folder / WEIGHTS_FILE)
    _, like = structure(classifier.network)
    params = from_torch(tensors, like, str(folder / WEIGHTS_FILE))
    return dataclasses.replace(classifier, params=params)


def _described(config: Mapping[str, Any]) -> Classifier:
    """The classifier of a classifier.json, without its weights."""
    network = dict(config["network"])
    network = DenseNetConfig(**{**network, "block_config": tuple(network["block_config"])})
    labels, pixels = config["labels"], config["image_size"]
    count = network.num_classes
    if not isinstance(labels, list) or not all(isinstance(x, str) and x for x in labels):
        raise UserError(f"labels are {str(labels)[:80]}, not a list of names")
    if len({label_name(x) for x in labels}) != len(labels) or len(labels) != count:
        raise UserError(f"labels must be {count} different names, as the network has classes")
    if type(pixels) is not int or not network.smallest_image <= pixels <= _LARGEST_SIZE:
        raise UserError(
            f"image_size is {str(pixels)[:80]}, not {network.smallest_image} to {_LARGEST_SIZE}"
        )
    check_resize_mode(config["resize_mode"])
    with np.errstate(over="ignore"):  # told below
        slope, intercept = (np.asarray(config[k], np.float32) for k in ("slope", "intercept"))
    for name, x in (("slope", slope), ("intercept", intercept)):
        if x.shape != (count,) or not np.isfinite(x).all():
            raise UserError(f"{name} must be {count} finite numbers, one per label")
    return Classifier(network, tuple(labels), pixels, config["resize_mode"], {}, slope, intercept)


@functools.cache
def structure(
    network: DenseNetConfig,
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Graph definition and weight shapes of the network."""
    return abstract(functools.partial(DenseNet, network))


@functools.lru_cache(maxsize=8)
def _compiled(network: DenseNetConfig, mesh: Mesh):
    return jax.jit(functools.partial(logits, network), out_shardings=batch_sharding(mesh))
