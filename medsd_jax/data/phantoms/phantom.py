"""Synthetic chest radiographs with captions: the embedded data that needs no download.

These images are drawn, not measured: no patient stands behind them, and a number measured on
them says nothing about medicine. They show what a frontal film shows (lungs, ribs, clavicles,
spine, heart, mediastinum, diaphragm, soft tissue, a side marker) and findings of known side and
size, so that the whole pipeline can be tried and tested with a truth to compare against.

Image i of seed s depends on (s, i) alone. Consecutive images may belong to one patient, who
then has the same anatomy in all of them. The patient's left is on the image's right.
"""

import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medsd_jax.bounds import MAX_PHANTOMS
from medsd_jax.data.findings import (
    CARDIOMEGALY,
    EFFUSION,
    NODULE,
    PNEUMOTHORAX,
    Finding,
    varied_caption,
)
from medsd_jax.data.phantoms.render import Anatomy, Exposure, render
from medsd_jax.data.records import Record, SourceRecords
from medsd_jax.errors import UserError

FINDINGS = (EFFUSION, CARDIOMEGALY, PNEUMOTHORAX, NODULE)
MIN_SIZE, MAX_SIZE = 16, 1024

_BLOCK = 12  # patients never cross a block of this many images
_STREAM_GROUPING, _STREAM_PATIENT, _STREAM_IMAGE = 0, 1, 2

_EFFUSION_LEVELS = {"small": (0.24, 0.34), "moderate": (0.40, 0.54), "large": (0.64, 0.88)}
_PNEUMOTHORAX_GAPS = {"small": (0.07, 0.09), "moderate": (0.12, 0.17), "large": (0.21, 0.28)}
_NODULE_RADII = {"small": (0.042, 0.055), "large": (0.075, 0.095)}
_HEART_RATIOS = {"mild": (0.55, 0.59), "moderate": (0.60, 0.64), "marked": (0.65, 0.69)}
_ZONE_CENTRES = {"upper": -0.38, "mid": -0.05, "lower": 0.22}


@dataclasses.dataclass(frozen=True)
class Phantom:
    """The full description of one image, before it is drawn.

    Attributes:
        key: unique name.
        patient_id: equal for images of one patient.
        findings: what is visible; empty for a normal image.
        view: "PA" or "AP".
        sex: "F" or "M".
        caption: one line.
        anatomy, exposure, geometry: what `render` takes.
    """

    key: str
    patient_id: str
    findings: tuple[Finding, ...]
    view: str
    sex: str
    caption: str
    anatomy: Anatomy
    exposure: Exposure
    geometry: dict[str, float]

    def render(self, image_size: int = 64) -> np.ndarray:
        """Draw it -> [image_size, image_size] uint8, grey."""
        return render(self.anatomy, self.exposure, self.findings, self.geometry, image_size)

    def labels(self) -> dict[str, str | int | float]:
        """Return yes/no labels, side and size of each finding kind, and the heart's true ratio."""
        by_kind = {f.kind: f for f in self.findings}
        labels: dict[str, str | int | float] = {"no_finding": int(not self.findings)}
        for kind in FINDINGS:
            name, result = kind.replace(" ", "_"), by_kind.get(kind)
            labels[name] = int(result is not None)
            if kind != CARDIOMEGALY:
                labels[f"{name}_side"] = result.side if result else ""
            labels[f"{name}_size"] = result.size if result else ""
        labels["cardiothoracic_ratio"] = round(self.anatomy.cardiothoracic_ratio, 3)
        labels["view"], labels["sex"] = self.view, self.sex
        return labels


@functools.lru_cache(maxsize=16)
def _patients_of_block(seed: int, block: int) -> tuple[int, ...]:
    """Return for each image of a block the number of its patient within the block."""
    rng = np.random.default_rng([seed, _STREAM_GROUPING, block])
    owners: list[int] = []
    while len(owners) < _BLOCK:
        owners += [len(set(owners))] * int(rng.choice(4, p=[0.55, 0.2, 0.15, 0.1]) + 1)
    return tuple(owners[:_BLOCK])


