"""``python -m medsd_jax hand-over``: pictures laid out for other groups' evaluation scripts."""

import argparse
from pathlib import Path

_EXAMPLES = """example:
  python -m medsd_jax hand-over --real runs/demo/data:validation --synthetic runs/look \\
      --output runs/hand_over

Sets are given as for evaluate. OUTPUT gets clean-fid/, roentgen/ and chexgenbench/."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``hand-over``."""
    parser = subparsers.add_parser(
        "hand-over",
        help="lay pictures out for clean-fid, RoentGen's scripts and CheXGenBench",
        description="Writes two sets of pictures, with their tables, as clean-fid, RoentGen's\n"
        "scripts and CheXGenBench read them.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--real", required=True, metavar="R", help="the real pictures")
    parser.add_argument("--synthetic", required=True, metavar="S", help="the generated pictures")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from tqdm import tqdm

    from medsd_jax.evaluation.images.export import write_hand_over
    from medsd_jax.evaluation.images.image_sets import open_pictures
    from medsd_jax.evaluation.images.prompt_labels import known_labels

    sets = {
        name: open_pictures(getattr(args, name), patients=False) for name in ("real", "synthetic")
    }
    labels = {name: known_labels(pictures) for name, pictures in sets.items()}
    with tqdm(total=sum(map(len, sets.values())), unit="image", desc="hand over") as bar:
        counts = write_hand_over(args.output, sets["real"], sets["synthetic"], labels, bar.update)
    print(
        f"{args.output}: {counts['real']} real and {counts['synthetic']} generated pictures of "
        f"{counts['prompts']} prompts, for clean-fid, RoentGen's scripts and CheXGenBench"
    )
    return 0
