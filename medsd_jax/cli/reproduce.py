"""``python -m medsd_jax reproduce``: every adaptation of the papers on the same data, in one table.

Each row is trained by its recipe in configs/, samples the paper's two prompts and is measured by
``evaluate``. What is finished is kept, so the same command goes on after a break.
"""

import argparse
import itertools
import json
import logging
from pathlib import Path
from typing import Any

from medsd_jax.cli.evaluate_sampling import Sampling, check_config
from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.reproduce_experiments import (
    BASE,
    BASE_RECIPE,
    EVALUATION,
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
from medsd_jax.files import read_object, write_json
from medsd_jax.folders import contents

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
        help="train this row alone, may be repeated; finished rows stay in the table: "
        + ", ".join(e.name for e in EXPERIMENTS),
    )  # fmt: skip
    add(
        "--num_images", type=positive_int, metavar="N",
        help="pictures of each prompt (default, as of the next three: the recipe's, "
        f"configs/{BASE_RECIPE['phantom']}.py or {BASE_RECIPE['full']}.py)",
    )  # fmt: skip
    add("--guidance_scale", type=float, metavar="G", help="of sampling")
    add("--sampler", choices=SAMPLER_NAMES, help="of the pictures that are measured")
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
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.workdir import working_in

    start_devices(alone="reproduce")
    with working_in(args.output, "a reproduction"):
        keep_settings(args)
        _reproduce(args)
    return 0


def _reproduce(args: argparse.Namespace) -> None:
    from medsd_jax.cli import reproduce_report
    from medsd_jax.cli.reproduce_parts import (
        AUTOENCODER,
        TEXT_ENCODERS,
        audit_autoencoder,
        probe_text_encoders,
    )
    from medsd_jax.cli.reproduce_phantom import make_materials

    if args.scale == "phantom":
        materials = make_materials(args)
    else:
        materials = Materials(args.model, args.encoder, args.real, args.judge, tuple(args.features))
    rows = []
    parts = {AUTOENCODER: audit_autoencoder(args, materials), TEXT_ENCODERS: None}
    for number, experiment in enumerate(EXPERIMENTS, start=1):
        print(f"[reproduce] {number} of {len(EXPERIMENTS)}: {experiment.title}", flush=True)
        if trainings := trainings_of(args, experiment, materials):
            rows.append(reproduce_report.row(experiment, args.output, trainings))
            reproduce_report.write(args, materials, rows, parts)
    models = {entry["name"]: entry["trainings"][0]["model"] for entry in rows}
    parts[TEXT_ENCODERS] = probe_text_encoders(args, materials, models)
    reproduce_report.write(args, materials, rows, parts)
    print(reproduce_report.in_words(rows))
    print(f"[reproduce] open {args.output / 'results.html'}; numbers: {args.output}/results.json")


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


def keep_settings(args: argparse.Namespace) -> None:
    """Writes OUTPUT/settings.json: what is finished there is kept and must be of these settings.

    Raises:
        UserError: the folder was begun with others.
    """
    settings = {name: getattr(args, name) for name in ("scale", "train_steps", *_FULL_ONLY)}
    settings |= {k: x for k, x in sampling_of(args).to_dict().items() if k != "prompts"}
    settings = json.loads(json.dumps(settings, default=str))
    path = args.output / "settings.json"
    if path.exists():
        before = read_object(path, "name another --output")
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{args.output} was begun with {name} = {before.get(name)}, not {value}: "
                    "name another --output"
                )
        return
    if contents(args.output):
        raise UserError(
            f"{args.output} is no comparison that can go on (it has no settings.json): name "
            "another --output"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def trainings_of(
    args: argparse.Namespace, experiment: Experiment, materials: Materials
) -> list[dict[str, Any]]:
    """Trains and measures one row with every seed that is asked for; adds what is finished already.

    Returns:
        An entry a training, as results.json holds it; empty for a row that is not asked for.
    """
    from medsd_jax.cli import reproduce_report

    asked = not args.only or experiment.name in (*args.only, BASE)
    seeds = args.seeds if experiment.recipe else 1
    trainings = []
    for seed in itertools.count():
        folder = args.output / (f"{experiment.name}-{seed}" if seed else experiment.name)
        finished = (folder / EVALUATION / "report.json").exists()
        if not finished and not (asked and seed < seeds):
            return trainings
        model = train_experiment(args, experiment, materials, folder, seed)
        if not finished:
            evaluate_experiment(args, experiment, materials, folder, model)
        found = reproduce_report.training(args.output, folder, experiment, materials)
        trainings.append({"seed": seed, "model": model, **found})


def train_experiment(
    args: argparse.Namespace, experiment: Experiment, materials: Materials, workdir: Path, seed: int
) -> str:
    """Trains one row unless it is trained already.

    Args:
        args: of the command.
        experiment: the row.
        materials: what it starts from.
        workdir: its folder.
        seed: added to the recipe's.

    Returns:
        The model, as `medsd_jax.load` takes it.
    """
    from medsd_jax.cli.swap_text_encoder import write_swapped
    from medsd_jax.cli.train import train_by_config
    from medsd_jax.cli.train_projection import train_projection

    if experiment.recipe is None:
        return materials.base
    if (workdir / "model" / "model_index.json").exists():
        return str(workdir)
    config = recipe_of(args, experiment.recipe[args.scale])
    config.seed += seed
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
    args: argparse.Namespace, experiment: Experiment, materials: Materials, folder: Path, model: str
) -> None:
    """Samples and measures what one training led to."""
    from medsd_jax.cli.evaluate import evaluate

    evaluate(
        materials.real,
        Sampling(model, prompts_of(args, experiment), sampling_of(args)),
        folder / EVALUATION,
        features=materials.features,
        judge=materials.judge,
    )