@functools.lru_cache(maxsize=16)
def _patient(seed: int, block: int, number: int, allowed: tuple[str, ...]):
    """Return (anatomy, sex, heart finding or None) of one patient."""
    rng = np.random.default_rng([seed, _STREAM_PATIENT, block, number])
    sex = "F" if rng.random() < 0.5 else "M"
    large_heart = rng.random() < 0.2 and CARDIOMEGALY in allowed
    heart_size = str(rng.choice(list(_HEART_RATIOS)))
    ratio = rng.uniform(*(_HEART_RATIOS[heart_size] if large_heart else (0.41, 0.485)))
    right_dome = rng.uniform(0.30, 0.42)
    anatomy = Anatomy(
        lung_half_width=rng.uniform(0.70, 0.83),
        lung_apex=rng.uniform(-0.80, -0.70),
        lung_squareness=rng.uniform(2.0, 2.5),
        dome=(right_dome, right_dome + rng.uniform(0.01, 0.07)),
        dome_curve=rng.uniform(0.085, 0.145),
        cardiothoracic_ratio=ratio,
        heart_tilt=rng.uniform(0.35, 0.70),
        heart_left_share=rng.uniform(0.64, 0.71),
        aortic_knob=rng.uniform(0.085, 0.125),
        mediastinum=rng.uniform(0.10, 0.14),
        rib_spacing=rng.uniform(0.140, 0.180),
        rib_offset=rng.uniform(0.0, 0.15),
        rib_slope=rng.uniform(0.25, 0.42),
        rib_strength=rng.uniform(0.7, 1.35),
        clavicle_slope=rng.uniform(0.10, 0.32),
        fat=rng.uniform(0.0, 0.14),
        breast=rng.uniform(0.03, 0.11) if sex == "F" else 0.0,
        gastric_bubble=rng.uniform(0.10, 0.30) if rng.random() < 0.55 else 0.0,
        vessel_seed=int(rng.integers(2**31)),
    )
    heart = Finding(CARDIOMEGALY, size=heart_size) if large_heart else None
    return anatomy, sex, heart


def _draw_finding(
    rng: np.random.Generator, allowed: tuple[str, ...], large_heart: bool
) -> Finding | None:
    """Draw the image's own finding (not the heart's); None for none."""
    kinds = np.array([EFFUSION, PNEUMOTHORAX, NODULE, ""])
    weights = np.array([0.32 * (EFFUSION in allowed), 0.11 * (PNEUMOTHORAX in allowed),
                        0.11 * (NODULE in allowed), 0.46])  # fmt: skip
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    side = "left" if rng.random() < 0.5 else "right"
    if kind == EFFUSION:
        side = "bilateral" if rng.random() < 0.18 else side
        return Finding(kind, side, str(rng.choice(list(_EFFUSION_LEVELS))))
    if kind == PNEUMOTHORAX:
        return Finding(kind, side, str(rng.choice(list(_PNEUMOTHORAX_GAPS))))
    if kind == NODULE:
        size = str(rng.choice(list(_NODULE_RADII)))
        zone = str(rng.choice(list(_ZONE_CENTRES)))
        # Behind a large heart a nodule would be in the labels but not in the image.
        return Finding(kind, side, size, "upper" if large_heart else zone)
    return None


def _draw_geometry(
    rng: np.random.Generator, finding: Finding | None, anatomy: Anatomy, inspiration: float
) -> dict[str, float]:
    geometry = dict.fromkeys(
        ("level_left", "level_right", "gap", "nodule_x", "nodule_y", "nodule_radius", "shift"), 0.0
    )
    if finding is None:
        return geometry
    sign = 1.0 if finding.side == "left" else -1.0
    if finding.kind == EFFUSION:
        for side in ("left", "right"):
            geometry[f"level_{side}"] = rng.uniform(*_EFFUSION_LEVELS[finding.size])
        if finding.size == "large" and finding.side != "bilateral":
            geometry["shift"] = -sign * rng.uniform(0.03, 0.09)
    elif finding.kind == PNEUMOTHORAX:
        geometry["gap"] = rng.uniform(*_PNEUMOTHORAX_GAPS[finding.size])
        if finding.size == "large":
            geometry["shift"] = -sign * rng.uniform(0.0, 0.06)
    else:
        radius = rng.uniform(*_NODULE_RADII[finding.size])
        above_diaphragm = min(anatomy.dome) + inspiration - radius - 0.03
        y = _ZONE_CENTRES[finding.zone] + rng.uniform(-0.08, 0.08)
        geometry["nodule_y"] = min(y, above_diaphragm)
        # The left lower zone lies half behind the heart: stay lateral of it there.
        reach = (0.62, 0.76) if finding.zone == "lower" else (0.38, 0.68)
        geometry["nodule_x"] = sign * rng.uniform(*reach) * anatomy.lung_half_width
        geometry["nodule_radius"] = radius
    return geometry


