"""Does a model give back what it was trained on? Nearest training pictures, and a calibrated alarm.

A near neighbour alone proves nothing: chest X-rays are alike. The yardstick are real pictures of
patients outside of training, whose nearest training pictures are near by nature alone:

    (1)  d(x) = min over training pictures t of |f(x) - f(t)|
    (2)  threshold = the q-quantile of d over held-out real pictures
    (3)  x is suspicious where d(x) < threshold; of m pictures that are no copies, about q m are

f is a feature network, or the pixels themselves: the middle 28 x 28 of 32 x 32 grey cells, of mean
0 and length 1, which a change of brightness or contrast does not move; and the smallest distance
over displacements of up to 2 cells in half cells, as a shifted copy is a copy.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.evaluation.feature_sets import Features
from medsd_jax.evaluation.features.preprocessing import as_pixels, resize
from medsd_jax.evaluation.neighbours import nearest

QUANTILE = 0.01
"""q: one in a hundred pictures of strangers is called suspicious."""
CELLS, MARGIN = 32, 2
_FINE = 2  # pixels of a cell's side: displacements are whole pixels
TOLD = 50
"""Pictures that the report lists, the most suspicious first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """Nearest training pictures in one space.

    Attributes:
        threshold: (2).
        held_out: [h] float32, (1) of held-out real pictures, ascending.
        distances: [m] float32, (1) of synthetic pictures.
        neighbours: [m] int32, which training picture is the nearest.
    """

    threshold: float
    held_out: np.ndarray
    distances: np.ndarray
    neighbours: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """[m] float64, distance over threshold: below 1 is suspicious, 0 is a copy."""
        return self.distances / max(self.threshold, np.finfo(np.float32).tiny)

    def to_dict(self) -> dict[str, Any]:
        """The report's entry; medians tell whether synthetic pictures lie nearer as a whole."""
        return {
            "threshold": self.threshold,
            "num_suspicious": int((self.ratio < 1).sum()),
            "expected_by_chance": QUANTILE * len(self.distances),
            "median_distance": float(np.median(self.distances)),
            "median_distance_of_held_out": float(np.median(self.held_out)),
        }


def audit_features(train: Features, held_out: Features, synthetic: Features) -> Audit:
    """The audit in a feature space.

    Args:
        train: [n, d], of the pictures that the model was trained on.
        held_out: [h, d], of real pictures of other patients.
        synthetic: [m, d].

    Raises:
        UserError: too few held-out pictures for the quantile.
    """
    _check_held_out(len(held_out))
    yardstick = nearest(held_out, train)[0][:, 0]
    distances, neighbours = (x[:, 0] for x in nearest(synthetic, train))
    return _judge(yardstick, distances, neighbours)


def audit_pixels(
    train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], synthetic: Iterable[np.ndarray]
) -> Audit:
    """The audit in pixels; each set is pictures [H, W] or [H, W, 3] uint8 of any sizes."""
    middle = _FINE * MARGIN
    reference = np.stack([_cut(small, middle, middle) for small in map(_small, train)])

    def to_train(pictures: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        smalls = [_small(picture) for picture in pictures]
        places = list(itertools.product(range(2 * middle + 1), repeat=2))
        found = [
            nearest(np.stack([_cut(s, *place) for s in smalls]), reference) for place in places
        ]
        distances, neighbours = (
            np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)
        )
        best = distances.argmin(axis=1)[:, None]
        return tuple(np.take_along_axis(x, best, axis=1)[:, 0] for x in (distances, neighbours))

    yardstick, _ = to_train(held_out)
    _check_held_out(len(yardstick))
    return _judge(yardstick, *to_train(synthetic))


def most_suspicious(
    audits: Mapping[str, Audit], synthetic: Sequence[str], train: Sequence[str]
) -> list[dict[str, Any]]:
    """The pictures that come nearest to training pictures in any of the spaces, worst first.

    Args:
        audits: by space.
        synthetic: [m] names.
        train: [n] names.

    Returns:
        At most `TOLD` of {picture, nearest, space, ratio}; ratio is the smallest over the spaces.
    """
    spaces = list(audits)
    ratios = np.stack([audits[space].ratio for space in spaces])
    best = ratios.argmin(axis=0)
    order = np.argsort(ratios.min(axis=0), kind="stable")[:TOLD]
    return [
        {
            "picture": synthetic[i],
            "nearest": train[audits[spaces[best[i]]].neighbours[i]],
            "space": spaces[best[i]],
            "ratio": float(ratios[best[i], i]),
        }
        for i in order
    ]


def _judge(yardstick: np.ndarray, distances: np.ndarray, neighbours: np.ndarray) -> Audit:
    threshold = float(np.quantile(yardstick.astype(np.float64), QUANTILE))
    return Audit(threshold, np.sort(yardstick), distances, neighbours)


def _check_held_out(count: int) -> None:
    least = round(0.2 / QUANTILE)
    if count < least:
        raise UserError(
            f"{count} held-out pictures cannot tell what is near by chance; give {least} or more"
        )


def _small(picture: np.ndarray) -> np.ndarray:
    """-> [64, 64] float32 grey, antialiased."""
    grey = as_pixels(picture).mean(axis=2, keepdims=True)
    return resize(grey, _FINE * CELLS, _FINE * CELLS, Image.Resampling.BILINEAR)[..., 0]


def _cut(small: np.ndarray, top: int, left: int) -> np.ndarray:
    """A window of 28 x 28 cells as a vector of mean 0 and length 1; a flat one is all zeros."""
    cells = CELLS - 2 * MARGIN
    side = _FINE * cells
    window = small[top : top + side, left : left + side]
    window = window.reshape(cells, _FINE, cells, _FINE).mean(axis=(1, 3)).reshape(-1)
    window = window - window.mean()
    return window / max(float(np.linalg.norm(window)), 1e-6)
