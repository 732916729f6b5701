"""Scaled dot-product attention behind one signature, so that a faster kernel can be plugged in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from medsd_jax.errors import UserError

AttentionFn = Callable[..., jax.Array]
"""``attend(query [B,L,N,K], key [B,S,N,K], value [B,S,N,K], *, is_causal=False) -> [B,L,N,K]``.

Every implementation computes softmax(Q K^T / sqrt(K)) V with logits and softmax in float32.
"""


def xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """JAX's own attention, compiled by XLA for any device."""
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


def late_division_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Divides the output by the softmax's sum, not the probabilities: for CPUs.

    The division passes over [L, K] once instead of twice over [L, S], forward and backward; XLA's
    CPU backend spends most of a narrow-headed attention in such passes.
    """
    scores = jnp.einsum("blnk,bsnk->bnls", query, key, preferred_element_type=jnp.float32)
    if is_causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(seen[None, None], scores, -jnp.inf)
    # The softmax does not depend on its shift, so no gradient flows through it.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(query.shape[-1] ** -0.5 * (scores - largest))  # [B, N, L, S]
    total = jnp.swapaxes(weights.sum(axis=-1), 1, 2)[..., None]  # [B, L, N, 1]
    out = jnp.einsum(
        "bnls,bsnk->blnk", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (out / total).astype(value.dtype)


def auto_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """The faster of the two that run on any device, for JAX's default backend."""
    attend = late_division_attention if jax.default_backend() == "cpu" else xla_attention
    return attend(query, key, value, is_causal=is_causal)


IMPLEMENTATIONS: dict[str, AttentionFn] = {
    "auto": auto_attention,
    "xla": xla_attention,
    "cudnn": cudnn_attention,
    "late_division": late_division_attention,
}


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
