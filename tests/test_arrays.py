"""The range of images on the host and in every program, rounding against diffusers, even spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medsd_jax.arrays import (
    evenly_spread,
    from_uint8,
    from_uint8_on_host,
    from_uint8_rounded_once,
    to_uint8,
)

LEVELS = np.arange(256, dtype=np.uint8)


def test_levels_cover_the_range_evenly():
    """Against float64: the step, the product and the difference are rounded to float32."""
    result = from_uint8_on_host(LEVELS)
    assert result.dtype == np.float32 and result[0] == -1 and result[255] == 1
    np.testing.assert_allclose(result, LEVELS / 127.5 - 1.0, rtol=0, atol=1.5 * 2**-23)


@pytest.mark.parametrize("shape", [(256,), (16, 16), (2, 8, 16)])
def test_the_device_gives_the_bits_of_the_host(shape):
    levels = LEVELS.reshape(shape)
    expected = from_uint8_on_host(levels)

    def inside(x):
        """Compiled together with what comes before and after, and differentiated."""
        y = from_uint8(x[::-1])
        return y, jnp.tanh(3 * y), y.sum() / 127.5 - 1.0

    np.testing.assert_array_equal(from_uint8(jnp.asarray(levels)), expected)
    np.testing.assert_array_equal(jax.jit(from_uint8)(levels), expected)
    np.testing.assert_array_equal(jax.jit(inside)(levels)[0], expected[::-1])
    np.testing.assert_array_equal(jax.jit(jax.vmap(from_uint8))(levels), expected)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_one_rounding_more_or_less_is_a_bit(jit):
    convert = jax.jit(from_uint8_rounded_once) if jit else from_uint8_rounded_once
    result = convert(LEVELS)
    np.testing.assert_allclose(result, from_uint8_on_host(LEVELS), rtol=0, atol=2**-23)
    np.testing.assert_array_equal(to_uint8(result), LEVELS)


def test_one_rounding_in_the_place_of_two_is_seen():
    """What a compiler makes of x * step - 1 where it joins the two."""
    step = np.float64(np.float32(1 / 127.5))
    joined = (LEVELS * step - 1.0).astype(np.float32)  # exact in float64, but for the last rounding
    assert (joined != from_uint8_on_host(LEVELS)).sum() > 100


def _floats() -> np.ndarray:
    """All rounding boundaries with their float neighbours, values out of range, random ones."""
    ties = ((np.arange(256) + 0.5) / 255.0 * 2.0 - 1.0).astype(np.float32)
    near = [np.nextafter(ties, np.float32(side)) for side in (-2.0, 2.0)]
    levels = np.arange(256, dtype=np.float32) / 255.0 * 2.0 - 1.0
    wild = np.random.default_rng(0).normal(scale=1.5, size=1024).astype(np.float32)
    edges = np.asarray([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, 1e30, -1e30], np.float32)
    values = np.concatenate([ties, *near, levels, wild, edges])
    return np.resize(values, (2, 16, 24, 3))


@pytest.mark.torch
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_rounding_equals_diffusers(jit):
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    floats = _floats()
    images = processor.postprocess(torch.from_numpy(floats.transpose(0, 3, 1, 2)))
    ours = (jax.jit(to_uint8) if jit else to_uint8)(jnp.asarray(floats))
    assert ours.dtype == jnp.uint8
    np.testing.assert_array_equal(ours, np.stack([np.asarray(image) for image in images]))


@pytest.mark.torch
def test_reading_equals_diffusers():
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    images_u8 = np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 16, 16, 3)
    theirs = processor.preprocess(Image.fromarray(images_u8[0])).numpy().transpose(0, 2, 3, 1)
    # One rounding apart: numpy divides, XLA may multiply by the inverse.
    np.testing.assert_allclose(from_uint8(images_u8), theirs, rtol=0, atol=1.2e-7)


def test_all_levels_survive():
    images_u8 = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    images = from_uint8(images_u8)
    assert images.dtype == jnp.float32
    assert float(images.min()) == -1.0 and float(images.max()) == 1.0
    np.testing.assert_array_equal(to_uint8(images), images_u8)


def test_bfloat16_is_widened_first():
    # 0.9 in bfloat16 is 0.8984375: pixel 242.05; in bfloat16 arithmetic it would be 242 or 243.
    image = jnp.full((1, 1, 1, 3), 0.8984375, jnp.bfloat16)
    assert np.asarray(to_uint8(image)).tolist() == [[[[242, 242, 242]]]]


@pytest.mark.parametrize(
    ("length", "count", "rows"),
    [
        (10, 4, [0, 3, 6, 9]),
        (6, 3, [0, 2, 5]),  # 2.5 is rounded to even
        (5, 2, [0, 4]),
        (3, 7, [0, 1, 2]),
        (4, 1, [0]),
        (1, 1, [0]),
        (0, 3, []),
    ],
)
def test_rows_spread_evenly(length, count, rows):
    assert evenly_spread(length, count) == rows
