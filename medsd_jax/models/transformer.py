"""The U-Net's transformer: self-attention, cross-attention to the text, gated feed-forward."""

import jax
import jax.numpy as jnp
from flax import nnx

from medsd_jax.models.attention import AttentionFn
from medsd_jax.models.layers import Conv1x1, GroupNorm, LayerNorm

LAYER_NORM_EPS = 1e-5  # torch's default; diffusers' transformer blocks do not set it
GROUP_NORM_EPS = 1e-6  # Transformer2DModel's own, whatever norm_eps the U-Net has


class Attention(nnx.Module):
    """Multi-head attention; `context=None` means self-attention."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        *,
        upcast: bool,
        attend: AttentionFn,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.heads, self.upcast, self.attend = heads, upcast, attend
        self.to_q = nnx.Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(context_dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(context_dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        # torch: to_out.0 is the layer, to_out.1 a dropout without weights.
        self.to_out = nnx.List([nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)])

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """X [B, L, D], context [B, S, Dc] -> [B, L, D]."""
        context = x if context is None else context
        query, key, value = (
            y.reshape(*y.shape[:-1], self.heads, -1)  # [B, L|S, N, K]
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        if self.upcast:
            query, key, value = (y.astype(jnp.float32) for y in (query, key, value))
        out = self.attend(query, key, value).astype(x.dtype)
        return self.to_out[0](out.reshape(x.shape))


class GEGLU(nnx.Module):
    """Linear layer split into value and GELU gate (exact GELU, as torch)."""

    def __init__(self, dim: int, inner: int, *, dtype, rngs: nnx.Rngs):
        self.proj = nnx.Linear(dim, 2 * inner, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, L, D] -> [B, L, inner]."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * nnx.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """GEGLU and a linear layer, four times wider inside."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        # Index 1 is torch's dropout: without weights, but it holds the place in the path.
        self.net = nnx.List(
            [
                GEGLU(dim, 4 * dim, dtype=dtype, rngs=rngs),
                nnx.Dropout(0.0),
                nnx.Linear(4 * dim, dim, dtype=dtype, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, L, D] -> [B, L, D]."""
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
    """Pre-norm self-attention, cross-attention and feed-forward, each with a residual."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        *,
        upcast: bool,
        attend: AttentionFn,
        dtype,
        rngs: nnx.Rngs,
    ):
        norm = {"epsilon": LAYER_NORM_EPS, "dtype": dtype, "rngs": rngs}
        attention = {"upcast": upcast, "attend": attend, "dtype": dtype, "rngs": rngs}
        self.norm1 = LayerNorm(dim, **norm)
        self.attn1 = Attention(dim, dim, heads, **attention)
        self.norm2 = LayerNorm(dim, **norm)
        self.attn2 = Attention(dim, context_dim, heads, **attention)
        self.norm3 = LayerNorm(dim, **norm)
        self.ff = FeedForward(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """X [B, L, D], context [B, S, Dc] -> [B, L, D]."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """One transformer block over the pixels of a feature map."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        *,
        groups: int,
        linear_projection: bool,
        upcast: bool,
        attend: AttentionFn,
        dtype,
        rngs: nnx.Rngs,
    ):
        projection = nnx.Linear if linear_projection else Conv1x1
        self.norm = GroupNorm(
            dim, num_groups=groups, epsilon=GROUP_NORM_EPS, dtype=dtype, rngs=rngs
        )
        self.proj_in = projection(dim, dim, dtype=dtype, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(
                    dim, context_dim, heads, upcast=upcast, attend=attend, dtype=dtype, rngs=rngs
                )
            ]
        )
        self.proj_out = projection(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """X [B, H, W, D], context [B, S, Dc] -> [B, H, W, D]."""
        b, h, w, d = x.shape
        # Channels are last, so a 1x1 convolution and a linear layer commute with this reshape.
        tokens = self.proj_in(self.norm(x)).reshape(b, h * w, d)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.reshape(b, h, w, d)) + x
