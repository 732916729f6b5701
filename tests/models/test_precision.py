"""bfloat16 computes in bfloat16, yet weights, norm statistics, softmax and outputs are float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.models import clip, params, unet, vae
from medsd_jax.models.text_encoder import text_encoder_module
from tests.tiny import bert, networks

# Their results are statistics or probabilities: 8 bits of mantissa are not enough. exp, max and sum
# are the softmax's; sum and rsqrt the norms'; sin and cos the time's.
FLOAT32_ONLY = {"exp", "reduce_max", "reduce_sum", "rsqrt", "sqrt", "sin", "cos"}


def equations(jaxpr):
    """All equations of a jaxpr and of what it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def float_dtypes(variables) -> set[str]:
    return {v.aval.dtype.name for v in variables if jnp.issubdtype(v.aval.dtype, jnp.floating)}


def case(name: str, dtype):
    """(make_module, method, inputs) of one tiny model."""
    rng = np.random.default_rng(0)
    if name == "unet":
        make = functools.partial(unet.UNet2DConditionModel, networks.UNET_SD1, dtype=dtype)
        return make, "__call__", networks.unet_inputs(networks.UNET_SD1, 8, 8)
    if name == "clip":
        make = functools.partial(clip.CLIPTextModel, networks.CLIP_SD1, dtype=dtype)
        return make, "__call__", (rng.integers(0, 99, (2, 13), np.int32),)
    make = functools.partial(vae.AutoencoderKL, networks.VAE, dtype=dtype)
    if name == "encode":
        return make, "encode", (rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32),)
    return make, "decode", (rng.standard_normal((2, 4, 4, 4), np.float32),)


CASES = ["unet", "encode", "decode", "clip"]


def flattened(outputs) -> np.ndarray:
    leaves = jax.tree.leaves(outputs)
    assert {x.dtype.name for x in leaves} == {"float32"}
    return np.concatenate([np.ravel(x) for x in leaves])


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_close_to_float32(name):
    make, method, inputs = case(name, jnp.float32)
    graphdef, weights = networks.random_weights(make)
    exact = flattened(networks.run(graphdef, weights, *inputs, method=method))
    graphdef, like = params.abstract(case(name, jnp.bfloat16)[0])
    assert {x.dtype.name for x in like.values()} == {"float32"}
    rounded = flattened(networks.run(graphdef, weights, *inputs, method=method))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    print(f"bfloat16 {name}: relative error {error:.2e}")
    # One rounding is at most 2**-9 = 2e-3; about a hundred independent ones follow each other on
    # the longest path, which adds up to 2e-3 sqrt(100). Measured: 6e-3 (CLIP) to 2e-2 (VAE); torch
    # in bfloat16 lost 0.8 to 1.0 times as much on the same tiny models.
    assert 5e-4 < error < 3e-2


@pytest.mark.parametrize("name", CASES)
def test_statistics_and_softmax_are_float32(name):
    make, method, inputs = case(name, jnp.bfloat16)
    graphdef, like = params.abstract(make)
    traced = jax.make_jaxpr(lambda p, *a: getattr(params.bind(graphdef, p), method)(*a))(
        like, *inputs
    )
    result = list(equations(traced.jaxpr))
    sensitive = [e for e in result if e.primitive.name in FLOAT32_ONLY and float_dtypes(e.invars)]
    for eqn in sensitive:
        assert float_dtypes(eqn.invars) == {"float32"}, eqn
    counted = [e.primitive.name for e in sensitive]
    part = {"encode": "encoder.", "decode": "decoder."}.get(name, "")
    runs = [k for k in like if k.startswith(part)]
    assert counted.count("rsqrt") == sum(k.endswith(".scale") for k in runs)
    # One softmax for each key projection: k_proj in CLIP, to_k elsewhere.
    assert counted.count("reduce_max") == sum(
        k.endswith(("to_k.kernel", "k_proj.kernel")) for k in runs
    )
    # And the rest is what makes bfloat16 fast: no large product was left in float32.
    products = [e for e in result if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert products
    for eqn in products:
        assert float_dtypes(eqn.invars) == {"bfloat16"}, eqn


def test_upcast_attention_multiplies_queries_and_keys_in_float32():
    make = functools.partial(unet.UNet2DConditionModel, networks.UNET_SD2, dtype=jnp.bfloat16)
    graphdef, like = params.abstract(make)
    traced = jax.make_jaxpr(lambda p, *a: params.bind(graphdef, p)(*a))(
        like, *networks.unet_inputs(networks.UNET_SD2, 8, 8)
    )
    batched = [
        e
        for e in equations(traced.jaxpr)
        if e.primitive.name == "dot_general" and e.params["dimension_numbers"][1] != ((), ())
    ]
    attentions = sum(k.endswith(".to_k.kernel") for k in like)
    in_float32 = [e for e in batched if float_dtypes(e.invars) == {"float32"}]
    assert len(in_float32) >= attentions


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*CASES, "bert"])
def test_float32_products_are_not_rounded(name, dtype):
    """As TPUs and GPUs would by JAX's default; forward and backward."""
    if name == "bert":
        make = text_encoder_module(bert.CONFIG, dtype=dtype)
        method, inputs = "__call__", (np.zeros((2, 5), np.int32),)
    else:
        make, method, inputs = case(name, dtype)
    graphdef, like = params.abstract(make)

    def loss(p, *a):
        return sum(
            jnp.sum(x) for x in jax.tree.leaves(getattr(params.bind(graphdef, p), method)(*a))
        )

    with jax.default_matmul_precision(None):
        traced = jax.make_jaxpr(jax.grad(loss))(like, *inputs)
    products = ("dot_general", "conv_general_dilated")
    result = [e for e in equations(traced.jaxpr) if e.primitive.name in products]
    highest = jax.lax.Precision.HIGHEST
    exact = [e.params["precision"] in (highest, (highest, highest)) for e in result]
    assert len(result) > 10 and set(exact) == {dtype == jnp.float32}
