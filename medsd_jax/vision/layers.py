"""What the feature networks share: frozen batch norm, convolutions without bias, torch's pooling.

Everything is channels last. Attribute names ARE the torch state-dict path. `rngs` has no type here:
it is nnx.Rngs, or what `medsd_jax.models.params.abstract` gives in its place.

Convolutions and matrix products run at the highest precision unless told otherwise: left alone, a
TPU multiplies float32 in bfloat16 passes and a GPU in TF32, and a distance between features would
depend on the machine.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import Precision, PrecisionLike
from jaxtyping import Array, Float

from medsd_jax.errors import UserError

FEATURE_PRECISION = Precision.HIGHEST
"""Precision of products where features are measured; training may take a faster one."""


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation by stored statistics, torch's evaluation mode.

    y = scale (x - mean) / sqrt(var + epsilon) + bias, every term a value per channel.

    The statistics are parameters like the others, so that they travel with the weights, but no
    gradient reaches them. An optimizer that decays weights must still leave them out: see
    `is_statistic`.
    """

    def __init__(self, channels: int, *, epsilon: float, dtype=jnp.float32):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.var = nnx.Param(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """X [B, H, W, C] -> the same shape."""
        mean = jax.lax.stop_gradient(self.mean[...])
        var = jax.lax.stop_gradient(self.var[...])
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        offset = self.bias[...] - mean * factor
        factor, offset = (v.astype(self.dtype)[None, None, None] for v in (factor, offset))
        return x.astype(self.dtype) * factor + offset


def is_statistic(name: str) -> bool:
    """Whether the parameter of this name is a stored statistic of a `FrozenBatchNorm`."""
    return name.endswith((".mean", ".var"))


def conv(
    cin: int,
    cout: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dtype=jnp.float32,
    precision: PrecisionLike = FEATURE_PRECISION,
    rngs,
) -> nnx.Conv:
    """Convolution without bias; a single number means the same for height and width."""
    height, width = _pair(padding)
    return nnx.Conv(
        cin,
        cout,
        _pair(kernel),
        strides=stride,
        padding=((height, height), (width, width)),
        use_bias=False,
        dtype=dtype,
        precision=precision,
        rngs=rngs,
    )


def max_pool(
    x: Float[Array, "B H W C"], window: int, stride: int, padding: int = 0
) -> Float[Array, "B h w C"]:
    """Maximum as torch's max_pool2d: padding never wins, an incomplete window is left out."""
    return nnx.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)


def avg_pool(
    x: Float[Array, "B H W C"],
    window: int,
    stride: int,
    padding: int = 0,
    *,
    count_include_pad: bool = True,
) -> Float[Array, "B h w C"]:
    """Average as torch's avg_pool2d.

    Args:
        x: feature map.
        window: side of the square window.
        stride: of the window.
        padding: zeros on each side.
        count_include_pad: divide by the window's area (torch's default) instead of by the number
            of the map's own values in it (TensorFlow's way).
    """
    return nnx.avg_pool(
        x,
        (window, window),
        (stride, stride),
        ((padding, padding),) * 2,
        count_include_pad=count_include_pad,
    )


def global_average(x: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    """Mean over all positions, in float32: torch's adaptive_avg_pool2d to 1x1, flattened."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def require_image(images: Float[Array, "B H W C"], channels: int, smallest: int) -> None:
    """Refuses images of another number of channels or smaller than the network can reduce."""
    _, height, width, got = images.shape
    if got != channels:
        raise UserError(f"images have {got} channels, but this network takes {channels}")
    if min(height, width) < smallest:
        raise UserError(
            f"images of {height}x{width} are too small for this network: "
            f"both sides must be at least {smallest}"
        )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
