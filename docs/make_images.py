"""Makes the documentation's images from finished runs.

    python docs/make_images.py --demo runs/demo --nih runs/nih

runs/demo comes from `make demo`, runs/nih from the two commands in docs/experiments/nih14.md.
No image of a data set is among them: all are sampled.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from medsd_jax.studies.demo.images import plot_losses
from medsd_jax.training.metrics import read_scalars

ASSETS = Path(__file__).parent / "assets"


def demo_pairs(demo: Path) -> None:
    """The upper half of the report's pairs, smaller."""
    with Image.open(demo / "images" / "pairs.png") as image:
        half = image.crop((0, 0, image.width, image.height // 2)).convert("L")
    size = (3 * half.width // 4, 3 * half.height // 4)
    half.resize(size, Image.Resampling.LANCZOS).save(ASSETS / "demo_pairs.png", optimize=True)


def nih_samples(run: Path) -> None:
    """The images sampled after the last step, twice as large."""
    with Image.open(max((run / "samples").glob("*.png"))) as image:
        grey = image.convert("L")
    size = (2 * grey.width, 2 * grey.height)
    grey.resize(size, Image.Resampling.BICUBIC).save(ASSETS / "nih_samples.png", optimize=True)


def nih_loss(run: Path) -> None:
    """Training and validation loss by step; prints the validation's first and last value."""
    rows = read_scalars(run)
    curves = {
        kind: [(int(row["step"]), row[f"{kind}/loss"]) for row in rows if f"{kind}/loss" in row]
        for kind in ("train", "validation")
    }
    (ASSETS / "nih_loss.svg").write_bytes(plot_losses(curves))
    print(json.dumps({"validation_loss": [curves["validation"][i][1] for i in (0, -1)]}))


def main() -> None:
    """Writes them into docs/assets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--nih", type=Path, default=Path("runs/nih"))
    args = parser.parse_args()
    demo_pairs(args.demo)
    nih_samples(args.nih)
    nih_loss(args.nih)


if __name__ == "__main__":
    main()
