"""What an autoencoder keeps of images (E1 of arXiv 2210.04133), in numbers.

Symbols: x an image [H, W, 3] in [0, 1], y what the autoencoder gives back, clipped to [0, 1]; g
the mean of the three channels; sums and means run over pixels.

    (1)  e = g(y) - g(x)
    (2)  RMSE, PSNR, SSIM and MS-SSIM of g(x) and g(y), by similarity.py
    (3)  cast_RG = sqrt(mean ((y_R - y_G) - (x_R - x_G))^2), likewise GB and BR: how far the
         channels of a grey image come apart
    (4)  band k holds the n_k pixels with k / 4 <= g(x) < (k + 1) / 4, the last one its end too:
         share_k = n_k / n,   bias_k = sum_k e / n_k,   RMSE_k = sqrt(sum_k e^2 / n_k)

(2) and (3) are computed of each image and averaged over images; (4) pools the pixels of all
images. Intervals resample patients.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from medsd_jax.arrays import from_uint8_rounded_once, to_uint8
from medsd_jax.classifier.model import Classifier, predict
from medsd_jax.errors import UserError
from medsd_jax.evaluation.autoencoder import Autoencoder
from medsd_jax.evaluation.images.image_sets import ImageSet, resize_to_square
from medsd_jax.evaluation.metrics.intervals import bootstrap_interval
from medsd_jax.evaluation.metrics.similarity import most_scales, ms_ssim, psnr, rmse, ssim
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.reconstruction import (
    Band,
    ColourCast,
    CriteriaResult,
    Criterion,
    Similarity,
    Spread,
)
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.parallel.batching import batch_rows, filled, over_devices
from medsd_jax.parallel.mesh import batch_sharding

SIMILARITY = ("rmse", "psnr", "ssim", "ms_ssim")
COLOUR_CAST = ("red_green", "green_blue", "blue_red")
BANDS = ("air", "lung", "soft_tissue", "bone")
"""Names for orientation: which grey a tissue has is a matter of each image's window."""
MAX_PSNR = 100.0
"""In decibels, of images that are equal or nearly so: infinity has no mean."""
QUANTILES = (0.05, 0.5, 0.95)
CAVEAT = (
    "The thresholds are conventions of lossy image compression, not a medical validation: they "
    "say how like two images are on average, and not whether a finding can still be seen."
)
_CASES_KEPT = 8


@dataclass(frozen=True)
class Case:
    """One image with its reconstruction.

    Attributes:
        row: where in the set it stands.
        original: [S, S, 3] uint8, as the autoencoder was shown it.
        reconstruction: [S, S, 3] uint8.
        values: its numbers by their names in `SIMILARITY`.
    """

    row: int
    original: np.ndarray
    reconstruction: np.ndarray
    values: Mapping[str, float]


@dataclass(frozen=True)
class Measurement:
    """The numbers of each measured image.

    Attributes:
        rows: [n] int, where in their set the images stand.
        values: name of `SIMILARITY` or `COLOUR_CAST` -> [n] float32.
        bands: "count", "error" and "squared" -> [n, bands] float64: pixels of each band, sums of e
            and of e^2 over them.
        num_scales: of MS-SSIM.
        calls: the classifier's probabilities of the originals and of the reconstructions, each
            [n, labels] float32; None without a classifier.
        worst: the images with the largest RMSE, largest first.
    """

    rows: np.ndarray
    values: Mapping[str, np.ndarray]
    bands: Mapping[str, np.ndarray]
    num_scales: int
    calls: tuple[np.ndarray, np.ndarray] | None
    worst: tuple[Case, ...]


