"""Does a model give back what it was trained on? Nearest training images, and a calibrated alarm.

A near neighbour alone proves nothing: chest X-rays are alike. The yardstick are real images of
patients outside of training, whose nearest training images are near by nature alone:

    (1)  d(x) = min over training images t of |f(x) - f(t)|
    (2)  x is suspicious where d(x) is below the threshold of alarm.py, set by d of held-out real
         images; about 1 % of images of other patients are, more where few patients are held out

The yardstick must be of the training images' kind. From another hospital or another data set
every held-out image lies far away, and what a model drew well is "nearer than other patients are".
Training images, each seen from those of other patients, tell: see `is_of_another_origin`.

f is a feature network, or the pixels themselves: the middle 28 x 28 of 32 x 32 grey cells, of mean
0 and length 1, which a change of brightness or contrast does not move; and the smallest distance
over displacements of up to 2 cells in half cells, as a shifted copy is a copy.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from medsd_jax.evaluation.memorization.alarm import Alarm, is_of_another_origin, make_alarm
from medsd_jax.evaluation.metrics.feature_sets import Features
from medsd_jax.evaluation.metrics.neighbours import nearest
from medsd_jax.evaluation.reports.evaluation import NearestInSpace, SuspiciousImage
from medsd_jax.vision.preprocessing import as_pixels, resize

CELLS, MARGIN = 32, 2
_FINE = 2  # pixels of a cell's side: displacements are whole pixels
NUM_LISTED = 50
"""Images that the report lists, the most suspicious first."""


PROBES = 200
"""Training images, of as many patients, that are seen from those of others."""


@dataclasses.dataclass(frozen=True, eq=False)
class NearestImages:
    """Nearest training images in one space.

    Attributes:
        alarm: the threshold of (2), and how often it is passed by chance.
        held_out: [h] float32, (1) of held-out real images, ascending.
        distances: [m] float32, (1) of synthetic images.
        neighbours: [m] int32, which training image is the nearest.
        training: [t] float32, (1) of training images among those of other patients.
        num_units: how many of the m synthetic images are independent draws; all if None.
    """

    alarm: Alarm
    held_out: np.ndarray
    distances: np.ndarray
    neighbours: np.ndarray
    training: np.ndarray
    num_units: int | None = None

    @property
    def threshold(self) -> float:
        """Of the alarm."""
        return self.alarm.threshold

    @property
    def ratio(self) -> np.ndarray:
        """[m] float64, distance over threshold: below 1 is suspicious, 0 is a copy."""
        return self.distances / max(self.threshold, np.finfo(np.float32).tiny)

    @property
    def doubt(self) -> str | None:
        """Why the alarm means nothing; None where nothing speaks against it."""
        if self.threshold == 0.0:
            return "held-out images are themselves among the training images"
        if is_of_another_origin(self.alarm, self.held_out, self.training):
            return (
                "the held-out images lie farther from the training images than these lie from each "
                "other: they are of another origin, or prepared otherwise, or the training set "
                "does not name the patients that have several images"
            )
        return None

    def report(self) -> NearestInSpace:
        """The report's entry; medians tell whether synthetic images lie nearer as a whole."""
        expected, low, high = self.alarm.by_chance(len(self.distances), num_units=self.num_units)
        within = float(np.median(self.training)) if len(self.training) else None
        return NearestInSpace(
            threshold=self.threshold,
            num_suspicious=int((self.distances < self.threshold).sum()),
            expected_by_chance=expected,
            by_chance_ci95=(low, high),
            alarm_rate=self.alarm.rate,
            num_held_out_patients=self.alarm.num_patients,
            doubt=self.doubt,
            median_distance=float(np.median(self.distances)),
            median_distance_of_held_out=float(np.median(self.held_out)),
            median_distance_within_training=within,
        )


def measure_memorization(
    train: Features,
    held_out: Features,
    synthetic: Features,
    *,
    train_patients: Sequence[str] | None = None,
    held_out_patients: Sequence[str] | None = None,
    synthetic_units: Sequence[str] | None = None,
) -> NearestImages:
    """Memorization in a feature space.

    Args:
        train: [n, d], of the images that the model was trained on.
        held_out: [h, d], of real images of other patients.
        synthetic: [m, d].
        train_patients: [n]; each image its own patient if None.
        held_out_patients: [h], likewise.
        synthetic_units: [m], equal for images that are no independent draws, such as those of
            one start noise; each its own if None.

    Raises:
        UserError: too few held-out patients for the alarm.
    """
    numbers = _numbers(train_patients, len(train))
    slots = _Slots()
    places = [slots.place(number) for number in numbers]
    rows = {place: row for row, place in enumerate(places) if place is not None}
    chosen = np.array([rows[place] for place in sorted(rows)], int)
    yardstick = nearest(held_out, train)[0][:, 0]
    alarm = make_alarm(yardstick, held_out_patients)
    distances, neighbours = (x[:, 0] for x in nearest(synthetic, train))
    training = _from_others(np.asarray(train)[chosen], train, numbers[chosen], numbers)
    training = training[np.isfinite(training)]
    num_units = _count(synthetic_units)
    return NearestImages(alarm, np.sort(yardstick), distances, neighbours, training, num_units)


