"""Training the classifier: a DenseNet on labelled images, several findings per image.

The step is pure, as the diffusion's is: ``step(state, frozen, batch, rng) -> (state, metrics)``.
Unknown labels (NaN) carry no loss. Nothing is frozen in a network with group norm, and the stored
statistics are in one with batch norm: see features/densenet.py.
"""

import numpy as np
from scipy.optimize import minimize

_MIN_SLOPE = 1e-3
"""Of calibration, for scores of unit variance: all probabilities are then nearly the base rate."""


def calibrate(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of each label's probability, by Platt (1999).

    Maximises the likelihood of sigmoid(a logit + b) for targets drawn in from 0 and 1:
    (N1 + 1) / (N1 + 2) for the N1 present and 1 / (N0 + 2) for the N0 absent ones, so that a
    classifier that separates them perfectly keeps finite confidence. The slope stays positive: few
    images could ask for an inverted order, which would be their chance and not the classifier's.
    A label with images of one kind only stays as it is.

    Args:
        logits: [n, labels], of images that the classifier was not trained on.
        targets: [n, labels], 1, 0 or NaN.

    Returns:
        slope and intercept, each [labels] float32.
    """
    slopes, intercepts = np.ones(logits.shape[1]), np.zeros(logits.shape[1])
    for label in range(logits.shape[1]):
        known = ~np.isnan(targets[:, label])
        score, present = logits[known, label].astype(np.float64), targets[known, label] > 0.5
        if present.all() or not present.any():
            continue
        high = (present.sum() + 1) / (present.sum() + 2)
        low = 1 / ((~present).sum() + 2)
        expected = np.where(present, high, low)
        spread = score.std() or 1.0  # the search is then as easy whatever the logits' scale

        def negative_likelihood(ab, score=score / spread, expected=expected) -> float:
            z = ab[0] * score + ab[1]
            return float(np.mean(np.logaddexp(0, z) - expected * z))

        result = minimize(
            negative_likelihood, np.array([1.0, 0.0]), bounds=[(_MIN_SLOPE, None), (None, None)]
        )
        slopes[label], intercepts[label] = result.x[0] / spread, result.x[1]
    return slopes.astype(np.float32), intercepts.astype(np.float32)
