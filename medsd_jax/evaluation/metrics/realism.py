"""Which generated images look real and which do not: each against its nearest real image.

    (1)  i(y) = the real image nearest to y,   distance(y) = d(y, x_i) / r(x_i)

with r(x_i) the distance of x_i to its own k-th nearest real image. Below 1, y lies as near to a
real image as real images lie to each other there: this is the inverse of the realism score of
arXiv 1904.06991, eq. 3, taken at the nearest real image alone. It orders images for the eye and
is no measure of a set.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from medsd_jax.evaluation.metrics.feature_sets import Features, check_pair
from medsd_jax.evaluation.metrics.neighbours import nearest


@dataclass(frozen=True, eq=False)
class Realism:
    """Of every generated image.

    Attributes:
        distance: [m] float64, (1).
        neighbour: [m] int32, i(y).
    """

    distance: Float[np.ndarray, " m"]
    neighbour: Int[np.ndarray, " m"]


def realism(real: Features, synthetic: Features, k: int = 5) -> Realism:
    """Compute (1).

    Args:
        real: [n, d], n above k.
        synthetic: [m, d].
        k: which nearest neighbour sets the radius.

    Raises:
        UserError: if the features cannot be measured.
    """
    check_pair(real, synthetic, at_least=1)
    radii = nearest(real, real, k, exclude_self=True)[0][:, -1].astype(np.float64)
    distances, neighbours = (result[:, 0] for result in nearest(synthetic, real))
    least = np.finfo(np.float32).tiny  # of a real image with k copies
    return Realism(distances / np.maximum(radii[neighbours], least), neighbours)
