"""``python -m medsd_jax membership``: does a run's model give away what it was trained on?"""

import argparse
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsd_jax.bounds import MOST_AT_ONCE
from medsd_jax.cli.config_ranges import check_kinds, check_ranges
from medsd_jax.cli.flags import at_most, check_seed, positive_int
from medsd_jax.cli.hosts import add_host_flags, host_flags
from medsd_jax.cli.recipes import base_config
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from medsd_jax.models.stable_diffusion import StableDiffusion

REPORT = "membership.json"

_EPILOG = """examples:
  python -m medsd_jax membership --workdir runs/mine
  python -m medsd_jax membership --workdir runs/mine --model runs/base --output runs/mine/before

The second line asks the model that the run started from, which saw neither side: what it can tell
apart is no memorisation. The run's own config.json tells which patients were trained on and which
validate. The report:
  auroc             0.5: losses do not tell trained pictures from others; with its 95 % interval
  tpr_at_fpr_0.01   share of the trained pictures found with one false alarm in a hundred
  tpr_by_chance     the same where nothing tells them apart; larger of few held-out patients
  timesteps         both sides' mean loss, and the AUROC by it, from little noise to much"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``membership``."""
    parser = subparsers.add_parser(
        "membership",
        help="tell trained from held-out pictures by their denoising loss",
        description="Membership inference: compares the denoising loss of pictures that a run\n"
        "trained on with that of its validation patients' pictures.",
        epilog=_EPILOG,
    )
    add_host_flags(parser)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="DIR", help="of the training run")
    add("--model", metavar="M", help="default: the run's own; DIR/best, or what it started from")
    add("--output", type=Path, metavar="DIR", help=f"gets {REPORT} (default: the workdir)")
    add(
        "--num_images", type=positive_int, default=500, metavar="N",
        help="of each side, evenly over the split, or all where there are fewer (default 500)",
    )  # fmt: skip
    add("--num_timesteps", type=positive_int, default=10, metavar="K", help="default 10")
    add("--num_draws", type=positive_int, default=4, metavar="D", help="at each time (default 4)")
    add("--batch_size", type=at_most(MOST_AT_ONCE), default=8, help="on each device (default 8)")
    add("--seed", type=int, default=0, help="of noise and resamples (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    config = config_of_run(args.workdir)
    check_seed(args.seed)

    import jsonschema

    from medsd_jax import api
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.files import check_permission, write_json
    from medsd_jax.parallel.multihost import is_main_process

    start_devices(host_flags(args))
    output = args.output or args.workdir
    check_permission(output)
    where = str(args.model or args.workdir)
    model = api.load(where)
    report = {"model": where, "model_hash": model.fingerprint()} | measure_membership(
        config,
        args.workdir,
        model,
        num_images=args.num_images,
        num_timesteps=args.num_timesteps,
        num_draws=args.num_draws,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    jsonschema.validate(report, schema())
    if is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / REPORT, report)
        print(in_words(report))
        print(f"losses by timestep are in {output / REPORT}")
    return 0


def schema() -> dict[str, Any]:
    """The JSON schema of membership.json, which says what every key means."""
    file = importlib.resources.files("medsd_jax.cli") / "templates" / "membership.schema.json"
    return json.loads(file.read_text(encoding="utf-8"))


def config_of_run(workdir: Path) -> "ConfigDict":
    """The config that a training run left in its workdir.

    Raises:
        UserError: there is none, or it is of a run that trained no denoiser.
    """
    from ml_collections import ConfigDict

    path = workdir / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); --workdir is the folder that train.py wrote"
        ) from error
    if not isinstance(found, dict) or found.get("task") != "diffusion" or "data" not in found:
        raise UserError(f"{path} is of no run with task = 'diffusion': it has no denoising loss")
    # The sections that are read here: a run of an earlier version may lack others.
    base = base_config("get_config")
    try:
        config = ConfigDict({name: found.get(name) for name in ("data", "few_shot")})
    except (AttributeError, TypeError, ValueError) as error:  # keys that no config can have
        raise UserError(f"{path} is no config of a run ({error}); copy it again") from error
    wanted = ConfigDict({name: base[name] for name in config})
    check_kinds(config, wanted, str(path))
    check_ranges(config)
    return config


def measure_membership(
    config: "ConfigDict",
    workdir: Path,
    model: "StableDiffusion",
    *,
    num_images: int,
    num_timesteps: int,
    num_draws: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Attacks a model of a run with the run's own splits.

    Args:
        config: the run's.
        workdir: the run's, for its prepared data.
        model: on the host.
        num_images: of each side at most, evenly over the split.
        num_timesteps: see `evaluation.membership.membership`.
        num_draws: likewise.
        batch_size: pictures at once on each device.
        seed: likewise.

    Returns:
        What `evaluation.membership.membership` says, and data, the fingerprint of the data set.
    """
    from medsd_jax.arrays import evenly_spread
    from medsd_jax.cli.train import make_diffusion_model
    from medsd_jax.cli.train_data import open_training_data
    from medsd_jax.data.loader import eval_batches
    from medsd_jax.data.tfds_builder import RecordSplit
    from medsd_jax.evaluation.membership import Examples, check_patients, membership
    from medsd_jax.interop.tokenization import encode_prompts
    from medsd_jax.parallel.mesh import batch_shards, make_mesh, process_rows

    mesh = make_mesh({"data": -1})
    shards = batch_shards(mesh)
    batch = min(batch_size, -(-num_images // shards)) * shards  # a larger one is padding
    dataset = open_training_data(config, workdir)
    check_patients(dataset.train.patient_ids, dataset.validation.patient_ids)

    def examples(split: RecordSplit) -> Examples:
        chosen = split.select(evenly_spread(len(split), num_images), split.name)
        batches = eval_batches(
            chosen,
            num_examples=None,
            batch_size=batch,
            rows=process_rows(mesh, batch),
            columns={"prompt_ids": encode_prompts(model.tokenizer, chosen.texts)},
            image_size=config.data.image_size,
            resize_mode=config.data.resize_mode,
        )
        return Examples(batches, chosen.patient_ids)

    found = membership(
        make_diffusion_model(model, dtype="float32", attention="auto", remat=False),
        model.params,
        examples(dataset.train),
        examples(dataset.validation),
        num_timesteps=num_timesteps,
        num_draws=num_draws,
        seed=seed,
        mesh=mesh,
    )
    return {"data": dataset.info.fingerprint, **found}


def in_words(report: dict[str, Any]) -> str:
    """The report in a line."""
    auroc, found = report["auroc"], report["tpr_at_fpr_0.01"]
    low, high = auroc["ci95"]
    chance = report["tpr_by_chance"]
    least, most = chance["ci95"]
    counts = [f"{report[k]['num_images']} {k.replace('_', ' ')}" for k in ("trained", "held_out")]
    return (
        f"{' and '.join(counts)} pictures: AUROC {auroc['value']:.3f} ({low:.3f} to {high:.3f}); "
        f"{found['value']:.1%} of the trained ones found with {found['false_alarms']} false "
        f"alarm(s) ({chance['value']:.1%} by chance, {least:.1%} to {most:.1%} in 95 % of cases)"
    )
