import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from medsd_jax.vision import positions  # noqa: E402

pytestmark = pytest.mark.torch
GRIDS = [(3, 5, 5), (5, 3, 3), (37, 16, 16), (16, 37, 37), (37, 20, 50), (4, 1, 16), (3, 3, 9)]


def _positions(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((1, 1 + n * n, 6), np.float32)


def _theirs(x: np.ndarray, n: int, height: int, width: int) -> np.ndarray:
    """In float64, so that rounding is ours alone."""
    grid = torch.from_numpy(x[:, 1:].astype(np.float64)).reshape(1, n, n, -1).permute(0, 3, 1, 2)
    out = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return out.permute(0, 2, 3, 1).reshape(1, height * width, -1).numpy()


@pytest.mark.parametrize(("n", "height", "width"), GRIDS)
def test_equals_torch(n, height, width):
    x = _positions(n)
    ours = np.asarray(positions.interpolate_positions(jnp.asarray(x), height, width))
    np.testing.assert_array_equal(ours[:, 0], x[:, 0])
    # Float32 weights and sums of 16 products of numbers up to 4.
    np.testing.assert_allclose(ours[:, 1:], _theirs(x, n, height, width), rtol=0, atol=2e-6)


def test_another_cubic_is_far_beyond_the_tolerance(monkeypatch):
    monkeypatch.setattr(positions, "_A", -0.5)
    x = _positions(5)
    ours = np.asarray(positions.interpolate_positions(jnp.asarray(x), 8, 8))
    assert np.abs(ours[:, 1:] - _theirs(x, 5, 8, 8)).max() > 0.01


def test_weights_add_up_to_one_and_keep_the_same_grid():
    for n, m in ((37, 16), (3, 50)):
        np.testing.assert_allclose(positions._cubic_weights(n, m).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(positions._cubic_weights(7, 7), np.eye(7))
