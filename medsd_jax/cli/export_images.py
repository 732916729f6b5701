"""``medsd-jax export-images``: images laid out for other groups' evaluation scripts."""

import argparse
from pathlib import Path

_EXAMPLES = """example:
  medsd-jax export-images --real runs/demo/data:validation --synthetic runs/look \\
      --output runs/exported

Sets are given as for evaluate. OUTPUT gets clean-fid/, roentgen/ and chexgenbench/."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``export-images``."""
    parser = subparsers.add_parser(
        "export-images",
        help="lay images out for clean-fid, RoentGen's scripts and CheXGenBench",
        description="Writes two sets of images, with their tables, as clean-fid, RoentGen's\n"
        "scripts and CheXGenBench read them.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--real", required=True, metavar="R", help="the real images")
    parser.add_argument("--synthetic", required=True, metavar="S", help="the generated images")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.workflows.export_images import export_images

    counts = export_images(args.real, args.synthetic, args.output)
    print(
        f"{args.output}: {counts['real']} real and {counts['synthetic']} generated images of "
        f"{counts['prompts']} prompts, for clean-fid, RoentGen's scripts and CheXGenBench"
    )
    return 0
