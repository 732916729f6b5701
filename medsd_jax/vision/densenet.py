"""DenseNet (arXiv 1608.06993) with torchvision's names.

Every layer reads all maps before it in its block and adds `growth_rate` channels of its own:

    x_l = conv3x3(relu(norm(conv1x1(relu(norm([x_0, ..., x_(l-1)]))))))

Batch norm is here for published weights only, with their stored statistics. Networks that start
from random weights take group norm (arXiv 1803.08494): it needs no running statistics, so that a
train step stays a pure function of weights and batch, an image's score never depends on the images
beside it, and training and evaluation are the same function at any batch size and over any device
count. Published weights keep all of this when they are trained further, because their statistics
stay as they are stored: batch norm is then a scale and an offset per channel, and both are trained.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from medsd_jax.errors import UserError
from medsd_jax.models.layers import GroupNorm
from medsd_jax.models.params import abstract
from medsd_jax.vision.layers import (
    FEATURE_PRECISION,
    FrozenBatchNorm,
    avg_pool,
    conv,
    global_average,
    max_pool,
    require_image,
)

NORM_EPSILON = 1e-5

INPUT_RANGES = ("unit", "imagenet", "xrv")
"""What black and white are to a network: -1 and 1; torchvision's, a mean and a standard deviation
for each of three channels; torchxrayvision's, -1024 and 1024."""

_Map = Float[Array, "B H W C"]
_Norm = Callable[[int], nnx.Module]
_Conv = Callable[..., nnx.Conv]


@dataclass(frozen=True)
class DenseNetConfig:
    """Shape of a DenseNet; the defaults are DenseNet-121 with group norm.

    Attributes:
        growth_rate: channels that each layer adds.
        block_config: layers of each dense block.
        num_init_features: channels after the first convolution.
        bn_size: the 1x1 convolution of a layer has bn_size * growth_rate channels.
        num_classes: class scores.
        in_channels: of the images.
        norm: "group", for training from scratch, or "batch", frozen, for published weights.
        input_range: of the images, one of `INPUT_RANGES`.
    """

    growth_rate: int = 32
    block_config: tuple[int, ...] = (6, 12, 24, 16)
    num_init_features: int = 64
    bn_size: int = 4
    num_classes: int = 1000
    in_channels: int = 3
    norm: str = "group"
    input_range: str = "unit"

    def __post_init__(self):
        if self.norm not in ("batch", "group"):
            raise UserError(f"DenseNet's norm is 'batch' or 'group', not {self.norm!r}")
        if self.input_range not in INPUT_RANGES:
            listed = ", ".join(INPUT_RANGES)
            raise UserError(f"DenseNet's input_range is one of {listed}, not {self.input_range!r}")
        counts = (
            *self.block_config,
            self.growth_rate,
            self.num_init_features,
            self.bn_size,
            self.num_classes,
            self.in_channels,
        )
        if not self.block_config or any(type(x) is not int or x < 1 for x in counts):
            raise UserError(f"every number of a DenseNet must be whole and at least 1: {self}")
        # Twice the largest that was published, so that a slip asks for no memory.
        large = max(*self.block_config, self.growth_rate, self.bn_size) > 128
        if large or self.num_init_features > 4096 or len(self.block_config) > 8:
            raise UserError(
                "a DenseNet has at most 8 blocks of at most 128 layers, a growth_rate of at most "
                f"128 and num_init_features of at most 4096: {str(self)[:200]}"
            )

    @property
    def feature_size(self) -> int:
        """Length of the pooled feature vector: 1024 for DenseNet-121."""
        channels = self.num_init_features
        for i, layers in enumerate(self.block_config):
            channels = (channels if i == 0 else channels // 2) + layers * self.growth_rate
        return channels

    @property
    def smallest_image(self) -> int:
        """Smallest side that leaves one position: the first two halvings round up, others down."""
        size = 2 ** (len(self.block_config) - 1)
        return 4 * size - 3


XRV_DENSENET121 = DenseNetConfig(in_channels=1, num_classes=18, norm="batch", input_range="xrv")
"""torchxrayvision.models.DenseNet, weights densenet121-res224-*: grey images in [-1024, 1024]."""


def num_groups(channels: int) -> int:
    """Groups of a group norm: at most 32, of at least 4 channels each where that divides.

    A group of one channel at one position would be its own mean and normalise to nothing.
    """
    return next(
        g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels >= 4 * g or g == 1)
    )


class DenseLayer(nnx.Module):
    """Adds `growth_rate` channels."""

    def __init__(self, cin: int, config: DenseNetConfig, *, norm: _Norm, conv: _Conv):
        width = config.bn_size * config.growth_rate
        self.norm1 = norm(cin)
        self.conv1 = conv(cin, width, 1)
        self.norm2 = norm(width)
        self.conv2 = conv(width, config.growth_rate, 3, padding=1)

    def __call__(self, x: _Map) -> Float[Array, "B H W D"]:
        """X [B, H, W, cin] -> the new channels [B, H, W, growth_rate]."""
        x = self.conv1(nnx.relu(self.norm1(x)))
        return self.conv2(nnx.relu(self.norm2(x)))


class DenseBlock(nnx.Module):
    """Layers denselayer1, denselayer2, ... of which each reads all before it."""

    def __init__(self, cin: int, layers: int, config: DenseNetConfig, *, norm: _Norm, conv: _Conv):
        self.layer_names = tuple(f"denselayer{i + 1}" for i in range(layers))
        for i, name in enumerate(self.layer_names):
            layer = DenseLayer(cin + i * config.growth_rate, config, norm=norm, conv=conv)
            setattr(self, name, layer)

    def __call__(self, x: _Map) -> Float[Array, "B H W D"]:
        """X [B, H, W, cin] -> [B, H, W, cin + layers * growth_rate]."""
        for name in self.layer_names:
            x = jnp.concatenate([x, getattr(self, name)(x)], axis=-1)
        return x


