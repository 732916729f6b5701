import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics import neighbours
from medsd_jax.evaluation.metrics.neighbours import count_in_balls, nearest


@pytest.fixture(params=[1024, 16], ids=["one block", "blocks of 16"])
def block_rows(request, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", request.param)


def test_nearest_equals_scipy(block_rows, feature_sets):
    reference, queries = feature_sets()
    distances, indices = nearest(queries, reference, 7)
    expected = cdist(queries.astype(np.float64), reference.astype(np.float64))
    # 12 differences, squared and summed in float32: a few 6e-8.
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :7], rtol=1e-6)
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :7])


def test_near_duplicates_keep_their_distance(block_rows):
    """Copies at 1e-4 of vectors of length 1e3: a matrix product in float32 sees noise of 1e0."""
    rng = np.random.default_rng(0)
    reference = (rng.normal(size=(50, 256)) + 60.0).astype(np.float32)
    queries = reference[::-1].copy()
    queries[:, 0] += 2.0**-13
    distances, indices = nearest(queries, reference)
    np.testing.assert_array_equal(indices[:, 0], np.arange(50)[::-1])
    exact = np.linalg.norm(queries.astype(np.float64) - reference[::-1], axis=1)
    np.testing.assert_allclose(distances[:, 0], exact, rtol=1e-6)

    squared = (queries**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * queries @ reference.T
    product = np.sqrt(np.maximum(squared.min(axis=1), 0.0))
    assert np.abs(product - exact).max() > 10 * exact.max()


def test_self_is_left_out_and_copies_are_not(block_rows):
    points = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    points[33] = points[2]
    distances, indices = nearest(points, points, 39, exclude_self=True)
    assert all(sorted({*row, i}) == list(range(40)) for i, row in enumerate(indices))
    assert indices[2, 0] == 33 and indices[33, 0] == 2
    assert distances[2, 0] == distances[33, 0] == 0.0
    with pytest.raises(UserError, match=r"k=40 .* there are 39"):
        nearest(points, points, 40, exclude_self=True)


def test_equal_distances_come_in_order(block_rows):
    reference = np.repeat(np.eye(2, dtype=np.float32), 30, axis=0)
    distances, indices = nearest(np.array([[1.0, 0.0]], np.float32), reference, 35)
    np.testing.assert_array_equal(indices[0], np.arange(35))
    np.testing.assert_allclose(distances[0], [0.0] * 30 + [np.sqrt(2)] * 5, rtol=1e-6)


def test_balls_equal_scipy_and_are_open(block_rows, feature_sets):
    centres, points = feature_sets()
    radii = nearest(centres, centres, 5, exclude_self=True)[0][:, -1]
    of_point, of_ball = count_in_balls(points, centres, radii)
    inside = cdist(points.astype(np.float64), centres.astype(np.float64)) < radii
    np.testing.assert_array_equal(of_point, inside.sum(axis=1))
    np.testing.assert_array_equal(of_ball, inside.sum(axis=0))
    assert 0 < of_point.sum() < inside.size

    # Each ball of a set holds its centre and 4 others: the 5th lies at the radius, to the bit.
    np.testing.assert_array_equal(count_in_balls(centres, centres, radii)[1], 5)


def test_distances_do_not_depend_on_the_block():
    """Comparisons at the radius need the bits of a distance to be the same in every block."""
    rng = np.random.default_rng(0)
    for width in (3, 64, 2048):
        a = rng.normal(size=(70, width)).astype(np.float32)
        b = rng.normal(size=(300, width)).astype(np.float32)
        whole, indices = nearest(a, b, 300)
        for i, rows in ((0, 7), (11, 33), (69, 1)):
            some, order = nearest(a[i : i + 1], b[:rows], rows)
            expected = whole[i][np.isin(indices[i], order[0])]
            np.testing.assert_array_equal(some[0], expected)
            back, _ = nearest(b[:rows], a[i : i + 1])
            np.testing.assert_array_equal(np.sort(back[:, 0]), some[0])


def test_bad_requests_are_named(feature_sets):
    real, synthetic = feature_sets()
    with pytest.raises(UserError, match=r"k=71 .* there are 70"):
        nearest(synthetic, real, 71)
    with pytest.raises(UserError, match=r"k=0"):
        nearest(synthetic, real, 0)
    with pytest.raises(UserError, match="12 wide and synthetic ones 11"):
        nearest(synthetic[:, 1:], real)
