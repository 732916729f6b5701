"""All 256 grey levels have the same bits on the host and in every program; rows spread evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.arrays import evenly_spread, from_uint8, from_uint8_on_host

LEVELS = np.arange(256, dtype=np.uint8)


def test_levels_cover_the_range_evenly():
    """Against float64: the step, the product and the difference are rounded to float32."""
    found = from_uint8_on_host(LEVELS)
    assert found.dtype == np.float32 and found[0] == -1 and found[255] == 1
    np.testing.assert_allclose(found, LEVELS / 127.5 - 1.0, rtol=0, atol=1.5 * 2**-23)


@pytest.mark.parametrize("shape", [(256,), (16, 16), (2, 8, 16)])
def test_the_device_gives_the_bits_of_the_host(shape):
    levels = LEVELS.reshape(shape)
    wanted = from_uint8_on_host(levels)

    def inside(x):
        """Compiled together with what comes before and after, and differentiated."""
        y = from_uint8(x[::-1])
        return y, jnp.tanh(3 * y), y.sum() / 127.5 - 1.0

    np.testing.assert_array_equal(from_uint8(jnp.asarray(levels)), wanted)
    np.testing.assert_array_equal(jax.jit(from_uint8)(levels), wanted)
    np.testing.assert_array_equal(jax.jit(inside)(levels)[0], wanted[::-1])
    np.testing.assert_array_equal(jax.jit(jax.vmap(from_uint8))(levels), wanted)


def test_one_rounding_in_the_place_of_two_is_seen():
    """What a compiler makes of x * step - 1 where it joins the two."""
    step = np.float64(np.float32(1 / 127.5))
    joined = (LEVELS * step - 1.0).astype(np.float32)  # exact in float64, but for the last rounding
    assert (joined != from_uint8_on_host(LEVELS)).sum() > 100


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
