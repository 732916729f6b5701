"""Precision, recall, density and coverage of feature sets (k = 5).

Symbols: x_i real (n of them), y_j synthetic (m), r(x_i) the distance from x_i to its k-th nearest
real vector other than itself, r(y_j) the same among the synthetic ones; [...] is 1 or 0.

    (1)  precision = mean_j [some i has d(x_i, y_j) < r(x_i)]             1904.06991, eq. 1 and 2
    (2)  recall    = mean_i [some j has d(x_i, y_j) < r(y_j)]             1904.06991, eq. 1 and 2
    (3)  density   = mean_j sum_i [d(x_i, y_j) < r(x_i)] / k              2002.09797, eq. 3
    (4)  coverage  = mean_i [some j has d(x_i, y_j) < r(x_i)]             2002.09797, eq. 4

Balls are open, as in the `prdc` package of the second paper's authors (the papers write <=): what
lies at the radius is outside. A set compared with a copy of itself then has all four at 1.

A real image that no synthetic one is near lowers recall and coverage; an unlike synthetic image
lowers precision and density. Recall trusts the synthetic set: one outlier there has a large ball
and makes it high, which is why coverage exists.

Neighbours are images, as in the papers: where a patient has several alike ones, these are among the
k nearest, radii are smaller, and precision, recall and coverage are lower than of one image a
patient. Compare sets of as many images per patient.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.feature_sets import Features, check_pair
from medsd_jax.evaluation.metrics.neighbours import count_in_balls, nearest


@dataclass(frozen=True, eq=False)
class Prdc:
    """The four numbers, as means over images: intervals and subgroups need the images' own values.

    Attributes:
        k: Which nearest neighbour sets the radius.
        balls_of_synthetic: [m] int64, the sum of (3) for each synthetic image.
        recalled: [n] bool, the bracket of (2) for each real image.
        covered: [n] bool, the bracket of (4) for each real image.
    """

    k: int
    balls_of_synthetic: Int[np.ndarray, " m"]
    recalled: Bool[np.ndarray, " n"]
    covered: Bool[np.ndarray, " n"]

    @property
    def precision(self) -> float:
        """(1), the share of synthetic images among the real ones."""
        return float((self.balls_of_synthetic > 0).mean())

    @property
    def recall(self) -> float:
        """(2), the share of real images among the synthetic ones."""
        return float(self.recalled.mean())

    @property
    def density(self) -> float:
        """(3), how many real balls hold a synthetic image, over k; it may exceed 1."""
        return float(self.balls_of_synthetic.mean() / self.k)

    @property
    def coverage(self) -> float:
        """(4), the share of real images with a synthetic one nearby."""
        return float(self.covered.mean())


def prdc(real: Features, synthetic: Features, k: int = 5) -> Prdc:
    """Compute precision, recall, density and coverage.

    Args:
        real: [n, d], taken as float32, n above k.
        synthetic: [m, d], taken as float32, m above k. Density and coverage change with m / n:
            compare models at the same numbers.
        k: Which nearest neighbour sets the radius; the papers and benchmarks take 3 to 5.

    Returns:
        The four numbers and what they are means of.

    Raises:
        UserError: If a set has k vectors or fewer, or the features cannot be measured.
    """
    if k < 1:
        raise UserError(f"k={k} is no neighbour; choose at least 1")
    check_pair(real, synthetic, at_least=k + 1)
    real_radii = nearest(real, real, k, exclude_self=True)[0][:, -1]
    synthetic_radii = nearest(synthetic, synthetic, k, exclude_self=True)[0][:, -1]
    balls_of_synthetic, synthetic_of_ball = count_in_balls(synthetic, real, real_radii)
    balls_of_real, _ = count_in_balls(real, synthetic, synthetic_radii)
    return Prdc(k, balls_of_synthetic, recalled=balls_of_real > 0, covered=synthetic_of_ball > 0)
