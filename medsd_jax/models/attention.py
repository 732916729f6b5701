"""Scaled dot-product attention behind one signature, so that a faster kernel can be plugged in."""

from collections.abc import Callable

import jax

from medsd_jax.errors import UserError

AttentionFn = Callable[..., jax.Array]
"""``attend(query [B,L,N,K], key [B,S,N,K], value [B,S,N,K], *, is_causal=False) -> [B,L,N,K]``."""


def xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """softmax(Q K^T / sqrt(K)) V by XLA on any device; logits and softmax are float32."""
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=is_causal, implementation="xla"
    )


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """CuDNN's fused kernel: NVIDIA GPUs, bfloat16 or float16; never stores the L x S scores."""
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=is_causal, implementation="cudnn"
    )


IMPLEMENTATIONS: dict[str, AttentionFn] = {"xla": xla_attention, "cudnn": cudnn_attention}


def attention_implementation(name: str) -> AttentionFn:
    """Looks an implementation up by its name in the configs.

    Raises:
        UserError: there is none of that name.
    """
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"attention implementation {name!r} does not exist "
            f"(one of {', '.join(IMPLEMENTATIONS)})"
        )
    return IMPLEMENTATIONS[name]
