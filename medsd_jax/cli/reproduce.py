"""``medsd-jax reproduce``: every adaptation of the papers on the same data, in one table.

Each row is trained by its recipe in configs/, samples the paper's two prompts and is measured by
``evaluate``. What is finished is kept, so the same command goes on after a break.
"""

import argparse
import dataclasses
from pathlib import Path

from medsd_jax.cli.flags import positive_int
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.studies.chambon2022.experiments import BASE_RECIPE, EXPERIMENTS

_EXAMPLES = """examples:
  medsd-jax reproduce --scale phantom --output runs/reproduction
  medsd-jax reproduce --scale full --model CompVis/stable-diffusion-v1-4 \\
      --source nih14 --path FOLDER --encoder FOLDER_OF_A_BERT --real DATA:validation \\
      --classifier runs/classifier --features xrv=FILE --output runs/reproduction

phantom: a small model is trained first, on phantoms without any effusion; then every adaptation
starts from it. Two CPU cores, within 90 minutes.
full: the papers' scale, from a published model, with your data, classifier and feature networks."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``reproduce``."""
    parser = subparsers.add_parser(
        "reproduce",
        help="compare all adaptations of the papers in one table",
        description="Trains every adaptation of arXiv 2210.04133 and RoentGen on the same ten\n"
        "images, measures what each draws, writes results.json and results.html.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("--scale", required=True, choices=("phantom", "full"), help="size of the comparison")
    add("--output", required=True, type=Path, metavar="DIR", help="everything goes here")
    add(
        "--only", action="append", default=[], metavar="NAME",
        choices=[e.name for e in EXPERIMENTS],
        help="train this row alone, may be repeated; finished rows stay in the table: "
        + ", ".join(e.name for e in EXPERIMENTS),
    )  # fmt: skip
    add(
        "--num_images", type=positive_int, metavar="N",
        help="images of each prompt (default, as of the next three: the recipe's, "
        f"{BASE_RECIPE['phantom']} or {BASE_RECIPE['full']})",
    )  # fmt: skip
    add("--guidance_scale", type=float, metavar="G", help="of sampling")
    add("--sampler", choices=SAMPLER_NAMES, help="of the images that are measured")
    add("--num_steps", type=positive_int, metavar="N", help="of sampling")
    add(
        "--seeds", type=positive_int, default=1, metavar="N",
        help="trainings of each row, with the recipe's seed and the next ones; more can be added "
        "later (default 1)",
    )  # fmt: skip
    add("--train_steps", type=positive_int, metavar="N", help="of every training: for a quick look")
    add("--configs", type=Path, help="folder of the recipes (default: the project's)")
    full = parser.add_argument_group("--scale full")
    full.add_argument("--model", metavar="M", help="the model that is adapted")
    full.add_argument("--source", metavar="S", help="data set of the ten images: data.source")
    full.add_argument("--path", metavar="DIR", help="its folder: data.path")
    full.add_argument(
        "--prompts", metavar="FILE",
        help="what textual projection learns from, one prompt per line; the paper took 1,000,000 "
        "of LAION-400M (default: the captions of --source)",
    )  # fmt: skip
    full.add_argument("--encoder", metavar="BERT", help="folder or hub id of an in-domain BERT")
    full.add_argument("--real", metavar="R", help="held-out real images, as for evaluate")
    full.add_argument("--classifier", type=Path, metavar="FOLDER", help="of train-classifier")
    full.add_argument("--features", action="append", metavar="KIND=PATH", help="as for evaluate")


def run(args: argparse.Namespace) -> int:
    """Runs the comparison; returns the exit code."""
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.studies.chambon2022.experiments import Study
    from medsd_jax.studies.chambon2022.run import check_study, reproduce

    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(Study)}
    study = Study(**settings)
    check_study(study)
    start_devices(alone="reproduce")
    reproduce(study)
    return 0
