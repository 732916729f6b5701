"""What every metric asks of its feature sets: enough vectors, one width, finite values."""

import jax
import numpy as np
from jaxtyping import Real

from medsd_jax.errors import UserError

Features = Real[np.ndarray | jax.Array, "_ _"]
"""[n, d]: one feature vector an image, from any network; a float type of any precision."""


def check_features(name: str, features: Features, *, at_least: int = 2) -> None:
    """Check that a set can be measured.

    Args:
        name: How the message calls the set, such as "real".
        features: [n, d].
        at_least: The fewest vectors that the metric can work with.

    Raises:
        UserError: If there are too few vectors or one of them is not finite.
    """
    if len(features) < at_least:
        raise UserError(
            f"{name}: {len(features)} feature vector(s), but at least {at_least} are needed; "
            "add images"
        )
    bad = np.flatnonzero(~np.isfinite(np.asarray(features)).all(axis=1))
    if bad.size:
        raise UserError(
            f"{name}: {bad.size} of {len(features)} feature vectors are not finite, the first at "
            f"row {bad[0]}; leave those images out or look at their pixels"
        )


def check_pair(real: Features, synthetic: Features, *, at_least: int = 2) -> None:
    """Check two sets that are to be compared.

    Args:
        real: [n, d].
        synthetic: [m, d].
        at_least: The fewest vectors that the metric can work with, in each set.

    Raises:
        UserError: If a set cannot be measured, or the widths differ.
    """
    check_features("real", real, at_least=at_least)
    check_features("synthetic", synthetic, at_least=at_least)
    check_widths(real.shape[1], synthetic.shape[1])


def check_widths(real: int, synthetic: int) -> None:
    """Check that two sets can come from one network.

    Args:
        real: Width of the real features.
        synthetic: Width of the synthetic features.

    Raises:
        UserError: If the widths differ.
    """
    if real != synthetic:
        raise UserError(
            f"real features are {real} wide and synthetic ones {synthetic}: "
            "compute both with the same network"
        )
