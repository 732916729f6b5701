"""Nearest neighbours by Euclidean distance, in blocks on the device.

    (1)  d(a, b) = sqrt(sum_i (a_i - b_i)^2)

is computed as it stands, from differences, in float32. The usual shortcut by a matrix product,
|a|^2 + |b|^2 - 2 a . b, cancels for near duplicates: in float32 it cannot tell a distance below
about 1e-3 |a| from zero, and the near duplicates are what a search for copied images is about and
what makes the small radii of collapsed sets. Differences are right to a few 1e-6 of the distance
itself at any size. The price, on two cores at width 2,048, is 9e9 differences a second where the
product does 1e11: 3 s for 3,600 x 3,600 images. Equal vectors have distance 0, and a pair has the
same distance in every block and in both orders, so that comparisons of distances are exact too.

No array larger than two blocks of vectors and one block of distances lies on the device.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.feature_sets import Features, check_widths

_MIN_BLOCK_ROWS = 256
"""XLA sums blocks of a few rows in another order, and a distance would differ in its last bit."""
_BLOCK_ROWS = 1024
_BLOCK_VALUES = 2**24
"""A block has at most that many vectors and numbers (64 MiB), or one vector."""


def nearest(
    queries: Features, reference: Features, k: int = 1, *, exclude_self: bool = False
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Find the k nearest reference vectors of each query.

    Args:
        queries: [Q, d], taken as float32.
        reference: [R, d], taken as float32; block by block, so that it may be a memory map.
        k: Number of neighbours, in [1, R].
        exclude_self: The two sets are one set: query i is not a neighbour of itself. Copies of it
            are.

    Returns:
        distances: [Q, k] float32, ascending; the last column is the k-th nearest distance.
        indices: [Q, k] int32, rows of `reference`. Of equal distances the lower row comes first.

    Raises:
        UserError: If the reference has too few vectors or the widths differ.
    """
    check_widths(reference.shape[1], queries.shape[1])
    assert not exclude_self or len(queries) == len(reference)
    available = len(reference) - exclude_self
    if not 1 <= k <= available:
        raise UserError(f"k={k} neighbours were asked for, but there are {available}; lower k")
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    for q, num_queries, query_block in _blocks(queries):
        own = np.arange(q, q + len(query_block)) if exclude_self else np.full(len(query_block), -1)
        best = (
            jnp.full((len(query_block), k), jnp.inf, jnp.float32),
            jnp.zeros((len(query_block), k), jnp.int32),
        )
        for r, num_rows, block in _blocks(reference):
            best = _nearer(best, query_block, own.astype(np.int32), block, r, num_rows)
        distances[q : q + num_queries] = best[0][:num_queries]
        indices[q : q + num_queries] = best[1][:num_queries]
    return distances, indices


def count_in_balls(
    points: Features, centres: Features, radii: Float[np.ndarray, " C"]
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " C"]]:
    """Count points in balls, which hold what is nearer than the radius and not what is at it.

    Args:
        points: [P, d], taken as float32.
        centres: [C, d], taken as float32.
        radii: [C] float32.

    Returns:
        balls_of_point: [P] int64, the number of balls that hold each point.
        points_of_ball: [C] int64, the number of points in each ball.

    Raises:
        UserError: If the widths differ.
    """
    check_widths(centres.shape[1], points.shape[1])
    balls_of_point = np.zeros(len(points), np.int64)
    points_of_ball = np.zeros(len(centres), np.int64)
    for p, num_points, point_block in _blocks(points):
        for c, num_centres, centre_block in _blocks(centres):
            radius = np.zeros(len(centre_block), np.float32)
            radius[:num_centres] = radii[c : c + num_centres]
            inside = np.asarray(_inside(point_block, centre_block, radius))
            inside = inside[:num_points, :num_centres]
            balls_of_point[p : p + num_points] += inside.sum(axis=1)
            points_of_ball[c : c + num_centres] += inside.sum(axis=0)
    return balls_of_point, points_of_ball


def _blocks(features: Features) -> Iterator[tuple[int, int, Float[np.ndarray, "B d"]]]:
    """Yield first row, number of rows, and the rows padded with zeros to one size for all blocks.

    One size means one compilation.
    """
    most = max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // features.shape[1]))
    size = min(most, max(_MIN_BLOCK_ROWS, 1 << max(0, len(features) - 1).bit_length()))
    for start in range(0, len(features), size):
        rows = np.asarray(features[start : start + size], np.float32)
        yield start, len(rows), np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _distances(a: Float[Array, "A d"], b: Float[Array, "B d"]) -> Float[Array, "A B"]:
    """(1) of all pairs; a row at a time, so that the differences never lie in memory."""
    return jax.lax.map(lambda row: jnp.sqrt(jnp.sum(jnp.square(b - row[None]), axis=1)), a)


@jax.jit
def _nearer(
    best: tuple[Float[Array, "Q k"], Int[Array, "Q k"]],
    queries: Float[Array, "Q d"],
    own: Int[Array, " Q"],
    block: Float[Array, "B d"],
    first: Int[Array, ""] | int,
    count: Int[Array, ""] | int,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Merge a block's `count` rows, from row `first` of the reference on, into the nearest."""
    rows = jnp.arange(len(block), dtype=jnp.int32)[None]
    absent = (rows >= count) | (rows + first == own[:, None])
    distances = jnp.where(absent, jnp.inf, _distances(queries, block))
    # The best so far stand first, because top_k takes the first of equals.
    distances = jnp.concatenate([best[0], distances], axis=1)
    indices = jnp.concatenate([best[1], jnp.broadcast_to(rows + first, absent.shape)], axis=1)
    negative, chosen = jax.lax.top_k(-distances, best[0].shape[1])
    return -negative, jnp.take_along_axis(indices, chosen, axis=1)


@jax.jit
def _inside(
    points: Float[Array, "P d"], centres: Float[Array, "C d"], radii: Float[Array, " C"]
) -> Bool[Array, "P C"]:
    return _distances(points, centres) < radii[None]
