"""The images of the demo's report: read, drawn, put into PNG files and data URIs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from PIL import Image

from medsd_jax.arrays import evenly_spread, from_uint8, to_uint8
from medsd_jax.data.phantoms.phantom import FINDINGS
from medsd_jax.data.tfds_builder import RecordSplit
from medsd_jax.data.transforms import load_image
from medsd_jax.models.networks import graph
from medsd_jax.models.params import bind, component
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.reports.plots import MAIN, SECOND, new_plot, to_svg
from medsd_jax.sampling.images import make_grid, read_metadata, save_png

PHANTOMS_SHOWN = 8  # of each kind
PREVIEWS_SHOWN = 6
CAPTION_WIDTH = 192  # pixels of an image that carries a caption

Curve = list[tuple[int, float]]
"""Step and loss, in the order of the steps."""


@dataclass(frozen=True)
class Images:
    """All pixels of the report.

    Attributes:
        plain, effusion: [n, H, W, 3] uint8; row i of both comes from seed i.
        phantoms: kind -> [(image [H, W, 3] uint8, caption), ...].
        originals, reconstructions: [m, H, W, 3] uint8, before and after the VAE.
        previews: [(step, PNG bytes), ...], sampled during training.
        curves: run -> SVG bytes.
    """

    plain: np.ndarray
    effusion: np.ndarray
    phantoms: Mapping[str, Sequence[tuple[np.ndarray, str]]]
    originals: np.ndarray
    reconstructions: np.ndarray
    previews: Sequence[tuple[int, bytes]]
    curves: Mapping[str, bytes]

    def save(self, folder: Path, prompts: tuple[str, str]) -> None:
        """Write them as files: plain, effusion, pairs, phantoms and vae .png, *_loss.svg."""
        folder.mkdir(exist_ok=True)
        n = len(self.plain)
        metadata = {"prompts": list(prompts), "seeds": list(range(n))}
        save_png(make_grid(self.plain, columns=8), folder / "plain.png", metadata)
        save_png(make_grid(self.effusion, columns=8), folder / "effusion.png", metadata)
        both = np.stack([self.plain, self.effusion], axis=1).reshape(-1, *self.plain.shape[1:])
        captions = [text for i in range(n) for text in (f"seed {i}: without", "with effusion")]
        pairs = make_grid(_enlarge(both), columns=min(8, 2 * n), padding=4, captions=captions)
        save_png(pairs, folder / "pairs.png", metadata)
        shown = [pair for kind in self.phantoms.values() for pair in kind]
        if shown:
            images, texts = zip(*shown, strict=True)
            grid = make_grid(_enlarge(np.stack(images)), PHANTOMS_SHOWN, 4, captions=texts)
            save_png(grid, folder / "phantoms.png", {"synthetic": "drawn phantoms"})
        rows = np.concatenate([self.originals, self.reconstructions])
        vae = make_grid(rows, columns=len(self.originals))
        save_png(vae, folder / "vae.png", {"rows": ["original", "reconstruction"]})
        for name, svg in self.curves.items():
            (folder / f"{name}_loss.svg").write_bytes(svg)


def read_images(split: RecordSplit, indices: Iterable[int], size: int) -> np.ndarray:
    """Images of a prepared split -> [n, size, size, 3] uint8."""
    return np.stack([load_image(split[i].read_bytes(), size) for i in indices])


def find_phantoms(split: RecordSplit, label: str, size: int) -> list[tuple[np.ndarray, str]]:
    """The first images that show a finding and no other, one per patient, with their captions."""
    others = {"no_finding", *(finding.replace(" ", "_") for finding in FINDINGS)} - {label}
    by_patient: dict[str, int] = {}
    for i, labels in enumerate(split.labels):
        if labels[label] and not any(labels[other] for other in others):
            by_patient.setdefault(split.patient_ids[i], i)
    indices = list(by_patient.values())[:PHANTOMS_SHOWN]
    return [(read_images(split, [i], size)[0], split.texts[i]) for i in indices]


def read_previews(folder: Path) -> list[tuple[int, bytes]]:
    """Evenly chosen images that training left in samples/, the first and the last among them."""
    files = sorted(folder.glob("*.png"))
    shown = [files[i] for i in evenly_spread(len(files), PREVIEWS_SHOWN)]
    return [(read_metadata(file)["step"], file.read_bytes()) for file in shown]


def plot_losses(curves: Mapping[str, Curve]) -> bytes:
    """Draw training and validation loss over steps, as SVG that suits light and dark pages.

    Args:
        curves: "train" and "validation", each [(step, loss), ...].
    """
    figure, axes = new_plot()
    axes.plot(*zip(*curves["train"], strict=True), color=SECOND, lw=1.2, label="training")
    axes.plot(
        *zip(*curves["validation"], strict=True),
        color=MAIN, lw=1.8, marker="o", ms=4, label="validation",
    )  # fmt: skip
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [t * 10.0**e for e in range(-6, 4) for t in (1, 2, 5)]
    axes.set_yticks([t for t in ticks if low <= t <= high])
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return to_svg(figure, x="step", y="loss")


def reconstruct(model: StableDiffusion, images_u8: np.ndarray) -> tuple[np.ndarray, float]:
    """Encode, take the posterior's mean, decode.

    Args:
        model: its VAE is used.
        images_u8: [n, H, W, 3] uint8.

    Returns:
        ([n, H, W, 3] uint8, mean absolute difference on the [-1, 1] range before rounding).
    """
    vae = graph("vae", model.vae)

    @jax.jit
    def run(params, images):
        module = bind(vae, params)
        decoded = module.decode(module.encode(images)[0])
        return to_uint8(decoded), jnp.mean(jnp.abs(decoded - images))

    images_out, l1 = run(component(model.params, "vae"), from_uint8(images_u8))
    return np.asarray(images_out), float(l1)


def _enlarge(images_u8: np.ndarray) -> np.ndarray:
    """[n, H, W, 3] uint8 -> CAPTION_WIDTH wide, smooth: for grids with captions only."""
    size = (CAPTION_WIDTH, round(CAPTION_WIDTH * images_u8.shape[1] / images_u8.shape[2]))
    resize = partial(Image.Image.resize, size=size, resample=Image.Resampling.BICUBIC)
    return np.stack([np.asarray(resize(Image.fromarray(image))) for image in images_u8])
