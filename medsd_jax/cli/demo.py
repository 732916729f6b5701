"""`medsd-jax demo`: a tiny Stable Diffusion from nothing to a report on two CPU cores."""

import argparse
from pathlib import Path

from medsd_jax.cli.flags import positive_int


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="train a tiny Stable Diffusion on synthetic chest X-rays and report",
        description="Trains VAE, text encoder, U-Net and tokenizer on synthetic chest X-rays from\n"
        "scratch, samples with and without pleural effusion, lets a classifier look at the\n"
        "images, exports, writes OUTPUT/report.html.",
        epilog="example: medsd-jax demo --output runs/demo",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="default runs/demo")
    parser.add_argument(
        "--configs",
        type=Path,
        help="folder with demo_vae.py, demo.py and demo_classifier.py (default: the project's)",
    )
    parser.add_argument(
        "--vae_steps", type=positive_int, help="instead of the recipe's: for a quick look"
    )
    parser.add_argument(
        "--steps", type=positive_int, help="instead of the recipe's: for a quick look"
    )
    parser.add_argument("--classifier_steps", type=positive_int, help="likewise")
    parser.add_argument(
        "--classified",
        type=positive_int,
        default=128,
        metavar="N",
        help="images of each prompt for the classifier (default 128)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs all stages; a stage that is done already is kept, so an interrupted demo goes on."""
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.studies.demo.run import run_demo

    start_devices(alone="demo")
    run_demo(
        args.output,
        vae_steps=args.vae_steps,
        steps=args.steps,
        classifier_steps=args.classifier_steps,
        num_classified=args.classified,
        configs=args.configs,
    )
    return 0