def compare(originals: jax.Array, reconstructions: jax.Array) -> dict[str, jax.Array]:
    """Computes (2), (3) and the sums of (4) of each pair.

    Args:
        originals: [B, S, S, 3] float32 in [0, 1].
        reconstructions: likewise, clipped.

    Returns:
        The names of `SIMILARITY` and `COLOUR_CAST` -> [B]; count, error, squared -> [B, bands].
    """
    x, y = (jnp.mean(p, axis=-1, keepdims=True) for p in (originals, reconstructions))
    result = {
        "rmse": rmse(x, y),
        "psnr": jnp.minimum(psnr(x, y), MAX_PSNR),
        "ssim": ssim(x, y),
        "ms_ssim": ms_ssim(x, y, num_scales=most_scales(*x.shape[1:3])),
    }
    apart = [p - jnp.roll(p, -1, axis=-1) for p in (reconstructions, originals)]
    casts = jnp.sqrt(jnp.mean(jnp.square(apart[0] - apart[1]), axis=(1, 2)))
    result |= {name: casts[:, i] for i, name in enumerate(COLOUR_CAST)}
    band = jnp.minimum(jnp.floor(x * len(BANDS)), len(BANDS) - 1)
    inside = band == jnp.arange(len(BANDS), dtype=band.dtype)[None, None, None]
    error = y - x
    sums = {"count": jnp.ones_like(error), "error": error, "squared": jnp.square(error)}
    return result | {
        name: jnp.sum(jnp.where(inside, value, 0.0), axis=(1, 2)) for name, value in sums.items()
    }


def measure(
    autoencoder: Autoencoder,
    images: ImageSet,
    rows: Sequence[int],
    *,
    batch_size: int,
    mesh: Mesh,
    classifier: Classifier | None = None,
) -> Measurement:
    """Reconstructs images batch by batch over all devices and compares.

    Args:
        autoencoder: from `open_autoencoder`.
        images: the set.
        rows: which of its images, in ascending order.
        batch_size: images at once on each device.
        mesh: the devices.
        classifier: shown both images, in 8 bits and at its own size.

    Raises:
        UserError: there are fewer than 2 images, or the reconstruction of one is not finite.
    """
    if len(rows) < 2:
        raise UserError(
            f"{len(rows)} image of {images.name}: a spread needs at least 2; give more images"
        )
    pixels, mode = autoencoder.image_size, autoencoder.resize_mode
    size = batch_rows(len(rows), batch_size, mesh)
    run = jax.jit(
        functools.partial(_reconstruct, autoencoder.reconstruct), out_shardings=batch_sharding(mesh)
    )
    reconstruct = over_devices(run, autoencoder.params, mesh)
    result: list[dict[str, np.ndarray]] = []
    calls: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    worst: list[Case] = []
    for start in tqdm(range(0, len(rows), size), unit="batch", desc="reconstructed"):
        stop_if_asked()
        batch = rows[start : start + size]
        originals = resize_to_square([images.read(row) for row in batch], pixels, mode)
        images_u8, finite, numbers = reconstruct(originals, size)
        if not finite.all():
            row = batch[int(np.argmin(finite))]
            raise UserError(
                f"the VAE gives numbers that are not finite (NaN or infinite) for image {row} of "
                f"{images.name}, so nothing can be measured: take another VAE, or another copy"
            )
        result.append(numbers)
        if classifier is not None:
            for side_calls, shown in zip(calls, (originals, images_u8), strict=True):
                input_u8 = resize_to_square(
                    list(filled(shown, size)), classifier.image_size, classifier.resize_mode
                )
                side_calls.append(predict(classifier, input_u8, mesh)[: len(batch)])
        for i, row in enumerate(batch):
            values = {name: float(numbers[name][i]) for name in SIMILARITY}
            worst.append(Case(row, originals[i], images_u8[i], values))
        worst = sorted(worst, key=lambda case: -case.values["rmse"])[:_CASES_KEPT]
    numbers = {name: np.concatenate([part[name] for part in result]) for name in result[0]}
    return Measurement(
        rows=np.asarray(rows),
        values={name: numbers[name] for name in (*SIMILARITY, *COLOUR_CAST)},
        bands={name: numbers[name].astype(np.float64) for name in ("count", "error", "squared")},
        num_scales=most_scales(pixels, pixels),
        calls=None if classifier is None else tuple(map(np.concatenate, calls)),
        worst=tuple(worst),
    )


