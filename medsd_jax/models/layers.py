"""Convolutional pieces shared by the U-Net and the VAE.

Attribute names ARE the diffusers state-dict path.

Weights are float32; `dtype` is the dtype of the computation. Norm statistics stay in float32 (NNX
reduces in float32 whatever the input), and so does everything that enters a loss.

float32 means float32: by JAX's default TPUs would multiply float32 numbers in bfloat16 and NVIDIA
GPUs in TF32, which is what the compute dtype bfloat16 is for.
"""

import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

# torch's variance is two-pass; flax's default one-pass E[x^2] - E[x]^2 loses digits in float32.
GroupNorm = partial(nnx.GroupNorm, use_fast_variance=False)
LayerNorm = partial(nnx.LayerNorm, use_fast_variance=False)
Conv3x3 = partial(nnx.Conv, kernel_size=(3, 3), padding=1)
Conv1x1 = partial(nnx.Conv, kernel_size=(1, 1), padding=0)


def exact_products(method: Callable) -> Callable:
    """A network's method whose products are float32's where the network's `dtype` is float32.

    Its gradient inherits them: a product's transposes have the precision of the product.
    """

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        if jnp.dtype(self.dtype) != jnp.float32:
            return method(self, *args, **kwargs)
        with jax.default_matmul_precision("highest"):
            return method(self, *args, **kwargs)

    return run


def sinusoidal_embedding(
    timesteps: jax.Array, dim: int, *, flip_sin_to_cos: bool, freq_shift: int
) -> jax.Array:
    """Transformer position code of the diffusion time, in float32.

    Args:
        timesteps: [B] any real dtype.
        dim: even width of the code.
        flip_sin_to_cos: cosines first (Stable Diffusion) instead of sines first.
        freq_shift: 0 or 1; frequencies are 10000^(-i / (dim/2 - freq_shift)).

    Returns:
        [B, dim] float32.
    """
    half = dim // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    frequencies = jnp.exp(-jnp.log(10000.0) * exponent)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (
        (jnp.cos(angles), jnp.sin(angles))
        if flip_sin_to_cos
        else (jnp.sin(angles), jnp.cos(angles))
    )
    return jnp.concatenate(parts, axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, dim: int, out: int, *, dtype, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(dim, out, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(out, out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, dim] -> [B, out]."""
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut. No time where temb_dim is None."""

    def __init__(
        self,
        cin: int,
        cout: int,
        temb_dim: int | None,
        *,
        groups: int,
        eps: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(cin, num_groups=groups, epsilon=eps, dtype=dtype, rngs=rngs)
        self.conv1 = Conv3x3(cin, cout, dtype=dtype, rngs=rngs)
        self.time_emb_proj = (
            None if temb_dim is None else nnx.Linear(temb_dim, cout, dtype=dtype, rngs=rngs)
        )
        self.norm2 = GroupNorm(cout, num_groups=groups, epsilon=eps, dtype=dtype, rngs=rngs)
        self.conv2 = Conv3x3(cout, cout, dtype=dtype, rngs=rngs)
        self.conv_shortcut = None if cin == cout else Conv1x1(cin, cout, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        """X [B, H, W, cin], temb [B, temb_dim] -> [B, H, W, cout]."""
        h = self.conv1(nnx.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(nnx.silu(temb))[:, None, None, :]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nnx.Module):
    """Stride-2 convolution. The U-Net pads 1 on both sides; the VAE encoder pads (0, 1)."""

    def __init__(self, channels: int, *, padding: tuple[int, int], dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels,
            channels,
            (3, 3),
            strides=2,
            padding=(padding, padding),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, C] -> [B, H/2, W/2, C]; an odd side is halved up by the U-Net, else down."""
        return self.conv(x)


def upsample_nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Nearest [B, H, W, C] -> [B, height, width, C], torch's index floor(i H / height)."""
    b, h, w, c = x.shape
    if (height, width) == (2 * h, 2 * w):  # a broadcast is cheaper than a gather
        return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(
            b, height, width, c
        )
    rows, columns = jnp.arange(height) * h // height, jnp.arange(width) * w // width
    return x[:, rows][:, :, columns]


class Upsample2D(nnx.Module):
    """Nearest-neighbour upsampling and a convolution."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv3x3(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        """X [B, H, W, C] -> [B, 2H, 2W, C], or the given size (for latents whose side is odd)."""
        height, width = size or (2 * x.shape[1], 2 * x.shape[2])
        return self.conv(upsample_nearest(x, height, width))
