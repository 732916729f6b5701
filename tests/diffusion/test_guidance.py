"""Classifier-free guidance: the formula, per-example scales, no traffic between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medsd_jax.diffusion.guidance import guided


def denoise(x, t, context):
    """A network whose output tells its three inputs apart."""
    return jnp.tanh(x) * t[:, None, None, None] + context.sum(axis=(1, 2))[:, None, None, None]


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (8, 3, 3, 4))
    context, negative = (jax.random.normal(key, (8, 5, 6)) for key in keys[1:])
    return x, jnp.arange(8), context, negative


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, 4])
def test_guidance_extrapolates_from_the_negative_prompt(inputs, scale):
    x, t, context, negative = inputs
    uncond, cond = denoise(x, t, negative), denoise(x, t, context)
    expected = (1 - scale) * np.asarray(uncond, np.float64) + scale * np.asarray(cond, np.float64)
    # Outputs of order 10, weights of up to 7.5: 1e-6 each.
    np.testing.assert_allclose(guided(denoise, scale)(*inputs), expected, atol=1e-4, rtol=1e-5)


def inputs_of_some_spread(inputs):
    """At time 0 the network's output would be constant."""
    x, t, context, negative = inputs
    return x, t + 1, context, negative


@pytest.mark.torch
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaled_guidance_equals_diffusers(inputs, rescale):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    x, t, context, negative = inputs = inputs_of_some_spread(inputs)
    uncond, cond = (torch.from_numpy(np.array(denoise(x, t, c))) for c in (negative, context))
    theirs = module.rescale_noise_cfg(uncond + 7.5 * (cond - uncond), cond, rescale).numpy()
    ours = guided(denoise, 7.5, rescale)(*inputs)
    # Values of order 10 times 7.5, and two standard deviations of 36 values: 1e-6 each.
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-5)


def test_no_rescaling_is_exact_and_full_rescaling_keeps_the_spread(inputs):
    inputs = inputs_of_some_spread(inputs)
    x, t, context, _ = inputs
    plain = guided(denoise, 7.5)(*inputs)
    run = jax.jit(lambda phi, *args: guided(denoise, 7.5, phi)(*args))
    np.testing.assert_allclose(run(0.0, *inputs), plain, rtol=1e-6, atol=1e-5)
    full, cond = np.asarray(run(1.0, *inputs)), np.asarray(denoise(x, t, context))
    np.testing.assert_allclose(full.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-4)
    assert run._cache_size() == 1


def test_a_constant_prediction_without_rescaling_is_no_division_by_zero(inputs):
    same = guided(lambda x, t, context: jnp.zeros_like(x), 7.5)(*inputs)
    np.testing.assert_array_equal(same, np.zeros(inputs[0].shape))


def test_the_network_runs_once_on_a_doubled_batch(inputs):
    shapes = []

    def spy(x, t, context):
        shapes.append((x.shape, t.shape, context.shape))
        return denoise(x, t, context)

    guided(spy, 3.0)(*inputs)
    assert shapes == [((16, 3, 3, 4), (16,), (16, 5, 6))]


def test_one_scale_for_each_example(inputs):
    scales = jnp.linspace(0.0, 7.0, 8)
    together = guided(denoise, scales)(*inputs)
    for i, scale in enumerate(scales):
        alone = guided(denoise, scale)(*(x[i : i + 1] for x in inputs))
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)


def test_the_scale_is_traced(inputs):
    run = jax.jit(lambda scale, *args: guided(denoise, scale)(*args))
    for scale in (1.0, 2.5):
        expected = guided(denoise, scale)(*inputs)
        np.testing.assert_allclose(run(scale, *inputs), expected, atol=1e-4, rtol=1e-5)
    assert run._cache_size() == 1


def test_a_split_batch_needs_no_traffic_between_devices(inputs):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(inputs, sharding)
    run = jax.jit(lambda *args: guided(denoise, 2.0)(*args), out_shardings=sharding)
    program = run.lower(*sharded).compile().as_text()
    traffic = r"all-(gather|reduce|to-all)|collective-permute|reduce-scatter"
    assert re.search(traffic, program) is None
    expected = guided(denoise, 2.0)(*inputs)
    np.testing.assert_allclose(run(*sharded), expected, atol=1e-4, rtol=1e-5)