def summarise(
    measured: Measurement, patient_ids: Sequence[str], *, seed: int
) -> tuple[Similarity, ColourCast, tuple[Band, ...]]:
    """The report's entries similarity, colour_cast and bands.

    Args:
        measured: from `measure`.
        patient_ids: [n], of the measured images: the unit of the intervals.
        seed: of the bootstrap.
    """
    of_patients = functools.partial(estimate, units=np.asarray(patient_ids), seed=seed)
    spreads = {}
    for name in SIMILARITY:
        values = measured.values[name].astype(np.float64)
        spreads[name] = Spread(
            mean=of_patients(np.mean, values),
            std=float(values.std(ddof=1)),
            quantiles={f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
        )
    count, error, squared_error = (measured.bands[k] for k in ("count", "error", "squared"))
    bands = []
    for k, name in enumerate(BANDS):
        is_there = count[:, k].any()
        sums = {"bias": error[:, k], "rmse": squared_error[:, k]}
        bands.append(
            Band(
                name=name,
                low=k / len(BANDS),
                high=(k + 1) / len(BANDS),
                share=of_patients(_ratio, count[:, k], count.sum(axis=1)),
                bias=of_patients(_ratio, sums["bias"], count[:, k]) if is_there else None,
                rmse=of_patients(_root, sums["rmse"], count[:, k]) if is_there else None,
            )
        )
    colour_cast = {
        name: of_patients(np.mean, measured.values[name].astype(np.float64)) for name in COLOUR_CAST
    }
    similarity = Similarity(num_scales=measured.num_scales, **spreads)
    return similarity, ColourCast(**colour_cast), tuple(bands)


def compare_with_thresholds(measured: Measurement, minimum: Mapping[str, float]) -> CriteriaResult:
    """Says whether the means reach their thresholds.

    Args:
        measured: from `measure`.
        minimum: name of `SIMILARITY` -> the smallest mean that is good enough.
    """
    criteria = []
    for name, threshold in minimum.items():
        values = measured.values[name].astype(np.float64)
        criteria.append(
            Criterion(
                name=name,
                minimum=float(threshold),
                value=float(values.mean()),
                passed=bool(values.mean() >= threshold),
                share_below=float(np.mean(values < threshold)),
            )
        )
    good_enough = all(criterion.passed for criterion in criteria)
    return CriteriaResult(good_enough=good_enough, criteria=tuple(criteria), caveat=CAVEAT)


def estimate(
    statistic: Callable[..., float], *arrays: np.ndarray, units: np.ndarray, seed: int
) -> Estimate:
    """A number with its interval over units, or without one where there is a single unit."""
    if len(set(units)) < 2:
        return Estimate(float(statistic(*arrays)), 1)
    return bootstrap_interval(statistic, *arrays, units=units, seed=seed)


def _reconstruct(reconstruct: Callable, params: Any, originals_u8: jax.Array):
    """[B, S, S, 3] uint8 -> reconstructions likewise, [B] whether finite, what `compare` says."""
    images = reconstruct(params, from_uint8_rounded_once(originals_u8))
    finite = jnp.isfinite(images).all(axis=(1, 2, 3))  # no 8-bit image can say so
    # The metrics are defined on [0, 1].
    originals = originals_u8.astype(jnp.float32) / 255.0
    reconstructions = jnp.clip((images + 1.0) / 2.0, 0.0, 1.0)
    return to_uint8(images), finite, compare(originals, reconstructions)


def _ratio(parts: np.ndarray, whole: np.ndarray) -> float:
    return float(parts.sum() / whole.sum()) if whole.any() else float("nan")


def _root(squares: np.ndarray, count: np.ndarray) -> float:
    return float(np.sqrt(_ratio(squares, count)))
