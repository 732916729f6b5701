import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from medsd_jax.vision import layers  # noqa: E402

pytestmark = pytest.mark.torch
X = np.random.default_rng(0).standard_normal((2, 9, 12, 5), np.float32)
GEOMETRY = [(2, 2, 0), (3, 1, 1), (3, 2, 0), (3, 2, 1)]


def _torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def _nhwc(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.numpy(), 1, -1)


@pytest.mark.parametrize(("window", "stride", "padding"), GEOMETRY)
def test_max_pool(window, stride, padding):
    """Of negative numbers, which a padding of zeros would beat."""
    x = X - 10
    theirs = _nhwc(F.max_pool2d(_torch(x), window, stride, padding))
    np.testing.assert_array_equal(layers.max_pool(jnp.asarray(x), window, stride, padding), theirs)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(("window", "stride", "padding"), GEOMETRY)
def test_avg_pool(window, stride, padding, count_include_pad):
    theirs = _nhwc(
        F.avg_pool2d(_torch(X), window, stride, padding, count_include_pad=count_include_pad)
    )
    ours = layers.avg_pool(
        jnp.asarray(X), window, stride, padding, count_include_pad=count_include_pad
    )
    # float32 sums of up to nine numbers
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_global_average():
    theirs = F.adaptive_avg_pool2d(_torch(X), 1).flatten(1)
    # float32 sums of 108 numbers
    np.testing.assert_allclose(layers.global_average(jnp.asarray(X)), theirs, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
def test_frozen_batch_norm(epsilon):
    """Also where the variance is small, so that epsilon decides."""
    rng = np.random.default_rng(1)
    scale, bias, mean = rng.standard_normal((3, 5), np.float32)
    var = np.float32([1e-6, 1e-4, 1e-2, 1, 100])
    norm = layers.FrozenBatchNorm(5, epsilon=epsilon)
    for name, value in {"scale": scale, "bias": bias, "mean": mean, "var": var}.items():
        getattr(norm, name)[...] = jnp.asarray(value)
    theirs = F.batch_norm(_torch(X), *map(torch.from_numpy, (mean, var, scale, bias)), eps=epsilon)
    ours = np.asarray(norm(jnp.asarray(X)))
    # The factors are applied in another order; a channel of variance 1e-6 is scaled up 300 times.
    np.testing.assert_allclose(ours, _nhwc(theirs), rtol=1e-5, atol=1e-4)
