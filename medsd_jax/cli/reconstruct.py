"""``medsd-jax reconstruct``: what a model's autoencoder keeps of images."""

import argparse
from pathlib import Path

from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.host_flags import add_host_flags, host_flags
from medsd_jax.cli.recipe_flags import add_recipe_flag, settings_of
from medsd_jax.config import reconstruction_config
from medsd_jax.data.transforms import RESIZE_MODES

RECIPE = "reconstruction"

_EXAMPLES = """examples:
  medsd-jax reconstruct --model runs/demo --real runs/demo/data:validation \\
      --output runs/reconstruction --classifier runs/demo/classifier
  medsd-jax reconstruct --model CompVis/stable-diffusion-v1-4 --real my_images \\
      --output runs/reconstruction --config reconstruction

a set of images (R) is what `evaluate` takes: see medsd-jax evaluate --help

The result compares two means with thresholds. Both thresholds are conventions of lossy image
compression and no medical validation: 30 dB is an RMSE of 3 % of the range, the lower end of what
compressed 8-bit images usually have; an SSIM of 0.9 is widely taken for "hardly distinguishable".
Neither says whether a finding can still be seen: --classifier and the worst cases say
more about that.
The exit code is 0 whatever the result is: this is a measurement, not a check."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``reconstruct``."""
    parser = subparsers.add_parser(
        "reconstruct",
        help="measure what a model's autoencoder keeps of images",
        description="Encodes images and decodes the mean of what comes out, as the first\n"
        "experiment of arXiv 2210.04133 does: RMSE, PSNR, SSIM and MS-SSIM on grey in [0, 1], the\n"
        "error by bands of grey, colour casts and, with --classifier, which findings a classifier "
        "no\nlonger calls alike.",
        epilog=_EXAMPLES,
    )
    default = reconstruction_config()
    add_host_flags(parser)
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="diffusers folder, hub id, or training workdir")
    add("--real", required=True, metavar="R", help="the images")
    add(
        "--output", required=True, type=Path, metavar="DIR",
        help="gets report.json, report.html and worst.png",
    )  # fmt: skip
    add(
        "--classifier", type=Path, metavar="FOLDER",
        help="classifier that train-classifier wrote; it looks at originals and reconstructions",
    )  # fmt: skip
    add_recipe_flag(parser, RECIPE)
    add(
        "--num_images", type=positive_int, metavar="N",
        help="measure so many, spread evenly over the set (default: all)",
    )  # fmt: skip
    add(
        "--image_size", type=positive_int, metavar="P",
        help="pixels, square (default: of the workdir's recipe, else what the U-Net was made for)",
    )  # fmt: skip
    add(
        "--resize_mode", choices=RESIZE_MODES,
        help="how images become square (default: of the workdir's recipe, else pad)",
    )  # fmt: skip
    add(
        "--least_psnr", type=float, metavar="DB",
        help=f"mean PSNR that is good enough: see below (default {default.least_psnr:g})",
    )  # fmt: skip
    add(
        "--least_ssim", type=float, metavar="X",
        help=f"mean SSIM that is good enough: see below (default {default.least_ssim:g})",
    )  # fmt: skip
    add(
        "--batch_size", type=positive_int, metavar="N",
        help=f"on each device (default {default.batch_size})",
    )  # fmt: skip
    add("--seed", type=int, help=f"of the resamples of the intervals (default {default.seed})")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.reconstruct import check_config, in_words, reconstruct
    from medsd_jax.workflows.workdir import working_in

    config = settings_of(args, reconstruction_config, RECIPE)
    check_config(config)
    start_devices(host_flags(args))
    with working_in(args.output, "an evaluation"):
        report = reconstruct(config, args.model, args.real, args.output, classifier=args.classifier)
    if is_main_process():
        print(in_words(report))
        page = args.output / "report.html"
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")
    return 0
