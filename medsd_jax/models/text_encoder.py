"""The text encoder of a bundle: CLIP, or BERT with or without a projection, behind one call.

``encode(prompt_ids [B, S]) -> context [B, S, D] float32``, D the width that the U-Net attends to.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.bert import BertModel
from medsd_jax.models.bert_config import BertTextConfig, TextProjectionConfig
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.config import CLIPTextConfig
from medsd_jax.models.layers import exact_products

TextEncoderConfig = CLIPTextConfig | BertTextConfig

PROJECTION = "projection"
"""First part of the names of a projection's weights, below the text encoder's own prefix."""


class LoadedTextEncoder(NamedTuple):
    """A text encoder on its own.

    Attributes:
        config: its shape.
        tokenizer: of its vocabulary; `model_max_length` is S.
        params: weights by their names in the module; numpy arrays.
    """

    config: TextEncoderConfig
    tokenizer: Any
    params: dict[str, np.ndarray]


class BertTextEncoder(BertModel):
    """A BERT whose last hidden state, or a learnt projection of it, is the context."""

    def __init__(
        self,
        config: BertTextConfig,
        *,
        dtype=jnp.float32,
        attend: AttentionFn = auto_attention,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, dtype=dtype, attend=attend, rngs=rngs)
        if config.projection is not None:
            self.projection = _projection(config.projection, dtype=dtype, rngs=rngs)

    @exact_products
    def __call__(self, prompt_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """The context [B, S, D] float32; arguments and errors as of `BertModel`."""
        x = super().__call__(prompt_ids, attention_mask)
        if hasattr(self, PROJECTION):
            for layer in self.projection:
                x = layer(x)
        return x.astype(jnp.float32)


class _GELU(nnx.Module):
    """Exact GELU, a layer of its own as in torch.nn.Sequential, whose numbers the names carry."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.gelu(x, approximate=False)


def _projection(config: TextProjectionConfig, *, dtype, rngs: nnx.Rngs) -> nnx.List:
    linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
    if config.hidden_features is None:
        return nnx.List([linear(config.in_features, config.out_features)])
    hidden = config.hidden_features
    return nnx.List(
        [linear(config.in_features, hidden), _GELU(), linear(hidden, config.out_features)]
    )


_MODULES: dict[type, Callable[..., nnx.Module]] = {
    CLIPTextConfig: CLIPTextModel,
    BertTextConfig: BertTextEncoder,
}


def text_encoder_module(
    config: TextEncoderConfig, *, dtype=jnp.float32
) -> Callable[..., nnx.Module]:
    """The constructor of the text encoder of this config, called as ``make(rngs=...)``.

    Args:
        config: of any encoder that a bundle may have.
        dtype: of the computation.
    """
    return functools.partial(_MODULES[type(config)], config, dtype=dtype)


def context_width(config: TextEncoderConfig) -> int:
    """D, the width of what the U-Net attends to."""
    projection = getattr(config, "projection", None)
    return config.hidden_size if projection is None else projection.out_features
