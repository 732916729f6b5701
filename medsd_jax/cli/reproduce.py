"""``python -m medsd_jax reproduce``: every adaptation of the papers on the same data, in one table.

Each row is trained by its recipe in configs/, samples the paper's two prompts and is measured by
``evaluate``. What is finished is kept, so the same command goes on after a break.
"""

import argparse
import logging
from pathlib import Path

from medsd_jax.cli.evaluate_sampling import Sampling, check_config
from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.reproduce_experiments import (
    BASE,
    BASE_RECIPE,
    EXPERIMENTS,
    Experiment,
    Materials,
    prompts_of,
    recipe_of,
    sampling_of,
    timed,
)
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.errors import UserError

log = logging.getLogger(__name__)

_EXAMPLES = """examples:
  python -m medsd_jax reproduce --scale phantom --output runs/reproduction
  python -m medsd_jax reproduce --scale full --model CompVis/stable-diffusion-v1-4 \\
      --source nih14 --path FOLDER --encoder FOLDER_OF_A_BERT --real DATA:validation \\
      --judge runs/judge --features xrv=FILE --output runs/reproduction

phantom: a small model is trained first, on phantoms without any effusion; then every adaptation
starts from it. Two CPU cores, within 90 minutes.
full: the papers' scale, from a published model, with your data, judge and feature networks."""

_FULL_ONLY = ("model", "source", "path", "prompts", "encoder", "real", "judge", "features")
_NEEDED = ("model", "source", "encoder", "real", "judge", "features")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``reproduce``."""
    parser = subparsers.add_parser(
        "reproduce",
        help="compare all adaptations of the papers in one table",
        description="Trains every adaptation of arXiv 2210.04133 and RoentGen on the same ten\n"
        "pictures, measures what each draws, writes results.json and results.html.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("--scale", required=True, choices=("phantom", "full"), help="size of the comparison")
    add("--output", required=True, type=Path, metavar="DIR", help="everything goes here")
    add(
        "--only", action="append", default=[], metavar="NAME",
        choices=[e.name for e in EXPERIMENTS],
        help=f"this row alone, may be repeated: {', '.join(e.name for e in EXPERIMENTS)}",
    )  # fmt: skip
    add(
        "--num_images", type=positive_int, metavar="N",
        help="pictures of each prompt (default, as of the next three: the recipe's, "
        f"configs/{BASE_RECIPE['phantom']}.py or {BASE_RECIPE['full']}.py)",
    )  # fmt: skip
    add("--guidance_scale", type=float, metavar="G", help="of sampling")
    add("--sampler", choices=SAMPLER_NAMES, help="of the pictures that are measured")
    add("--num_steps", type=positive_int, metavar="N", help="of sampling")
    add("--train_steps", type=positive_int, metavar="N", help="of every training: for a quick look")
    add("--configs", type=Path, help="folder of the recipes (default: the project's)")
    full = parser.add_argument_group("--scale full")
    full.add_argument("--model", metavar="M", help="the model that is adapted")
    full.add_argument("--source", metavar="S", help="data set of the ten pictures: data.source")
    full.add_argument("--path", metavar="DIR", help="its folder: data.path")
    full.add_argument(
        "--prompts", metavar="FILE",
        help="what textual projection learns from, a prompt a line; the paper took 1,000,000 of "
        "LAION-400M (default: the captions of --source)",
    )  # fmt: skip
    full.add_argument("--encoder", metavar="BERT", help="folder or hub id of an in-domain BERT")
    full.add_argument("--real", metavar="R", help="held-out real pictures, as for evaluate")
    full.add_argument("--judge", type=Path, metavar="FOLDER", help="of train-classifier")
    full.add_argument("--features", action="append", metavar="KIND=PATH", help="as for evaluate")


def run(args: argparse.Namespace) -> int:
    """Runs the comparison; returns the exit code."""
    check_flags(args)
    from medsd_jax.cli import reproduce_report
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.reproduce_parts import (
        AUTOENCODER,
        TEXT_ENCODERS,
        audit_autoencoder,
        probe_text_encoders,
    )
    from medsd_jax.cli.reproduce_phantom import make_materials

    start_devices()
    chosen = [e for e in EXPERIMENTS if not args.only or e.name in (*args.only, BASE)]
    args.output.mkdir(parents=True, exist_ok=True)
    if args.scale == "phantom":
        materials = make_materials(args)
    else:
        materials = Materials(args.model, args.encoder, args.real, args.judge, tuple(args.features))
    rows = []
    parts = {AUTOENCODER: audit_autoencoder(args, materials), TEXT_ENCODERS: None}
    for number, experiment in enumerate(chosen, start=1):
        print(f"[reproduce] {number} of {len(chosen)}: {experiment.title}", flush=True)
        model = train_experiment(args, experiment, materials)
        evaluation = evaluate_experiment(args, experiment, model, materials)
        rows.append(reproduce_report.row(experiment, args.output, model, materials, evaluation))
        reproduce_report.write(args, materials, rows, parts)
    models = {entry["name"]: entry["model"] for entry in rows}
    parts[TEXT_ENCODERS] = probe_text_encoders(args, materials, models)
    reproduce_report.write(args, materials, rows, parts)
    print(reproduce_report.in_words(rows))
    print(f"[reproduce] open {args.output / 'results.html'}; numbers: {args.output}/results.json")
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where the flags do not go together."""
    given = [name for name in _FULL_ONLY if getattr(args, name) is not None]
    if args.scale == "phantom" and given:
        raise UserError(f"--{given[0]} is for --scale full; phantoms bring everything along")
    if args.scale == "full":
        for name in _NEEDED:
            if getattr(args, name) is None:
                raise UserError(f"--scale full needs --{name}; see --help")
    check_config(sampling_of(args))


def train_experiment(args: argparse.Namespace, experiment: Experiment, materials: Materials) -> str:
    """Trains one row unless it is trained already.

    Returns:
        The model, as `medsd_jax.load` takes it.
    """
    from medsd_jax.cli.swap_text_encoder import write_swapped
    from medsd_jax.cli.train import train_by_config
    from medsd_jax.cli.train_projection import train_projection

    if experiment.recipe is None:
        return materials.base
    workdir = args.output / experiment.name
    if (workdir / "model" / "model_index.json").exists():
        return str(workdir)
    config = recipe_of(args, experiment.recipe[args.scale])
    config.model.path = materials.base
    with timed(workdir):
        if experiment.encoder == "projected":
            config.encoder.path = materials.encoder
            train_projection(config.lock(), workdir)
        else:
            if experiment.encoder == "swapped":
                swapped = workdir / "swapped"
                if not (swapped / "model_index.json").exists():
                    write_swapped(materials.base, materials.encoder, swapped)
                config.model.path = str(swapped)
                config.prior.path = materials.base
            train_by_config(config.lock(), workdir)
    return str(workdir)


def evaluate_experiment(
    args: argparse.Namespace, experiment: Experiment, model: str, materials: Materials
) -> Path:
    """Samples and measures one row unless it is measured already; returns its folder."""
    from medsd_jax.cli.evaluate import evaluate

    # The base model draws without any training of its own.
    folder = args.output / experiment.name / "evaluation"
    if (folder / "report.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(model, prompts_of(args, experiment), sampling_of(args))
    evaluate(
        materials.real,
        sampling,
        folder,
        features=materials.features,
        judge=materials.judge,
    )
    return folder