def _draw_exposure(rng: np.random.Generator, view: str) -> Exposure:
    marker = str(rng.choice(["L", "R", ""], p=[0.45, 0.35, 0.2]))
    return Exposure(
        rotation=float(np.clip(rng.normal(0.0, 0.035), -0.1, 0.1)),
        scale=rng.uniform(0.90, 1.08),
        shift=(rng.uniform(-0.05, 0.05), rng.uniform(-0.02, 0.08)),
        inspiration=rng.uniform(-0.10, 0.02) if view == "AP" else rng.uniform(-0.02, 0.10),
        patient_turn=float(np.clip(rng.normal(0.0, 0.012), -0.03, 0.03)),
        gamma=rng.uniform(0.75, 1.35),
        gain=rng.uniform(0.85, 1.3),
        offset=rng.uniform(-0.05, 0.06),
        tilt=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
        noise=rng.uniform(0.004, 0.018),
        collimation=rng.uniform(0.03, 0.09) if rng.random() < 0.15 else 0.0,
        marker=marker,
        marker_shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.05, 0.15)),
        texture_seed=int(rng.integers(2**31)),
    )


def describe_phantom(seed: int, index: int, findings: Sequence[str] = FINDINGS) -> Phantom:
    """Draw the description of image `index` of series `seed`.

    Args:
        seed: at least 0.
        index: at least 0.
        findings: kinds that may occur (of `FINDINGS`); normal images always occur.

    Returns:
        A description; `.render(size)` draws it.
    """
    unknown = set(findings) - set(FINDINGS)
    if unknown:
        raise UserError(
            f"phantom finding {sorted(unknown)[0]!r} is unknown: choose from {', '.join(FINDINGS)}"
        )
    if seed < 0 or index < 0:
        raise UserError(f"phantom seed and index must be at least 0, got {seed} and {index}")
    allowed = tuple(kind for kind in FINDINGS if kind in findings)
    block, place = divmod(index, _BLOCK)
    number = _patients_of_block(seed, block)[place]
    anatomy, sex, heart = _patient(seed, block, number, allowed)
    rng = np.random.default_rng([seed, _STREAM_IMAGE, index])
    view = "AP" if rng.random() < 0.35 else "PA"
    own = _draw_finding(rng, allowed, heart is not None)
    exposure = _draw_exposure(rng, view)
    result = tuple(f for f in (own, heart) if f is not None)
    return Phantom(
        key=f"phantom_{seed}_{index:06d}",
        patient_id=f"phantom_{seed}_{block:05d}_{number:02d}",
        findings=result,
        view=view,
        sex=sex,
        geometry=_draw_geometry(rng, own, anatomy, exposure.inspiration),
        exposure=exposure,
        caption=varied_caption(result, view, rng),
        anatomy=anatomy,
    )


def encode_grey_png(grey: np.ndarray) -> bytes:
    """Encode [H, W] uint8 as an RGB PNG with three equal channels."""
    buffer = io.BytesIO()
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    # Level 1: the noise compresses badly anyway, and this is five times faster than level 6.
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def phantom_records(
    num_images: int, *, seed: int = 0, image_size: int = 64, findings: Sequence[str] = FINDINGS
) -> tuple[Record, ...]:
    """Describe the first `num_images` images of a series.

    Args:
        num_images: at least 1.
        seed: names the series; at least 0.
        image_size: side length in pixels.
        findings: kinds that may occur.

    Returns:
        Records without a split. `read_bytes()` draws the image: an RGB PNG, three equal channels.
    """
    if not 1 <= num_images <= MAX_PHANTOMS:
        raise UserError(
            f"num_images is {num_images}: ask for at least one phantom and at most {MAX_PHANTOMS}"
        )
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise UserError(
            f"phantom image_size is {image_size}: choose between {MIN_SIZE} and {MAX_SIZE}"
        )
    records = []
    for index in range(num_images):
        phantom = describe_phantom(seed, index, findings)
        records.append(
            Record(
                key=phantom.key,
                image=functools.partial(_draw_png, phantom, image_size),
                text=phantom.caption,
                patient_id=phantom.patient_id,
                labels=phantom.labels(),
            )
        )
    return tuple(records)


def _draw_png(phantom: Phantom, image_size: int) -> bytes:
    return encode_grey_png(phantom.render(image_size))


def load(
    path: Path | None,
    *,
    num_images: int = 3000,
    seed: int = 0,
    image_size: int = 64,
    findings: Sequence[str] = FINDINGS,
) -> SourceRecords:
    """Read the source "phantom"; it takes no path."""
    if path is not None:
        raise UserError(f"the source 'phantom' is drawn, it takes no path; got {str(path)!r}")
    return SourceRecords(
        phantom_records(num_images, seed=seed, image_size=image_size, findings=findings)
    )