class Transition(nnx.Module):
    """Fewer channels, half the size."""

    def __init__(self, cin: int, cout: int, *, norm: _Norm, conv: _Conv):
        self.norm = norm(cin)
        self.conv = conv(cin, cout, 1)

    def __call__(self, x: _Map) -> Float[Array, "B h w D"]:
        """X [B, H, W, cin] -> [B, H//2, W//2, cout]."""
        return avg_pool(self.conv(nnx.relu(self.norm(x))), 2, 2)


class DenseFeatures(nnx.Module):
    """Everything before the classifier: conv0, norm0, dense blocks and transitions, norm5."""

    def __init__(self, config: DenseNetConfig, *, norm: _Norm, conv: _Conv):
        channels = config.num_init_features
        self.conv0 = conv(config.in_channels, channels, 7, stride=2, padding=3)
        self.norm0 = norm(channels)
        names = []
        for i, layers in enumerate(config.block_config):
            if i > 0:
                names.append(f"transition{i}")
                setattr(self, names[-1], Transition(channels, channels // 2, norm=norm, conv=conv))
                channels //= 2
            names.append(f"denseblock{i + 1}")
            setattr(self, names[-1], DenseBlock(channels, layers, config, norm=norm, conv=conv))
            channels += layers * config.growth_rate
        self.stage_names = tuple(names)
        self.norm5 = norm(channels)

    def stages(self, x: _Map) -> list[Array]:
        """X [B, H, W, in_channels] -> maps after the first convolution and after each dense block.

        The last one is normalised by norm5, before its ReLU.
        """
        maps = [nnx.relu(self.norm0(self.conv0(x)))]
        x = max_pool(maps[0], 3, 2, 1)
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name.startswith("denseblock"):
                maps.append(x)
        return [*maps[:-1], self.norm5(x)]

    def __call__(self, x: _Map) -> Float[Array, "B h w D"]:
        """X [B, H, W, in_channels] -> [B, h, w, feature_size], before the last ReLU."""
        return self.stages(x)[-1]


class DenseNet(nnx.Module):
    """Images to features and to class scores."""

    def __init__(
        self,
        config: DenseNetConfig,
        *,
        dtype=jnp.float32,
        precision: PrecisionLike = FEATURE_PRECISION,
        rngs,
    ):
        """Builds the layers.

        Args:
            config: shape.
            dtype: of the computation between the layers; group statistics stay in float32.
            precision: of products; None is the device's own, faster one for training.
            rngs: keys of the initial weights; `random_params` draws better ones.
        """
        self.config = config
        if config.norm == "batch":
            norm = functools.partial(FrozenBatchNorm, epsilon=NORM_EPSILON, dtype=dtype)
        else:
            norm = functools.partial(_group_norm, dtype=dtype, rngs=rngs)
        without_bias = functools.partial(conv, dtype=dtype, precision=precision, rngs=rngs)
        self.features = DenseFeatures(config, norm=norm, conv=without_bias)
        self.classifier = nnx.Linear(
            config.feature_size, config.num_classes, dtype=dtype, precision=precision, rngs=rngs
        )

    def pooled_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """What the classifier sees; torchxrayvision calls it features2.

        Args:
            images: [B, H, W, in_channels], in the range that the weights were trained on: see
                `medsd_jax.vision.preprocessing`.

        Returns:
            [B, feature_size] float32 (1024 for DenseNet-121), not negative.
        """
        require_image(images, self.config.in_channels, self.config.smallest_image)
        return global_average(nnx.relu(self.features(images)))

    def feature_maps(self, images: Float[Array, "B H W C"]) -> list[Array]:
        """Images as for `pooled_features` -> the maps of every stage, which a loss compares.

        Half the side after the first convolution, a quarter after the first dense block, half as
        much after each further one.
        """
        require_image(images, self.config.in_channels, self.config.smallest_image)
        *maps, last = self.features.stages(images)
        return [*maps, nnx.relu(last)]

    def classify(self, features: Float[Array, "B D"]) -> Float[Array, "B K"]:
        """Pooled features [B, feature_size] -> class scores [B, num_classes] float32."""
        return self.classifier(features).astype(jnp.float32)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Images as for `pooled_features` -> class scores [B, num_classes] float32, logits."""
        return self.classify(self.pooled_features(images))


def random_params(config: DenseNetConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Initial float32 weights on the host, as torchvision starts a DenseNet.

    Convolutions are normal with variance 2 / fan-in (He, for ReLU), the classifier's kernel
    uniform with variance 1 / (3 fan-in), norms one, biases and means zero.
    """
    _, like = abstract(functools.partial(DenseNet, config))

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        fan_in = int(np.prod(shape[:-1]))
        if name == "classifier.kernel":
            bound = fan_in**-0.5
            return rng.uniform(-bound, bound, shape).astype(np.float32)
        if name.endswith(".kernel"):
            return rng.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
        is_one = name.endswith((".scale", ".var"))
        return np.full(shape, 1 if is_one else 0, np.float32)

    return {name: draw(name, x.shape) for name, x in like.items()}


def _group_norm(channels: int, *, dtype, rngs) -> nnx.GroupNorm:
    groups = num_groups(channels)
    return GroupNorm(channels, num_groups=groups, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
