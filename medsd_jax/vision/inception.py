"""InceptionV3 (arXiv 1512.00567) in evaluation mode, as the FID literature measures with it.

TensorFlow's inception-2015-12-05 graph as pytorch-fid and torch-fidelity rebuilt it
(pt_inception-2015-12-05-6726825d.pth): its average pools leave the padding out of the count, its
last block takes a maximum where the paper takes an average, and it has 1008 classes. Distances from
torchvision's InceptionV3, which does none of this and has other weights, do not compare.

Names are torchvision's. The auxiliary classifier serves training only and is not built.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from medsd_jax.vision.layers import (
    FEATURE_PRECISION,
    FrozenBatchNorm,
    avg_pool,
    conv,
    global_average,
    max_pool,
    require_image,
)

IMAGE_SIZE = 299
FEATURE_SIZE = 2048
NUM_CLASSES = 1008
SMALLEST_IMAGE = 75  # below it the last reduction has no position left
BATCH_NORM_EPSILON = 1e-3

_Map = Float[Array, "B H W C"]
_Pool = Callable[[_Map], _Map]


# Named functions, not partials: they are part of a graph definition, which must compare equal.
def _avg_pool(x: _Map) -> _Map:
    return avg_pool(x, 3, 1, 1, count_include_pad=False)


def _max_pool_same_size(x: _Map) -> _Map:
    return max_pool(x, 3, 1, 1)


class BasicConv2d(nnx.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        dtype,
        precision: PrecisionLike,
        rngs,
    ):
        self.conv = conv(
            cin,
            cout,
            kernel,
            stride=stride,
            padding=padding,
            dtype=dtype,
            precision=precision,
            rngs=rngs,
        )
        self.bn = FrozenBatchNorm(cout, epsilon=BATCH_NORM_EPSILON, dtype=dtype)

    def __call__(self, x: _Map) -> Float[Array, "B h w D"]:
        """X [B, H, W, cin] -> [B, h, w, cout]."""
        return nnx.relu(self.bn(self.conv(x)))


_Unit = Callable[..., BasicConv2d]
"""`BasicConv2d` with its dtype, precision and rngs given."""


def _concatenate(*branches: Float[Array, "B H W _"]) -> Float[Array, "B H W _"]:
    return jnp.concatenate(branches, axis=-1)


class InceptionA(nnx.Module):
    """1x1, 5x5, two 3x3 and a pool side by side; keeps the size."""

    def __init__(self, cin: int, pool_features: int, *, unit: _Unit):
        self.pool = _avg_pool
        self.branch1x1 = unit(cin, 64, 1)
        self.branch5x5_1 = unit(cin, 48, 1)
        self.branch5x5_2 = unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = unit(cin, 64, 1)
        self.branch3x3dbl_2 = unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = unit(96, 96, 3, padding=1)
        self.branch_pool = unit(cin, pool_features, 1)

    def __call__(self, x: _Map) -> Float[Array, "B H W D"]:
        """X [B, H, W, cin] -> [B, H, W, 224 + pool_features]."""
        return _concatenate(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(self.pool(x)),
        )


class InceptionB(nnx.Module):
    """Halves the size: 3x3, two 3x3 and a maximum."""

    def __init__(self, cin: int, *, unit: _Unit):
        self.branch3x3 = unit(cin, 384, 3, stride=2)
        self.branch3x3dbl_1 = unit(cin, 64, 1)
        self.branch3x3dbl_2 = unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = unit(96, 96, 3, stride=2)

    def __call__(self, x: _Map) -> Float[Array, "B h w D"]:
        """X [B, H, W, cin] -> [B, (H-1)/2, (W-1)/2, 480 + cin]."""
        return _concatenate(
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            max_pool(x, 3, 2),
        )


class InceptionC(nnx.Module):
    """1x1, a 7x7 and two 7x7 taken apart into rows and columns, and a pool; keeps the size."""

    def __init__(self, cin: int, channels_7x7: int, *, unit: _Unit):
        self.pool = _avg_pool
        c7 = channels_7x7
        row, column = (
            functools.partial(unit, kernel=(1, 7), padding=(0, 3)),
            functools.partial(unit, kernel=(7, 1), padding=(3, 0)),
        )
        self.branch1x1 = unit(cin, 192, 1)
        self.branch7x7_1 = unit(cin, c7, 1)
        self.branch7x7_2 = row(c7, c7)
        self.branch7x7_3 = column(c7, 192)
        self.branch7x7dbl_1 = unit(cin, c7, 1)
        self.branch7x7dbl_2 = column(c7, c7)
        self.branch7x7dbl_3 = row(c7, c7)
        self.branch7x7dbl_4 = column(c7, c7)
        self.branch7x7dbl_5 = row(c7, 192)
        self.branch_pool = unit(cin, 192, 1)

    def __call__(self, x: _Map) -> Float[Array, "B H W D"]:
        """X [B, H, W, cin] -> [B, H, W, 768]."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return _concatenate(
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(self.pool(x)),
        )


