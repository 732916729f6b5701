"""Scaled dot-product attention behind one signature, so that a faster kernel can be plugged in."""

import functools
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
    """CuDNN's fused kernel, which never stores the L x S scores, for the calls that it takes.

    Other calls go through `xla_attention`: heads wider than `widest_fused_head` (the VAE's, and on
    GPUs before Hopper the deepest of Stable Diffusion 1) or of a width that 8 does not divide, and
    odd lengths (the 77 tokens of a prompt), whose gradient the kernel does not compute.

    Raises:
        UserError: no call could use the kernel: the device is no NVIDIA GPU that it knows, or the
            queries are not in half precision.
    """
    widest = widest_fused_head()
    if not widest:
        raise UserError(
            "attention 'cudnn' needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer; "
            "'auto' finds what is fast here"
        )
    if query.dtype not in HALF:
        raise UserError(
            f"attention 'cudnn' computes in bfloat16 or float16, and the queries here are "
            f"{query.dtype}: choose the compute dtype bfloat16, or attention 'auto' "
            "(always for a model with upcast_attention)"
        )
    implementation = "cudnn" if _fused_takes(query, key, widest) else "xla"
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=is_causal, implementation=implementation
    )


HALF = (jnp.bfloat16, jnp.float16)


@functools.cache
def widest_fused_head() -> int:
    """Widest head of cuDNN's kernel on the default device; 0 where it does not run."""
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return 0
    generation = int(device.compute_capability.split(".")[0])
    return 256 if generation >= 9 else 128 if generation == 8 else 0


def _fused_takes(query: jax.Array, key: jax.Array, widest: int) -> bool:
    width = query.shape[-1]
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
    return query.dtype in HALF and even and width <= widest and width % 8 == 0


QUERIES_AT_ONCE = 128
"""Of `chunked_attention`. Measured best or near it for 1,024 and 4,096 tokens, widths 8 and 40."""


def chunked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Attention for CPUs: some queries at a time, so that their scores stay near the cores.

    XLA's CPU backend otherwise spends most of a narrow-headed attention in passes over [L, S]
    scores in main memory. Three things avoid them: chunks of queries, whose scores the backward
    pass computes again (arXiv 2112.05682); the softmax's division is left to the output; and its
    sum comes out of the product with V, which gets a column of ones.
    """
    chunks, rest = divmod(query.shape[1], QUERIES_AT_ONCE)
    if is_causal or rest or chunks == 1:  # a prompt, or a grid too small or odd to be cut
        return _late_division(query, key, value, is_causal=is_causal)
    pieces = jnp.moveaxis(query.reshape(query.shape[0], chunks, -1, *query.shape[2:]), 1, 0)
    attend = jax.checkpoint(lambda piece: _late_division(piece, key, value))
    return jnp.moveaxis(jax.lax.map(attend, pieces), 0, 1).reshape(query.shape)


def _late_division(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    scores = jnp.einsum("blnk,bsnk->bnls", query, key, preferred_element_type=jnp.float32)
    if is_causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(seen[None, None], scores, -jnp.inf)
    # The softmax does not depend on its shift, so no gradient flows through it.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(query.shape[-1] ** -0.5 * (scores - largest)).astype(value.dtype)
    ones = jnp.ones((*value.shape[:-1], 1), value.dtype)
    out = jnp.einsum(
        "bnls,bsnk->blnk",
        weights,
        jnp.concatenate([value, ones], axis=-1),
        preferred_element_type=jnp.float32,
    )
    return (out[..., :-1] / out[..., -1:]).astype(value.dtype)


FUSED_FROM = 512
"""Queries from which `auto` takes cuDNN's kernel. On an H200 in bfloat16, forward and backward, it
was 3.9 times as fast as XLA for 4,096 tokens and 2.6 times for 1,024; for 256 and 64 no faster."""


def auto_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """The fastest measured for such a call on JAX's default backend (see benchmarks/attention.py).

    Chunks on a CPU; on a GPU cuDNN's kernel for the large grids that it takes; XLA's for everything
    else: TPUs, float32, prompts, small grids, the VAE's single wide head.
    """
    if jax.default_backend() == "cpu":
        attend = chunked_attention
    elif query.shape[1] >= FUSED_FROM and _fused_takes(query, key, widest_fused_head()):
        attend = cudnn_attention
    else:
        attend = xla_attention
    return attend(query, key, value, is_causal=is_causal)


IMPLEMENTATIONS: dict[str, AttentionFn] = {
    "auto": auto_attention,
    "xla": xla_attention,
    "cudnn": cudnn_attention,
    "chunked": chunked_attention,
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
