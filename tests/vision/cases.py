"""What ours and the references are given: shapes, weights, images and images, all from NumPy."""

import functools
import json
import math
from pathlib import Path

import numpy as np

from medsd_jax.vision.densenet import XRV_DENSENET121, DenseNet, DenseNetConfig
from medsd_jax.vision.inception import InceptionV3
from medsd_jax.vision.preprocessing import CLEAN_FID, XRV_ROENTGEN

# torchvision.models.densenet121, with whose weights a classifier may start.
DENSENET121 = DenseNetConfig(norm="batch", input_range="imagenet")
GOLDEN = Path(__file__).parent / "golden"
TINY = {
    "growth_rate": 8,
    "block_config": (2, 3),
    "num_init_features": 16,
    "bn_size": 2,
    "num_classes": 5,
    "in_channels": 1,
}
TINY_GROUPS = {16: 4, 24: 4, 32: 8, 40: 8}
"""Channels -> groups of every norm in the tiny network, as torch's GroupNorm is given them."""

# Case -> (our module, shape of the images). Odd sides: pools then leave a row or column out.
# InceptionV3 ends at 2x3 positions: at a single one its last maximum equals an average.
CASES = {
    "inception_fid": (InceptionV3, (2, 107, 139, 3)),
    "densenet121": (functools.partial(DenseNet, DENSENET121), (2, 64, 64, 3)),
    "xrv_densenet121": (functools.partial(DenseNet, XRV_DENSENET121), (2, 64, 64, 1)),
    "xrv_tiny": (
        functools.partial(DenseNet, DenseNetConfig(**TINY, norm="batch")),
        (2, 33, 47, 1),
    ),
    "groupnorm_tiny": (
        functools.partial(DenseNet, DenseNetConfig(**TINY, norm="group")),
        (2, 33, 47, 1),
    ),
}
CHAINS = {chain.name: chain for chain in (CLEAN_FID, XRV_ROENTGEN)}
GRADIENT_CASE = "groupnorm_tiny"
IMAGES = ("wide_rgb", "tall_grey", "small_grey", "native_rgb")
EVERY = 19
"""The golden files keep each EVERY-th row and column of a preprocessed image."""


def images(case: str) -> np.ndarray:
    """[B, H, W, C] float32 in [-1, 1]; torchxrayvision's networks see 1024 times that."""
    shape = CASES[case][1]
    x = np.random.default_rng(len(case)).uniform(-1, 1, shape).astype(np.float32)
    return x * 1024 if case.startswith("xrv") else x


def draw_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights and running statistics that keep activations near one, by torch's names.

    Statistics, scales and biases are far from their initial 0 and 1, where a mix-up would not show.
    """
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) > 1:
            gain = 2 if len(shape) == 4 else 1
            return rng.standard_normal(shape, np.float32) * np.float32(
                math.sqrt(gain / math.prod(shape[1:]))
            )
        if name.endswith((".weight", ".running_var")):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return 0.2 * rng.standard_normal(shape, np.float32)

    return {name: draw(name, tuple(shape)) for name, shape in sorted(shapes.items())}


def weighting(logits: np.ndarray) -> np.ndarray:
    """Factors of the sum whose gradient is compared."""
    return np.random.default_rng(7).standard_normal(logits.shape).astype(np.float32)


def image(name: str) -> np.ndarray:
    """A uint8 image with smooth parts and hard edges: bicubic overshoots at them."""
    height, width, channels = {
        "wide_rgb": (311, 407, 3),
        "tall_grey": (391, 300, 1),
        "small_grey": (64, 64, 1),
        "native_rgb": (299, 299, 3),
    }[name]
    rng = np.random.default_rng(len(name))
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 127 * np.sin(x / (9 + 4 * c) + y / (13 + c)) for c in range(channels)]
    out = np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, channels))
    out[height // 4 : height // 2, width // 3 : width // 2] = 255
    out[height // 2 : 2 * height // 3, width // 3 : width // 2] = 0
    out = out.clip(0, 255).astype(np.uint8)
    return out[:, :, 0] if channels == 1 else out


def golden() -> dict[str, np.ndarray]:
    """The references' outputs: "CASE/features", "CASE/logits", "CHAIN/IMAGE", ..."""
    with np.load(GOLDEN / "outputs.npz") as file:
        return dict(file)


def golden_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Case -> torch name -> shape, of the references' whole state dicts."""
    listed = json.loads((GOLDEN / "shapes.json").read_text())
    return {
        case: {name: tuple(shape) for name, shape in shapes.items()}
        for case, shapes in listed["shapes"].items()
    }


def used_shapes(case: str) -> dict[str, tuple[int, ...]]:
    """As `golden_shapes`, without what evaluation never reads."""
    return {
        name: shape
        for name, shape in golden_shapes()[case].items()
        if "AuxLogits" not in name and "num_batches_tracked" not in name
    }
