"""Where a classifier's training starts: random weights, or those of another one with a new head.

Published are torchvision's DenseNets (three channels, ImageNet) and torchxrayvision's (one channel,
chest X-rays); which one a file holds, its first convolution says. Their batch norm stays as it is
stored, and everything else is trained: see features/densenet.py. Their class scores are of other
labels, so that the head starts anew.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medsd_jax.classifier.model import load_classifier, structure
from medsd_jax.errors import UserError
from medsd_jax.interop.torch_layout import from_torch
from medsd_jax.vision.densenet import DenseNetConfig, random_params
from medsd_jax.vision.weights import modernize, read_state_dict

_HEAD = "classifier."
_TELLING = ("conv0", "denseblock1.denselayer1.conv1", "denseblock1.denselayer1.conv2")
_RANGE_BY_CHANNELS = {1: "xrv", 3: "imagenet"}
_LAYER = re.compile(r"features\.denseblock(\d+)\.denselayer(\d+)\.conv1\.weight")


@dataclasses.dataclass(frozen=True)
class Start:
    """A network before training.

    Attributes:
        network: its shape, with a class for each label.
        published: weights from a file by name, float32; without the head, or empty.
    """

    network: DenseNetConfig
    published: Mapping[str, np.ndarray]

    def params(self, seed: int) -> dict[str, np.ndarray]:
        """All initial weights; the seed moves those that are not published."""
        drawn = random_params(self.network, np.random.default_rng(seed))
        return drawn | dict(self.published)


def from_scratch(network: DenseNetConfig) -> Start:
    """Everything is drawn at random."""
    return Start(network, {})


def from_published(path: Path, network: DenseNetConfig) -> Start:
    """Starts from a weight file of torchvision or torchxrayvision.

    Args:
        path: .safetensors, .pth or .pt of a state dict.
        network: what the recipe asks for: growth_rate, block_config and num_init_features must be
            the file's; num_classes are the labels. Norm, input and the rest follow the file.

    Raises:
        UserError: the file holds no DenseNet with batch norm, or another one.
    """
    tensors, _ = modernize(read_state_dict(path))
    result = _shape_in(tensors, path)
    _check_shape(path, result, network)
    like = {k: x for k, x in structure(result)[1].items() if not k.startswith(_HEAD)}
    body = {k: x for k, x in tensors.items() if not k.startswith(_HEAD)}
    published = from_torch(
        body, like, str(path), owner="its DenseNet", advice="take the file as it was published"
    )
    return Start(dataclasses.replace(result, num_classes=network.num_classes), published)


def from_classifier(folder: Path, network: DenseNetConfig) -> Start:
    """Starts from a classifier that was trained here, on other images or for other labels.

    Args:
        folder: that train-classifier wrote.
        network: what the recipe asks for; as for `from_published`.

    Raises:
        UserError: the folder holds no classifier, or one of another shape.
    """
    result = load_classifier(folder)
    _check_shape(folder, result.network, network)
    body = {k: x for k, x in result.params.items() if not k.startswith(_HEAD)}
    return Start(dataclasses.replace(result.network, num_classes=network.num_classes), body)


def _check_shape(path: Path, result: DenseNetConfig, expected: DenseNetConfig) -> None:
    shapes = ("num_init_features", "growth_rate", "block_config")
    if any(getattr(result, key) != getattr(expected, key) for key in shapes):
        listed = ", ".join(f"network.{key}={getattr(result, key)}" for key in shapes)
        given = ", ".join(str(getattr(expected, key)) for key in shapes)
        raise UserError(f"{path} holds a DenseNet of another shape than {given}: set {listed}")


def _shape_in(tensors: Mapping[str, np.ndarray], path: Path) -> DenseNetConfig:
    """Which DenseNet these weights, by torch's names of today, belong to."""
    layers: dict[int, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, tensors)):
        block, layer = map(int, match.groups())
        layers[block] = max(layers.get(block, 0), layer)
    first, narrow, growing = (tensors.get(f"features.{name}.weight") for name in _TELLING)
    if first is None or narrow is None or growing is None:
        raise UserError(
            f"{path} holds no DenseNet: give torchvision's densenet121 or torchxrayvision's "
            "densenet121-res224-*"
        )
    if "features.norm0.running_mean" not in tensors:
        raise UserError(
            f"{path}: this DenseNet has group norm, so it is none of torchvision's or "
            "torchxrayvision's; of a classifier that train-classifier wrote give the folder"
        )
    channels, growth = first.shape[1], growing.shape[0]
    if channels not in _RANGE_BY_CHANNELS:
        raise UserError(
            f"{path} takes images of {channels} channels; published DenseNets take 3 "
            "(torchvision) or 1 (torchxrayvision)"
        )
    return DenseNetConfig(
        growth_rate=growth,
        block_config=tuple(layers[block] for block in sorted(layers)),
        num_init_features=first.shape[0],
        bn_size=narrow.shape[0] // growth,
        in_channels=channels,
        norm="batch",
        input_range=_RANGE_BY_CHANNELS[channels],
    )
