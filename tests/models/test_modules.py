"""What every module keeps to: weights and numbers only, flat names, a pluggable attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medsd_jax.errors import UserError
from medsd_jax.models import attention, clip, params, unet, vae
from tests.tiny import networks

MODULES = {
    "unet_sd1": functools.partial(unet.UNet2DConditionModel, networks.UNET_SD1),
    "unet_sd2": functools.partial(unet.UNet2DConditionModel, networks.UNET_SD2),
    "vae": functools.partial(vae.AutoencoderKL, networks.VAE),
    "clip": functools.partial(clip.CLIPTextModel, networks.CLIP_SD1),
}


@pytest.mark.parametrize("name", MODULES)
def test_state_is_weights_alone(name):
    """A random stream or a running statistic would enter checkpoints and break pure steps."""
    graphdef, like = params.abstract(MODULES[name])
    module = params.bind(graphdef, like)
    _, weights, rest = nnx.split(module, nnx.Param, ...)
    assert len(jax.tree.leaves(weights)) == len(like)
    assert jax.tree.leaves(rest) == []


@pytest.mark.parametrize("name", MODULES)
def test_bind_restores_what_flat_params_took(name):
    graphdef, like = params.abstract(MODULES[name])
    again = params.flat_params(params.bind(graphdef, like))
    assert again.keys() == like.keys()
    assert all(again[k] is like[k] for k in like)


def test_structure_is_the_same_every_time():
    """jit caches by it; and it does not depend on where the random keys come from."""
    graphdef, like = params.abstract(MODULES["clip"])
    again, _ = params.abstract(MODULES["clip"])
    assert graphdef == again
    assert hash(graphdef) == hash(again)
    module = MODULES["clip"](rngs=nnx.Rngs(3))
    assert nnx.graphdef(module) == graphdef
    made = params.flat_params(module)
    assert {k: (x.shape, x.dtype) for k, x in made.items()} == {
        k: (x.shape, x.dtype) for k, x in like.items()
    }


def test_component_takes_off_what_with_prefix_put_on():
    weights = {"conv_in.bias": 1, "conv_in.kernel": 2}
    both = params.with_prefix(weights, "unet") | params.with_prefix({"x.bias": 3}, "unet2")
    assert params.component(both, "unet") == weights


class Recorder:
    """An attention function that notes the shapes it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, query, key, value, *, is_causal=False):
        self.calls.append((query.shape, key.shape, is_causal))
        return attention.xla_attention(query, key, value, is_causal=is_causal)


def test_attention_can_be_replaced():
    recorder = Recorder()
    for make, method, args in [
        (MODULES["unet_sd1"], "__call__", networks.unet_inputs(networks.UNET_SD1, 8, 8)),
        (MODULES["vae"], "encode", (np.zeros((2, 16, 16, 3), np.float32),)),
        (MODULES["clip"], "__call__", (np.zeros((2, 13), np.int32),)),
    ]:
        graphdef, like = params.abstract(functools.partial(make, attend=recorder))
        jax.eval_shape(
            lambda p, *a: getattr(params.bind(graphdef, p), method)(*a),  # noqa: B023
            like,
            *args,
        )
    # SD1: 4 heads. One transformer goes down at 8 x 8, one is in the middle and two go up; each
    # attends to itself and to 7 tokens of text. The VAE: one head over 4 x 4 cells.
    top = [((2, 64, 4, 4), (2, 64, 4, 4), False), ((2, 64, 4, 4), (2, 7, 4, 4), False)]
    middle = [((2, 16, 4, 8), (2, 16, 4, 8), False), ((2, 16, 4, 8), (2, 7, 4, 8), False)]
    pixels = [((2, 16, 1, 32), (2, 16, 1, 32), False)]
    text = [((2, 13, 4, 8), (2, 13, 4, 8), True)] * networks.CLIP_SD1.num_hidden_layers
    assert recorder.calls == top + middle + top * 2 + pixels + text


