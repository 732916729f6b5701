"""When is a distance to the nearest training image suspiciously small, and how often by chance?

Symbols: d the distances of h held-out images of P patients, (j) the j-th smallest of them, q the
share of other patients that the alarm should go off for.

    (1)  threshold = d_(j),   j = max(1, round(q (h + 1)))
    (2)  rate = P / (P + 1) mean_p mean_{i in p} [d_i < (j)-th smallest without patient p]
    (3)  of m images of other patients of u units suspicious: m / u times a beta-binomial of u,
         a = J, b = J (1 / rate - 1)

Another patient of the held-out images' kind is below d_(j) with the chance j / (h + 1) whatever the
distances' distribution, where each image is of another patient: (2) is then just that. Images of
one patient are alike, and their lowest distances come together; (2) asks each patient in turn as a
other patient, and its factor is what P patients in the place of P - 1 change. Few held-out patients
make the alarm more frequent than q: the lowest of 20 is passed by one other patient in 21.

The threshold is itself drawn by chance, so (3) is wider than a binomial: its rate follows the beta
distribution of an order statistic, J being the patients with a distance up to the threshold. Images
of one unit, such as those of one start noise, are alike: how much is not known, and (3) takes them
for equal, which makes it too wide rather than too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float

from medsd_jax.errors import UserError

QUANTILE = 0.01
"""q: one in a hundred images of other patients, where there are 99 held-out patients or more."""
MIN_PATIENTS = 20
"""The alarm then goes off for one other patient in 21; with fewer it says next to nothing."""

FEW_PATIENTS = 99
"""With fewer, more than one in a hundred images of other patients may set off the alarm."""


@dataclass(frozen=True)
class Alarm:
    """A threshold and what it does to other patients.

    Attributes:
        threshold: (1).
        rate: (2), the share of images of other patients below the threshold.
        num_patients: P.
        patients_below: J of (3).
    """

    threshold: float
    rate: float
    num_patients: int
    patients_below: int

    def by_chance(
        self, count: int, level: float = 0.95, *, num_units: int | None = None
    ) -> tuple[float, int, int]:
        """How many images of other patients are suspicious.

        Args:
            count: m, images.
            level: Of the interval.
            num_units: u of (3), how many of these images are independent draws; all if None.

        Returns:
            The mean, and both ends of (3)'s interval.
        """
        units = count if num_units is None else num_units
        # Equal distances at the threshold can make (2) 0.
        rate = self.rate or self.patients_below / (self.num_patients + 1)
        spread = scipy.stats.betabinom(
            units, self.patients_below, self.patients_below * (1.0 / rate - 1.0)
        )
        tail = (1.0 - level) / 2.0
        low, high = (round(count / units * spread.ppf(p)) for p in (tail, 1.0 - tail))
        return self.rate * count, low, high


def make_alarm(held_out: Float[np.ndarray, " h"], patients: Sequence[str] | None = None) -> Alarm:
    """Compute (1) and (2).

    Args:
        held_out: [h], distances of held-out images to their nearest training images.
        patients: [h]; each image its own patient if None.

    Raises:
        UserError: If there are too few patients.
    """
    num_patients = len(held_out) if patients is None else len(set(patients))
    if num_patients < MIN_PATIENTS:
        raise UserError(
            f"{len(held_out)} held-out images of {num_patients} patients cannot tell what is near "
            f"by chance; give images of {MIN_PATIENTS} patients or more"
        )
    return alarm_at(held_out, patients, max(1, round(QUANTILE * (len(held_out) + 1))))


def alarm_at(held_out: Float[np.ndarray, " h"], patients: Sequence[str] | None, rank: int) -> Alarm:
    """Compute (2) of the alarm that goes off below the j-th smallest distance.

    Args:
        held_out: [h].
        patients: [h]; each image its own patient if None.
        rank: j, in [1, h].
    """
    distances = np.asarray(held_out, np.float64)
    labels = np.arange(len(distances)) if patients is None else np.asarray(patients)
    assert len(labels) == len(distances), (len(labels), len(distances))
    names, of_image = np.unique(labels, return_inverse=True)
    threshold = np.partition(distances, rank - 1)[rank - 1]
    # Without the other patients the threshold stays, and their own images are not below it.
    low = np.unique(of_image[distances <= threshold])
    shares = []
    for patient in low:
        own = of_image == patient
        others = distances[~own]
        # A single patient has no other patient to be compared with.
        limit = np.partition(others, min(rank, len(others)) - 1) if len(others) else [np.inf]
        shares.append(np.mean(distances[own] < limit[min(rank, len(limit)) - 1]))
    rate = sum(shares) / (len(names) + 1)
    return Alarm(float(threshold), float(rate), len(names), len(low))


def is_of_another_origin(
    alarm: Alarm, held_out: Float[np.ndarray, " h"], training: Float[np.ndarray, " t"]
) -> bool:
    """Whether held-out images lie farther from training images than these lie from each other.

    The alarm then goes off for anything that is like the training images, copied or not: it means
    nothing. Asked is both: is the alarm set off by more training images, each seen from those of
    other patients, than by other patients in 999 of 1,000 cases; and is the median held-out image
    farther away than three quarters of the training images. The second spares a training set with
    near copies among its own images, as long as they are fewer than a third or so.

    Args:
        alarm: From the held-out images.
        held_out: [h], their distances to the nearest training image.
        training: [t], distances of training images of t patients to the nearest one of another.
    """
    if len(training) < MIN_PATIENTS:
        return False  # too few to tell
    _, _, most = alarm.by_chance(len(training), level=0.998)
    set_off = int(np.sum(training < alarm.threshold))
    farther = np.median(held_out) > np.quantile(training, 0.75)
    return bool(set_off > most and farther)
