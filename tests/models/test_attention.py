"""Which attention runs where, and that each computes softmax(Q K^T / sqrt(K)) V."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.models import attention

# queries, keys, heads, width, causal: Stable Diffusion 1 and 2, their text encoder, the VAE. The
# pixels are those of images of 256 and 512 px, and an odd grid's.
SHAPES = {
    "sd1-self-40": (1024, 1024, 2, 40, False),
    "sd1-text-40": (1024, 77, 2, 40, False),
    "sd1-self-80": (256, 256, 2, 80, False),
    "sd1-text-80": (256, 77, 2, 80, False),
    "sd1-self-160": (64, 64, 2, 160, False),
    "sd1-text-160": (64, 77, 2, 160, False),
    "sd2-self-64": (4096, 4096, 1, 64, False),
    "sd2-text-64": (4096, 77, 2, 64, False),
    "odd-grid-64": (15, 15, 2, 64, False),
    "odd-grid-text-160": (15, 77, 2, 160, False),
    "clip-64": (77, 77, 2, 64, True),
    "vae-512": (1024, 1024, 1, 512, False),
}


def arrays(shape, dtype) -> list[np.ndarray]:
    """Query, key, value and the output's cotangent, float64 numbers that `dtype` holds exactly."""
    queries, keys, heads, width, _ = shape
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal((2, n, heads, width)) for n in (queries, keys, keys, queries))
    return [np.asarray(jnp.asarray(x, dtype), np.float64) for x in drawn]


def oracle(query, key, value, cotangent, is_causal) -> list[np.ndarray]:
    """Output and the gradients of query, key and value, by hand in float64."""
    scale = query.shape[-1] ** -0.5
    scores = scale * np.einsum("blnk,bsnk->bnls", query, key, optimize=True)
    if is_causal:
        scores[..., ~np.tri(*scores.shape[-2:], dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bnls,bsnk->blnk", weights, value, optimize=True)
    d_value = np.einsum("bnls,blnk->bsnk", weights, cotangent, optimize=True)
    d_weights = np.einsum("blnk,bsnk->bnls", cotangent, value, optimize=True)
    d_scores = scale * weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    d_query = np.einsum("bnls,bsnk->blnk", d_scores, key, optimize=True)
    d_key = np.einsum("bnls,blnk->bsnk", d_scores, query, optimize=True)
    return [out, d_query, d_key, d_value]


def errors(name: str, shape, dtype) -> dict[str, float]:
    """Relative error, in the norm, of the output and of each gradient."""
    numbers, is_causal = arrays(shape, dtype), shape[-1]
    attend = functools.partial(attention.attention_implementation(name), is_causal=is_causal)

    @jax.jit
    def run(query, key, value, cotangent):
        out, back = jax.vjp(attend, query, key, value)
        return out, *back(cotangent)

    result = run(*(jnp.asarray(x, dtype) for x in numbers))
    assert {x.dtype for x in result} == {jnp.dtype(dtype)}
    expected = oracle(*numbers, is_causal)
    parts = ("output", "query", "key", "value")
    return {
        part: float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b))
        for part, a, b in zip(parts, result, expected, strict=True)
    }


# float32: sums in another order, at most 4096 terms. bfloat16: one rounding is at most 2**-9 = 2e-3
# of a number; the weights, the output and the backward pass's products are rounded each.
LIMITS = {"float32": 3e-6, "bfloat16": 1e-2}


def check(name: str, shape: str, dtype: str) -> None:
    with jax.default_matmul_precision("highest"):  # a GPU's default for float32 is TF32
        result = errors(name, SHAPES[shape], dtype)
    print(f"{name} {shape} {dtype}: {', '.join(f'{k} {v:.1e}' for k, v in result.items())}")
    assert max(result.values()) <= LIMITS[dtype], result


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", ["xla", "chunked"])
@pytest.mark.parametrize("shape", ["sd1-self-80", "sd1-text-160", "clip-64"])
def test_output_and_gradients(name, shape, dtype):
    check(name, shape, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", "bfloat16"), ("cudnn", "bfloat16"), ("xla", "bfloat16"), ("auto", "float32")],
)
def test_output_and_gradients_on_a_gpu(name, shape, dtype):
    check(name, shape, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["auto", "cudnn"])