class InceptionD(nnx.Module):
    """Halves the size: 3x3, a 7x7 taken apart, and a maximum."""

    def __init__(self, cin: int, *, unit: _Unit):
        self.branch3x3_1 = unit(cin, 192, 1)
        self.branch3x3_2 = unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = unit(cin, 192, 1)
        self.branch7x7x3_2 = unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = unit(192, 192, 3, stride=2)

    def __call__(self, x: _Map) -> Float[Array, "B h w D"]:
        """X [B, H, W, cin] -> [B, (H-1)/2, (W-1)/2, 512 + cin]."""
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return _concatenate(
            self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), max_pool(x, 3, 2)
        )


class InceptionE(nnx.Module):
    """1x1, 3x3 and two 3x3 whose last step goes along rows and columns, and a pool."""

    def __init__(self, cin: int, *, unit: _Unit, pool: _Pool):
        self.pool = pool
        row, column = (
            functools.partial(unit, kernel=(1, 3), padding=(0, 1)),
            functools.partial(unit, kernel=(3, 1), padding=(1, 0)),
        )
        self.branch1x1 = unit(cin, 320, 1)
        self.branch3x3_1 = unit(cin, 384, 1)
        self.branch3x3_2a = row(384, 384)
        self.branch3x3_2b = column(384, 384)
        self.branch3x3dbl_1 = unit(cin, 448, 1)
        self.branch3x3dbl_2 = unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = row(384, 384)
        self.branch3x3dbl_3b = column(384, 384)
        self.branch_pool = unit(cin, 192, 1)

    def __call__(self, x: _Map) -> Float[Array, "B H W D"]:
        """X [B, H, W, cin] -> [B, H, W, 2048]."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _concatenate(
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )


class InceptionV3(nnx.Module):
    """Images to 2048 features and to class scores."""

    def __init__(
        self,
        *,
        dtype=jnp.float32,
        precision: PrecisionLike = FEATURE_PRECISION,
        rngs,
    ):
        """Builds the layers.

        Args:
            dtype: of the computation between the layers.
            precision: of products.
            rngs: keys of the initial weights.
        """
        unit = functools.partial(BasicConv2d, dtype=dtype, precision=precision, rngs=rngs)
        block_a = functools.partial(InceptionA, unit=unit)
        block_c = functools.partial(InceptionC, unit=unit)
        self.Conv2d_1a_3x3 = unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = unit(32, 32, 3)
        self.Conv2d_2b_3x3 = unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = unit(64, 80, 1)
        self.Conv2d_4a_3x3 = unit(80, 192, 3)
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = InceptionB(288, unit=unit)
        self.Mixed_6b = block_c(768, 128)
        self.Mixed_6c = block_c(768, 160)
        self.Mixed_6d = block_c(768, 160)
        self.Mixed_6e = block_c(768, 192)
        self.Mixed_7a = InceptionD(768, unit=unit)
        self.Mixed_7b = InceptionE(1280, unit=unit, pool=_avg_pool)
        # The graph of 2015 takes the maximum here and the average in the block before.
        self.Mixed_7c = InceptionE(2048, unit=unit, pool=_max_pool_same_size)
        self.fc = nnx.Linear(FEATURE_SIZE, NUM_CLASSES, dtype=dtype, precision=precision, rngs=rngs)

    def pooled_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B 2048"]:
        """The 2048 features of FID and KID.

        Args:
            images: [B, H, W, 3] in [-1, 1], 299x299 for the published weights; at least 75x75.

        Returns:
            [B, 2048] float32, the last feature map averaged over its positions; not negative.
        """
        return global_average(self.feature_maps(images)[-1])

    def feature_maps(self, images: Float[Array, "B H W C"]) -> list[Array]:
        """Images as for `pooled_features` -> the maps before each halving, and the last ones."""
        require_image(images, 3, SMALLEST_IMAGE)
        first = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        second = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool(first, 3, 2)))
        third = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool(second, 3, 2))))
        fourth = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(third)))
        fourth = self.Mixed_6e(self.Mixed_6d(fourth))
        return [first, second, third, fourth, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(fourth)))]

    def classify(self, features: Float[Array, "B 2048"]) -> Float[Array, "B K"]:
        """Pooled features [B, 2048] -> class scores [B, 1008] float32, before softmax."""
        return self.fc(features).astype(jnp.float32)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Images as for `pooled_features` -> class scores [B, 1008] float32."""
        return self.classify(self.pooled_features(images))
