"""Drawing primitives of the phantoms: ramps, smooth noise, line segments, the lead marker.

Everything is float32, and measured in units of the image (its sides are 2 long), never in
pixels, so that the image does not depend on the size it is drawn at.
"""

import numpy as np
from PIL import Image, ImageDraw


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Smooth step: 0 where distance <= -width, 1 where >= width."""
    t = distance * (0.5 / width)
    t += 0.5
    np.clip(t, 0.0, 1.0, out=t)
    slope = t * -2.0
    slope += 3.0
    slope *= t
    slope *= t
    return slope


def radius(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Length of (a, b); np.hypot guards against overflow and takes five times as long."""
    return np.sqrt(a * a + b * b)


def bump(z: np.ndarray) -> np.ndarray:
    """A bell of compact support: (1 - z^2)^2 inside |z| < 1. Cheaper than a Gaussian."""
    return np.square(np.clip(1.0 - z * z, 0.0, None))


def upsampled_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of unit variance per cell, independent of the image's size."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Maximum that fills the notch where two outlines meet."""
    return 0.5 * (a + b + np.sqrt(np.square(a - b) + width * width))


class Pose:
    """The map from the patient's frame to pixels: rotation (radians), scale, shift, then size."""

    def __init__(self, rotation: float, scale: float, shift: tuple[float, float], size: int):
        self.size = size
        cos, sin = np.cos(rotation), np.sin(rotation)
        self._rotation = np.array([[cos, -sin], [sin, cos]], np.float32)
        self._scale = scale
        self._shift = np.array(shift, np.float32)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of every pixel's centre in the patient's frame, [size, size] each."""
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) * (2.0 / self.size) - 1.0
        u, v = axis[None, :] - self._shift[0], axis[:, None] - self._shift[1]
        (a, b), (c, d) = self._rotation.T / self._scale
        return a * u + b * v, c * u + d * v

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map points [n, 2] of the patient's frame to pixel coordinates [n, 2]."""
        placed = points @ (self._rotation.T * self._scale) + self._shift
        return (placed + 1.0) * (self.size / 2.0)


def draw_segments(tree: np.ndarray, pose: Pose) -> np.ndarray:
    """Rasterise line segments.

    Args:
        tree: [n, 6] float32: x0, y0, x1, y1 (patient's frame), width (same unit), strength [0, 1].
        pose: where they come to lie.

    Returns:
        [H, W] float32 in [0, 1].
    """
    canvas = Image.new("L", (pose.size, pose.size))
    draw = ImageDraw.Draw(canvas)
    ends = np.concatenate([pose.to_pixels(tree[:, 0:2]), pose.to_pixels(tree[:, 2:4])], axis=1)
    pixels = tree[:, 4] * pose.size / 2.0
    # A line thinner than a pixel is drawn one pixel wide and accordingly fainter.
    shade = np.clip(pixels, 0.0, 1.0) * tree[:, 5] * 255.0
    wide = np.maximum(1, np.round(pixels)).astype(int)
    rows = zip(ends.tolist(), wide.tolist(), shade.astype(int).tolist(), strict=True)
    for line, line_width, fill in sorted(rows, key=lambda row: row[2]):
        draw.line(line, fill=fill, width=line_width)
    return np.asarray(canvas, np.float32) / 255.0


_STROKES = {
    "L": [((0, 0), (0, 2)), ((0, 2), (1.1, 2))],
    "R": [((0, 0), (0, 2)), ((0, 0), (1, 0.1)), ((1, 0.1), (1, 0.9)), ((1, 0.9), (0, 1)),
          ((0.3, 1), (1.1, 2))],
}  # fmt: skip


def draw_marker(letter: str, shift: tuple[float, float], size: int) -> np.ndarray:
    """Draw the lead side marker -> [H, W] float32 in [0, 1]; L stands on the image's right."""
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    unit = size * 0.035
    left = size * ((0.9 if letter == "L" else 0.06) + shift[0])
    top = size * (0.1 + shift[1])
    for (x0, y0), (x1, y1) in _STROKES[letter]:
        line = [left + unit * x0, top + unit * y0, left + unit * x1, top + unit * y1]
        draw.line(line, fill=255, width=max(1, round(size * 0.02)))
    return np.asarray(canvas, np.float32) / 255.0