def measure_memorization_in_pixels(
    train: Iterable[np.ndarray],
    held_out: Iterable[np.ndarray],
    synthetic: Iterable[np.ndarray],
    *,
    train_patients: Sequence[str] | None = None,
    held_out_patients: Sequence[str] | None = None,
    synthetic_units: Sequence[str] | None = None,
) -> NearestImages:
    """Memorization in pixels; each set is images [H, W] or [H, W, 3] uint8 of any sizes.

    Patients and units as `measure_memorization` takes them.
    """
    middle = _FINE * MARGIN
    windows, slots, probes = [], _Slots(), {}
    for row, small in enumerate(map(_small, train)):
        windows.append(_cut(small, middle, middle))
        place = slots.place(row if train_patients is None else train_patients[row])
        if place is not None:
            probes[place] = row, small
    reference = np.stack(windows)
    numbers = _numbers(train_patients, len(reference))

    def over_places(smalls: Sequence[np.ndarray], find: Callable[[np.ndarray], Any]) -> list[Any]:
        places = itertools.product(range(2 * middle + 1), repeat=2)
        return [find(np.stack([_cut(small, *place) for small in smalls])) for place in places]

    def to_train(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        result = over_places([_small(p) for p in images], lambda cut: nearest(cut, reference))
        distances, neighbours = (
            np.concatenate(parts, axis=1) for parts in zip(*result, strict=True)
        )
        best = distances.argmin(axis=1)[:, None]
        return tuple(np.take_along_axis(x, best, axis=1)[:, 0] for x in (distances, neighbours))

    yardstick, _ = to_train(held_out)
    alarm = make_alarm(yardstick, held_out_patients)
    rows, smalls = zip(*probes.values(), strict=True)
    own = numbers[list(rows)]
    training = np.min(
        over_places(smalls, lambda cut: _from_others(cut, reference, own, numbers)), axis=0
    )
    training = training[np.isfinite(training)]
    num_units = _count(synthetic_units)
    return NearestImages(alarm, np.sort(yardstick), *to_train(synthetic), training, num_units)


def most_suspicious(
    by_space: Mapping[str, NearestImages], synthetic: Sequence[str], train: Sequence[str]
) -> tuple[SuspiciousImage, ...]:
    """The images that come nearest to training images in any of the spaces, worst first.

    Args:
        by_space: memorization in each space.
        synthetic: [m] names.
        train: [n] names.

    Returns:
        At most `NUM_LISTED`; ratio is the smallest over the spaces.
    """
    spaces = list(by_space)
    ratios = np.stack([by_space[space].ratio for space in spaces])
    best = ratios.argmin(axis=0)
    order = np.argsort(ratios.min(axis=0), kind="stable")[:NUM_LISTED]
    return tuple(
        SuspiciousImage(
            image=synthetic[i],
            nearest=train[by_space[spaces[best[i]]].neighbours[i]],
            space=spaces[best[i]],
            ratio=float(ratios[best[i], i]),
        )
        for i in order
    )


class _Slots:
    """Which training images are probes: one of each of `PROBES` patients, drawn at random."""

    def __init__(self):
        self._rng = np.random.default_rng(0)
        self._seen: set[Any] = set()

    def place(self, patient: Any) -> int | None:
        """Where the next image belongs, in place of what is there already; None: nowhere."""
        if patient in self._seen:
            return None
        self._seen.add(patient)
        place = len(self._seen) - 1
        if place >= PROBES:
            place = int(self._rng.integers(place + 1))
        return place if place < PROBES else None


def _count(units: Sequence[str] | None) -> int | None:
    return None if units is None else len(set(units))


def _numbers(patients: Sequence[str] | None, count: int) -> np.ndarray:
    """[count] int, a number a patient."""
    if patients is None:
        return np.arange(count)
    assert len(patients) == count, (len(patients), count)
    return np.unique(np.asarray(patients), return_inverse=True)[1]


def _from_others(
    probes: np.ndarray, train: Features, own: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """(1) of [t, d] probes among the images of other patients: [t]; inf if there is none."""
    most = np.bincount(numbers)[own].max()
    distances, rows = nearest(probes, train, min(int(most) + 1, len(train)))
    return np.where(numbers[rows] == own[:, None], np.inf, distances).min(axis=1)


def _small(image: np.ndarray) -> np.ndarray:
    """-> [64, 64] float32 grey, antialiased."""
    grey = as_pixels(image).mean(axis=2, keepdims=True)
    return resize(grey, _FINE * CELLS, _FINE * CELLS, Image.Resampling.BILINEAR)[..., 0]


def _cut(small: np.ndarray, top: int, left: int) -> np.ndarray:
    """A window of 28 x 28 cells as a vector of mean 0 and length 1; a flat one is all zeros."""
    cells = CELLS - 2 * MARGIN
    size = _FINE * cells
    window = small[top : top + size, left : left + size]
    window = window.reshape(cells, _FINE, cells, _FINE).mean(axis=(1, 3)).reshape(-1)
    window = window - window.mean()
    return window / max(float(np.linalg.norm(window)), 1e-6)
