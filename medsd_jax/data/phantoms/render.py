"""Draw one synthetic frontal chest radiograph from a description of its anatomy.

Coordinates: x in [-1, 1] to the image's right (the patient's left), y in [-1, 1] downwards, both
in the patient's frame before the pose (rotation, scale, shift) is applied. Every edge is a ramp in
these units and the image is computed at twice its size and averaged down, so an image of 64
pixels is the antialiased small version of the one of 512.

Brightness is attenuation: bone and fluid bright, air dark, as on a film viewer.
"""

import dataclasses
import functools
import math

import numpy as np

from medsd_jax.data.findings import EFFUSION, NODULE, PNEUMOTHORAX, Finding
from medsd_jax.data.phantoms.raster import (
    Pose,
    bump,
    draw_marker,
    draw_segments,
    radius,
    ramp,
    smooth_max,
    upsampled_noise,
)

_SUPERSAMPLE = 2
_SIDE_SIGN = {"right": -1.0, "left": 1.0}


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What belongs to the patient and is the same in all of their images (units: see module)."""

    lung_half_width: float
    lung_apex: float
    lung_squareness: float
    dome: tuple[float, float]
    dome_curve: float
    cardiothoracic_ratio: float
    heart_tilt: float
    heart_left_share: float
    aortic_knob: float
    mediastinum: float
    rib_spacing: float
    rib_offset: float
    rib_slope: float
    rib_strength: float
    clavicle_slope: float
    fat: float
    breast: float
    gastric_bubble: float
    vessel_seed: int


@dataclasses.dataclass(frozen=True)
class Exposure:
    """What belongs to one exposure: pose, technique and noise."""

    rotation: float
    scale: float
    shift: tuple[float, float]
    inspiration: float
    patient_turn: float
    gamma: float
    gain: float
    offset: float
    tilt: tuple[float, float]
    noise: float
    collimation: float
    marker: str
    marker_shift: tuple[float, float]
    texture_seed: int


@functools.lru_cache(maxsize=8)
def _vessel_tree(seed: int, lung_half_width: float) -> np.ndarray:
    """Return branching vessels as segments [n, 6]: x0, y0, x1, y1, width, strength."""
    rng = np.random.default_rng(seed)
    segments = []
    for sign in (-1.0, 1.0):
        n = 9
        angle = np.linspace(-1.25, 1.35, n) + rng.normal(0, 0.16, n)
        x, y = rng.uniform(0.12, 0.19, n), rng.normal(-0.03, 0.05, n) + angle * 0.06
        width, length = rng.uniform(0.012, 0.022, n), rng.uniform(0.07, 0.19, n)
        for level in range(4):
            x1, y1 = x + length * np.cos(angle), y + length * np.sin(angle) * 1.35
            strength = rng.uniform(0.6, 1.0, x.size) * (1.0 - 0.2 * level)
            segments.append(np.stack([sign * x, y, sign * x1, y1, width, strength], axis=1))
            spread = rng.uniform(0.05, 0.6, (2, x.size)) * np.array([[1.0], [-1.0]])
            angle = (angle + spread).ravel()
            x, y = np.tile(x1, 2), np.tile(y1, 2)
            width = np.tile(width * 0.72, 2)
            length = np.tile(length, 2) * rng.uniform(0.5, 1.05, x.size)
    tree = np.concatenate(segments)
    tree[:, [0, 2]] *= lung_half_width / 0.7
    return tree.astype(np.float32)


class _Chest:
    """Fields over the image that several organs need: coordinates, lungs, diaphragm."""

    def __init__(self, anatomy: Anatomy, exposure: Exposure, shift: float, pose: Pose):
        self.x, self.y = pose.grid()
        self.soft = max(0.018, 1.4 * 2.0 / pose.size)
        self.anatomy = anatomy
        self.shift = shift
        self.side = np.where(self.x < 0, 0, 1)
        self.abs_x = np.abs(self.x)
        self.dome = tuple(d + exposure.inspiration for d in anatomy.dome)
        a = anatomy.lung_half_width
        base = np.where(self.x < 0, *map(np.float32, self.dome))
        bow = np.square((self.abs_x - 0.44 * a) / (0.5 * a))
        # The dome falls away faster towards the wall, into the costophrenic angle.
        steep = 1.0 + np.float32(0.35) * (self.abs_x > 0.44 * a)
        self.diaphragm = base + anatomy.dome_curve * bow * steep
        self.cavity = self.cavity_distance()

    def cavity_distance(self, gap: float = 0.0) -> np.ndarray:
        """Return the distance inside the pleural cavity's outline, negative outside.

        Args:
            gap: how far a collapsed lung has withdrawn from the outer wall, more at the apex.
        """
        anatomy = self.anatomy
        bottom = 0.35
        half = 0.48 * anatomy.lung_half_width
        height = bottom - anatomy.lung_apex - 2.2 * gap
        centre = 0.51 * anatomy.lung_half_width + 0.08 * self.y - gap
        across = np.abs((self.abs_x - centre) / half)
        # Below its widest place the wall stays steep: the sulcus beside the diaphragm is deep.
        along = np.maximum((bottom - self.y) / height, 0.45 * (self.y - bottom) / height)
        p = np.float32(anatomy.lung_squareness)
        inside = np.power(np.power(across, p) + np.power(along, p), 1.0 / p)
        return (1.0 - inside) * half


def _fluid(chest: _Chest, findings: tuple[Finding, ...], levels: dict[str, float]) -> np.ndarray:
    """Return pleural fluid [H, W] in [0, 1]: level with a meniscus that climbs the lateral wall.

    Args:
        chest: geometry.
        findings: effusions among them are drawn.
        levels: side -> height of the fluid at the lateral wall, as a fraction of the lung's height.
    """
    total = np.zeros_like(chest.y)
    for finding in findings:
        if finding.kind != EFFUSION:
            continue
        for side in ("left", "right") if finding.side == "bilateral" else (finding.side,):
            width = chest.anatomy.lung_half_width
            dome = chest.dome[0 if side == "right" else 1]
            angle = dome + 1.4 * chest.anatomy.dome_curve
            lateral_top = angle - levels[side] * (angle - chest.anatomy.lung_apex)
            drop = 0.16 + 0.22 * min(levels[side], 0.6)
            reach = np.clip((chest.abs_x - 0.1) / (0.9 * width), 0.0, 1.0)
            surface = lateral_top + drop * (1.0 - reach * reach * (0.25 + 0.75 * reach))
            here = chest.side == (0 if side == "right" else 1)
            depth = chest.y - surface
            # Fluid thins towards its upper edge, so that edge is softer than the diaphragm's.
            body = ramp(depth, chest.soft + 0.025) * np.clip(0.82 + 0.5 * depth, 0.0, 1.0)
            total += here * body
    return total


def _heart(chest: _Chest) -> np.ndarray:
    """Return heart and great vessels [H, W] in [0, 1]."""
    anatomy = chest.anatomy
    x, y, soft = chest.x - chest.shift, chest.y, chest.soft
    half = anatomy.cardiothoracic_ratio * anatomy.lung_half_width
    centre_x = half * (2.0 * anatomy.heart_left_share - 1.0)
    lowest = max(chest.dome) + 0.06
    tall = 0.30 + 0.3 * (half - 0.32)
    centre_y = lowest - 0.72 * tall
    # math, not numpy: a numpy scalar is float64 and would widen every field it touches.
    cos, sin = math.cos(anatomy.heart_tilt), math.sin(anatomy.heart_tilt)
    along = (x - centre_x) * cos + (y - centre_y) * sin
    across = (y - centre_y) * cos - (x - centre_x) * sin
    # The tilted ellipse's horizontal extent is kept at `half`, whatever the tilt: the
    # cardiothoracic ratio in the labels is the one in the image.
    long = math.sqrt(max(half**2 - (tall * 0.92 * sin) ** 2, 0.02)) / cos
    ventricle = 1.0 - np.sqrt(np.square(along / long) + np.square(across / (0.92 * tall)))
    waist_y = centre_y - 0.75 * tall
    waist = 1.0 - np.sqrt(np.square((x - 0.06) / 0.15) + np.square((y - waist_y) / 0.25))
    knob_r = anatomy.aortic_knob
    knob = 1.0 - radius((x - 0.09), (y + 0.30) / 1.25) / knob_r
    wide = anatomy.mediastinum * (1.0 + 0.35 * np.clip(-0.45 - y, 0.0, 0.5))
    column = wide - np.abs(x)
    atrium_x = centre_x - half + 0.17
    atrium = 1.0 - radius((x - atrium_x) / 0.17, (y - centre_y - 0.04) / (0.8 * tall))
    heart = smooth_max(ventricle * 0.3, waist * 0.17, 0.09)
    heart = np.maximum(heart, atrium * 0.17)
    return ramp(smooth_max(smooth_max(heart, column, 0.05), knob * knob_r, 0.05), soft * 1.1)


def _bones(chest: _Chest) -> np.ndarray:
    """Return added brightness of ribs, clavicles, spine and shoulders [H, W]."""
    anatomy, ax, y = chest.anatomy, chest.abs_x, chest.y
    width, pitch = anatomy.lung_half_width, anatomy.rib_spacing
    cage = ramp(chest.cavity + 0.06, 0.03) * (0.35 + 0.65 * ramp(chest.diaphragm - y, 0.05))
    posterior = y - anatomy.rib_slope * np.square(ax) / width - anatomy.rib_offset
    phase = np.abs(posterior / pitch - np.round(posterior / pitch))
    edge_soft = chest.soft / pitch * 0.7
    band = ramp(0.25 - phase, edge_soft) * (0.75 + 1.6 * phase)
    anterior = y + 0.62 * (ax - width) - anatomy.rib_offset - 0.4 * pitch
    front = np.abs(anterior / (1.25 * pitch) - np.round(anterior / (1.25 * pitch)))
    front_band = ramp(0.24 - front, edge_soft) * ramp(ax - 0.5 * width, 0.12)
    bones = anatomy.rib_strength * cage * (0.075 * band + 0.045 * front_band)
    # Ribs seen end-on make the bright rim of the cage.
    bones += 0.05 * bump((chest.cavity + 0.03) / 0.06) * ramp(0.5 - y, 0.1)
    line = y + 0.50 + anatomy.clavicle_slope * (ax - 0.07) + 0.03 * np.sin(6.0 * ax)
    bones += 0.14 * bump(line / 0.06) * ramp(ax - 0.07, 0.02) * ramp(0.85 - ax, 0.05)
    bones += 0.10 * bump(radius(ax - width - 0.24, y + 0.60) / 0.2)
    discs = y / 0.125 - np.round(y / 0.125)
    spine = ramp(0.075 - np.abs(chest.x), 0.03)
    return bones + spine * (0.045 + 0.03 * np.abs(discs) * 2.0)


def _body(chest: _Chest) -> tuple[np.ndarray, np.ndarray]:
    """Return the silhouette [H, W] in [0, 1] and the soft-tissue brightness inside it."""
    anatomy, ax, y = chest.anatomy, chest.abs_x, chest.y
    flank = anatomy.lung_half_width + 0.08 + anatomy.fat + 0.6 * ramp(-0.12 - y, 0.3)
    neck = -1.12 + 0.55 * np.clip((ax - 0.2) / 0.75, 0.0, None) ** 1.4
    outline = np.minimum(flank - ax, y - neck)
    silhouette = ramp(outline, chest.soft + 0.02)
    tissue = 0.56 + 0.10 * anatomy.fat + 0.16 * np.clip(outline / 0.5, -0.5, 1.0)
    tissue += 0.15 * ramp(y - chest.diaphragm, chest.soft) + 0.05 * y
    return silhouette, tissue


def render(
    anatomy: Anatomy,
    exposure: Exposure,
    findings: tuple[Finding, ...],
    geometry: dict[str, float],
    image_size: int,
) -> np.ndarray:
    """Draw the image.

    Args:
        anatomy: the patient.
        exposure: the pose and technique.
        findings: what to show; cardiomegaly is in the anatomy already.
        geometry: drawn numbers of the findings: "level_left", "level_right" (fluid height),
        "gap" (lung withdrawal), "nodule_x", "nodule_y", "nodule_radius", "shift" (mediastinum).
        image_size: side length in pixels.

    Returns:
        [image_size, image_size] uint8.
    """
    size = _SUPERSAMPLE * image_size
    pose = Pose(exposure.rotation, exposure.scale, exposure.shift, size)
    chest = _Chest(anatomy, exposure, geometry["shift"] + exposure.patient_turn, pose)
    soft = chest.soft
    silhouette, tissue = _body(chest)
    above = ramp(chest.diaphragm - chest.y, soft)
    cavity = ramp(chest.cavity, soft)
    levels = {"left": geometry["level_left"], "right": geometry["level_right"]}
    fluid = np.clip(_fluid(chest, findings, levels), 0.0, 1.0)
    heart = _heart(chest)
    air = cavity * above * (1.0 - 0.94 * heart) * (1.0 - 0.93 * fluid)

    texture_rng = np.random.default_rng(exposure.texture_seed)
    texture = 0.030 * upsampled_noise(texture_rng, 9, pose.size)
    texture = texture + 0.026 * upsampled_noise(texture_rng, 30, pose.size)
    vessels = draw_segments(_vessel_tree(anatomy.vessel_seed, anatomy.lung_half_width), pose)
    hilum = bump(radius(chest.abs_x - 0.19, (chest.y + 0.02) / 1.4) / 0.2)
    marking = 0.15 * vessels + 0.10 * hilum + texture

    darkness = 0.43 - 0.05 * np.clip(chest.y, -0.6, 0.4)
    for finding in findings:
        if finding.kind == PNEUMOTHORAX:
            here = chest.x * _SIDE_SIGN[finding.side] > 0
            lung = chest.cavity_distance(geometry["gap"])
            outside = here * ramp(-lung, soft)
            line = here * bump(lung / max(0.022, 1.5 * soft))
            marking = marking * (1.0 - outside) + 0.22 * line
            darkness = darkness + 0.10 * outside - here * (1.0 - outside) * 0.06
    for finding in findings:
        if finding.kind == NODULE:
            r = geometry["nodule_radius"]
            away = radius(chest.x - geometry["nodule_x"], chest.y - geometry["nodule_y"])
            marking = marking + 0.30 * ramp(r - away, soft + 0.2 * r)

    film = tissue - air * (darkness - marking) + _bones(chest) * (1.0 - 0.5 * fluid)
    # Fluid is as bright as the abdomen, so the diaphragm disappears in it (silhouette sign).
    heart_light = 0.10 * heart * ramp(chest.y + 0.05, 0.3)
    film += np.maximum(0.15 * fluid * cavity, heart_light) * above
    trachea = np.abs(chest.x - 0.6 * chest.shift - 0.008)
    film -= 0.11 * ramp(0.035 - trachea, 0.02) * ramp(-0.28 - chest.y, 0.04)
    if anatomy.breast:
        centre_x, centre_y, r = 0.56 * anatomy.lung_half_width, 0.16, 0.36
        inside = r - radius((chest.abs_x - centre_x) * 0.9, chest.y - centre_y)
        film += anatomy.breast * ramp(inside, 0.04) * np.clip(0.4 + chest.y, 0.0, 1.0)
    if anatomy.gastric_bubble:
        gas_y = chest.dome[1] + 0.17
        gas = 1.0 - radius((chest.x - 0.34) / 0.19, (chest.y - gas_y) / 0.085)
        film -= anatomy.gastric_bubble * ramp(gas, 0.25)
    return _expose(film, silhouette, exposure, chest, pose.size, image_size)


def _expose(film, silhouette, exposure, chest, size, image_size):
    """Apply technique, marker, collimation, averaging and noise -> uint8 [H, W]."""
    film = film + exposure.tilt[0] * chest.x + exposure.tilt[1] * chest.y
    film = np.clip((film - 0.5) * exposure.gain + 0.5 + exposure.offset, 0.02, 1.0)
    film = silhouette * film**exposure.gamma + (1.0 - silhouette) * 0.05
    axis = np.abs((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0)
    if exposure.collimation:
        open_x = ramp(1.0 - exposure.collimation - axis, 0.03)
        film = film * open_x[None, :]
    if exposure.marker:
        film = np.maximum(film, 0.93 * draw_marker(exposure.marker, exposure.marker_shift, size))
    s = _SUPERSAMPLE
    film = film.reshape(image_size, s, image_size, s).mean(axis=(1, 3))
    rng = np.random.default_rng([exposure.texture_seed, image_size])
    grain = exposure.noise * rng.standard_normal(film.shape, dtype=np.float32)
    return np.round(np.clip(film + grain, 0.0, 1.0) * 255.0).astype(np.uint8)