def test_the_fused_kernel_runs_where_it_can(name):
    """The program calls cuDNN's kernel for narrow half-precision heads and for no others."""
    attend = attention.attention_implementation(name)

    def program(width, dtype=jnp.bfloat16, keys=1024):
        query = jax.ShapeDtypeStruct((1, 1024, 2, width), dtype)
        key = jax.ShapeDtypeStruct((1, keys, 2, width), dtype)
        return jax.jit(attend).lower(query, key, key).as_text()

    assert attention.widest_fused_head() in (128, 256)
    assert all("cudnn$fmha" in program(width) for width in (40, 64, 80))
    assert not any("cudnn$fmha" in program(width) for width in (36, 512))
    assert "cudnn$fmha" not in program(64, keys=77)
    if name == "auto":
        assert "cudnn$fmha" not in program(64, jnp.float32)
    else:
        with pytest.raises(UserError, match="queries here are float32"):
            program(64, jnp.float32)


@pytest.fixture
def calls(monkeypatch):
    """What `auto` and `cudnn` hand over, for the given machine; the kernel itself is not run."""
    seen = []

    def fused(query, key, value, *, is_causal, implementation):
        seen.append(implementation)
        return query

    def on(backend: str, widest: int):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(attention, "widest_fused_head", lambda: widest)
        monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
        monkeypatch.setattr(attention, "_late_division", lambda *_, **__: seen.append("chunks"))
        return seen

    return on


def attend(name: str, width: int, dtype, queries: int = 1024, keys: int = 1024) -> None:
    query, key = (jnp.zeros((1, n, 2, width), dtype) for n in (queries, keys))
    attention.attention_implementation(name)(query, key, key)


@pytest.mark.parametrize(
    ("backend", "widest", "width", "dtype", "expected"),
    [
        ("tpu", 0, 64, "bfloat16", "xla"),
        ("gpu", 0, 64, "bfloat16", "xla"),  # an older GPU, or another maker's
        ("gpu", 128, 40, "bfloat16", "cudnn"),
        ("gpu", 128, 128, "float16", "cudnn"),
        ("gpu", 128, 160, "bfloat16", "xla"),
        ("gpu", 256, 160, "bfloat16", "cudnn"),
        ("gpu", 256, 512, "bfloat16", "xla"),  # the VAE's
        ("gpu", 256, 36, "bfloat16", "xla"),
        ("gpu", 256, 64, "float32", "xla"),
    ],
)
def test_auto_takes_what_is_fast_and_right(calls, backend, widest, width, dtype, expected):
    seen = calls(backend, widest)
    attend("auto", width, dtype)
    assert seen == [expected]
    if widest and dtype != "float32":
        attend("cudnn", width, dtype)
        assert seen == [expected] * 2


@pytest.mark.parametrize(
    ("queries", "keys", "auto", "cudnn"),
    [
        (4096, 77, "xla", "xla"),  # a prompt: the kernel has no gradient for odd lengths
        (513, 512, "xla", "xla"),
        (512, 512, "cudnn", "cudnn"),
        (256, 256, "xla", "cudnn"),
    ],
)
def test_lengths_decide_too(calls, queries, keys, auto, cudnn):
    seen = calls("gpu", 256)
    attend("auto", 64, "bfloat16", queries, keys)
    attend("cudnn", 64, "bfloat16", queries, keys)
    assert seen == [auto, cudnn]


def test_auto_cuts_into_chunks_on_a_cpu(calls):
    seen = calls("cpu", 0)
    attend("auto", 64, "bfloat16", queries=16)
    assert seen == ["chunks"]


def test_cudnn_says_what_it_cannot_do(calls):
    calls("gpu", 0)
    with pytest.raises(UserError, match=r"'cudnn' needs an NVIDIA GPU.*'auto'"):
        attend("cudnn", 64, "bfloat16")
    calls("gpu", 256)
    with pytest.raises(UserError, match=r"queries here are float32.*bfloat16.*upcast_attention"):
        attend("cudnn", 64, "float32")


@pytest.mark.parametrize(
    ("platform", "version", "capability", "expected"),
    [
        ("cpu", "", None, 0),
        ("tpu", "", None, 0),
        ("gpu", "rocm 70000", "gfx942", 0),
        ("gpu", "cuda 13000", "7.5", 0),
        ("gpu", "cuda 13000", "8.9", 128),
        ("gpu", "cuda 13000", "9.0", 256),
        ("gpu", "cuda 13000", "12.0", 256),
    ],
)
def test_widest_fused_head(monkeypatch, platform, version, capability, expected):
    class Client:
        platform_version = version

    class Device:
        client, compute_capability = Client(), capability

    Device.platform = platform
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert attention.widest_fused_head.__wrapped__() == expected
