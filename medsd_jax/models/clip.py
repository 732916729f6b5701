"""CLIP's text encoder (arXiv 2103.00020), names as in the published checkpoints.

The image tower has the same layers, without the mask: see evaluation/features/clip_vision.py.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from medsd_jax.errors import UserError
from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.config import CLIPTextConfig
from medsd_jax.models.layers import LayerNorm, exact_products


class LayerShape(Protocol):
    """What the layers of either tower read of a config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's x sigmoid(1.702 x), which SD 1.x was trained with; SD 2.x uses the exact GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


class CLIPTextEmbeddings(nnx.Module):
    """Token and position embeddings."""

    def __init__(self, config: CLIPTextConfig, *, dtype, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        d = config.hidden_size
        self.token_embedding = nnx.Embed(
            config.vocab_size, d, embedding_init=init, dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.max_position_embeddings, d, embedding_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(self, prompt_ids: jax.Array) -> jax.Array:
        """prompt_ids [B, S] -> [B, S, D]."""
        positions = self.position_embedding(jnp.arange(prompt_ids.shape[1]))
        return self.token_embedding(prompt_ids) + positions[None]


class CLIPAttention(nnx.Module):
    """Self-attention with biases."""

    def __init__(
        self, config: LayerShape, *, is_causal: bool, attend: AttentionFn, dtype, rngs: nnx.Rngs
    ):
        d = config.hidden_size
        self.heads, self.is_causal, self.attend = config.num_attention_heads, is_causal, attend
        self.q_proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.out_proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, S, D] -> [B, S, D]."""
        query, key, value = (
            layer(x).reshape(*x.shape[:-1], self.heads, -1)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(
            self.attend(query, key, value, is_causal=self.is_causal)
            .astype(x.dtype)
            .reshape(x.shape)
        )


class CLIPMLP(nnx.Module):
    """Two linear layers with GELU between."""

    def __init__(self, config: LayerShape, *, dtype, rngs: nnx.Rngs):
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, S, D] -> [B, S, D]."""
        h = self.fc1(x)
        return self.fc2(quick_gelu(h) if self.quick else nnx.gelu(h, approximate=False))


class CLIPEncoderLayer(nnx.Module):
    """Pre-norm transformer layer."""

    def __init__(
        self, config: LayerShape, *, is_causal: bool, attend: AttentionFn, dtype, rngs: nnx.Rngs
    ):
        d, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = CLIPAttention(
            config, is_causal=is_causal, attend=attend, dtype=dtype, rngs=rngs
        )
        self.layer_norm1 = LayerNorm(d, epsilon=eps, dtype=dtype, rngs=rngs)
        self.mlp = CLIPMLP(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = LayerNorm(d, epsilon=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, S, D] -> [B, S, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nnx.Module):
    """The stack of layers; causal for text, not for images."""

    def __init__(
        self, config: LayerShape, *, is_causal: bool, attend: AttentionFn, dtype, rngs: nnx.Rngs
    ):
        self.layers = nnx.List(
            [
                CLIPEncoderLayer(config, is_causal=is_causal, attend=attend, dtype=dtype, rngs=rngs)
                for _ in range(config.num_hidden_layers)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, S, D] -> [B, S, D]."""
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPTextTransformer(nnx.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: CLIPTextConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        self.embeddings = CLIPTextEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = CLIPEncoder(config, is_causal=True, attend=attend, dtype=dtype, rngs=rngs)
        self.final_layer_norm = LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
        )

    def __call__(self, prompt_ids: jax.Array) -> jax.Array:
        """prompt_ids [B, S] -> [B, S, D]."""
        return self.final_layer_norm(self.encoder(self.embeddings(prompt_ids)))


class CLIPTextModel(nnx.Module):
    """Prompt ids to the context that the U-Net attends to."""

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        dtype=jnp.float32,
        attend: AttentionFn = auto_attention,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = config, dtype
        self.text_model = CLIPTextTransformer(config, attend=attend, dtype=dtype, rngs=rngs)

    @exact_products
    def __call__(self, prompt_ids: jax.Array) -> jax.Array:
        """prompt_ids [B, S] int32 in [0, vocab_size) -> last hidden state [B, S, D] float32.

        Raises:
            UserError: S is above max_position_embeddings.
        """
        self._check(prompt_ids)
        return self.text_model(prompt_ids).astype(jnp.float32)

    @exact_products
    def kth_from_last(self, prompt_ids: jax.Array, k: int) -> jax.Array:
        """The k-th hidden state from the last under the final norm, [B, S, D] float32.

        Args:
            prompt_ids: as of a call, to which k = 1 is equal.
            k: in [1, layers + 1]; the largest leaves the embeddings alone.
        """
        self._check(prompt_ids)
        model = self.text_model
        layers = list(model.encoder.layers)
        x = model.embeddings(prompt_ids)
        for layer in layers[: len(layers) + 1 - k]:
            x = layer(x)
        return model.final_layer_norm(x).astype(jnp.float32)

    def _check(self, prompt_ids: jax.Array) -> None:
        tokens, most = prompt_ids.shape[1], self.config.max_position_embeddings
        if tokens > most:
            raise UserError(f"prompts of {tokens} tokens: this text encoder knows {most} positions")