def test_replaced_attention_decides_the_output():
    make = MODULES["clip"]
    graphdef, weights = networks.random_weights(make)
    prompt_ids = np.arange(26, dtype=np.int32).reshape(2, 13)
    usual = networks.run(graphdef, weights, prompt_ids)

    def no_attention(query, key, value, *, is_causal=False):
        return value

    other, _ = params.abstract(functools.partial(make, attend=no_attention))
    assert not np.allclose(networks.run(other, weights, prompt_ids), usual)


def test_attention_by_name():
    assert attention.attention_implementation("xla") is attention.xla_attention
    assert attention.attention_implementation("cudnn") is attention.cudnn_attention
    with pytest.raises(UserError, match=r"'flashy'.*auto, xla, cudnn, chunked"):
        attention.attention_implementation("flashy")


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("size", [1.0, 30.0])  # logits up to thousands: the shift must hold
@pytest.mark.parametrize("name", ["auto", "xla", "chunked"])
@pytest.mark.parametrize("queries", [11, 256])  # 256: two chunks
def test_attention_equals_torch(name, size, is_causal, queries):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    tokens = (11, 11) if is_causal else (queries, 7)
    query, key, value = (
        rng.normal(size=(2, n, 3, 8)).astype(np.float32) * scale
        for n, scale in zip((*tokens, tokens[1]), (size, size, 1.0), strict=True)
    )
    cotangent = rng.normal(size=query.shape).astype(np.float32)

    leaves = [torch.tensor(x, requires_grad=True) for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves), is_causal=is_causal
    ).transpose(1, 2)
    expected.backward(torch.tensor(cotangent))

    attend = functools.partial(attention.attention_implementation(name), is_causal=is_causal)
    out, back = jax.vjp(attend, query, key, value)
    # float32 on both sides; the logits' rounding grows with their size, which is size squared.
    limit = 2e-6 * size**2
    np.testing.assert_allclose(out, expected.detach(), atol=limit, rtol=0)
    for gradient, leaf in zip(back(jnp.asarray(cotangent)), leaves, strict=True):
        largest = max(1.0, float(leaf.grad.abs().max()))  # sums over all queries or keys
        np.testing.assert_allclose(gradient, leaf.grad, atol=limit * size * largest, rtol=0)


def test_attention_keeps_the_dtype_and_accumulates_in_float32():
    ones = jnp.ones((1, 3000, 1, 8), jnp.bfloat16)
    for name in ("xla", "chunked"):
        out = attention.attention_implementation(name)(ones, ones, ones)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_array_equal(out, ones)  # a bfloat16 sum of 3000 ones stops at 256


def test_text_sees_no_later_token():
    """Causality: a changed token changes its own position and later ones only."""
    graphdef, weights = networks.random_weights(MODULES["clip"])
    prompt_ids = np.arange(13, dtype=np.int32)[None]
    changed = prompt_ids.copy()
    changed[0, 6] = 77
    before, after = (networks.run(graphdef, weights, ids) for ids in (prompt_ids, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max(axis=-1) > 1e-3).all()


def test_sample_posterior():
    mean, logvar = jnp.full((1, 2, 2, 4), 3.0), jnp.full((1, 2, 2, 4), np.log(4.0))
    noise = jnp.ones((1, 2, 2, 4))
    np.testing.assert_allclose(vae.sample_posterior(mean, logvar, noise), 5.0, rtol=1e-6)


def test_too_long_prompts_are_reported():
    """JAX would read the last position's embedding again, or NaN, and go on."""
    graphdef, weights = networks.random_weights(MODULES["clip"])
    most = networks.CLIP_SD1.max_position_embeddings
    with pytest.raises(UserError, match=f"{most + 1} tokens.*{most} positions"):
        networks.run(graphdef, weights, np.zeros((1, most + 1), np.int32))
