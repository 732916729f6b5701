"""Membership inference on a training run: does its model give away what it was trained on?"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from medsd_jax.arrays import evenly_spread
from medsd_jax.config import training_config
from medsd_jax.config.ranges import check_kinds, check_ranges
from medsd_jax.data.loader import eval_batches
from medsd_jax.data.tfds_builder import RecordSplit
from medsd_jax.errors import UserError
from medsd_jax.evaluation.memorization.membership import Examples, check_patients, membership
from medsd_jax.evaluation.reports.membership import MembershipReport
from medsd_jax.files import check_permission
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.parallel.mesh import batch_shards, make_mesh, process_rows
from medsd_jax.parallel.multihost import is_main_process
from medsd_jax.reports.writing import package_versions, write_report
from medsd_jax.workflows.models import load
from medsd_jax.workflows.train.data import open_training_data
from medsd_jax.workflows.train.steps import make_diffusion_model

REPORT = "membership.json"


def config_of_run(workdir: Path) -> ConfigDict:
    """The config that a training run left in its workdir.

    Raises:
        UserError: there is none, or it is of a run that trained no denoiser.
    """
    path = workdir / "config.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); name the folder that a training wrote"
        ) from error
    if not isinstance(result, dict) or result.get("task") != "diffusion" or "data" not in result:
        raise UserError(f"{path} is of no run with task = 'diffusion': it has no denoising loss")
    # The sections that are read here: a run of an earlier version may lack others.
    base = training_config()
    try:
        config = ConfigDict({name: result.get(name) for name in ("data", "few_shot")})
    except (AttributeError, TypeError, ValueError) as error:  # keys that no config can have
        raise UserError(f"{path} is no config of a run ({error}); copy it again") from error
    defaults = ConfigDict({name: base[name] for name in config})
    check_kinds(config, defaults, str(path))
    check_ranges(config)
    return config


def measure_membership(
    workdir: Path,
    output: Path,
    *,
    model: str | None = None,
    num_images: int = 500,
    num_timesteps: int = 10,
    num_draws: int = 4,
    batch_size: int = 8,
    seed: int = 0,
) -> MembershipReport:
    """Attacks a model of a run with the run's own splits, and writes OUTPUT/membership.json.

    Args:
        workdir: of the run.
        output: a folder; made where it is missing.
        model: diffusers folder, hub id or workdir; the run's own if None.
        num_images: of each group at most, evenly over the split.
        num_timesteps: see `evaluation.memorization.membership.membership`.
        num_draws: likewise.
        batch_size: images at once on each device.
        seed: of noise and resamples.

    Returns:
        What membership.json holds.

    Raises:
        UserError: the run or the model cannot be read, or trained and held-out patients overlap.
    """
    config = config_of_run(workdir)
    check_permission(output)
    where = str(model or workdir)
    loaded = load(where)
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
            columns={"prompt_ids": encode_prompts(loaded.tokenizer, chosen.texts)},
            image_size=config.data.image_size,
            resize_mode=config.data.resize_mode,
        )
        return Examples(batches, chosen.patient_ids)

    attack = membership(
        make_diffusion_model(loaded, dtype="float32", attention="auto", remat=False),
        loaded.params,
        examples(dataset.train),
        examples(dataset.validation),
        num_timesteps=num_timesteps,
        num_draws=num_draws,
        seed=seed,
        mesh=mesh,
    )
    report = MembershipReport(
        versions=package_versions(),
        model=where,
        model_hash=loaded.fingerprint(),
        data=dataset.info.fingerprint,
        attack=attack,
        num_draws=num_draws,
        seed=seed,
    )
    if is_main_process():
        write_report(output / REPORT, report)
    return report


def in_words(report: MembershipReport) -> str:
    """The report in a line."""
    attack = report.attack
    result, chance = attack.tpr_at_one_percent_fpr, attack.tpr_by_chance
    low, high = chance.ci95
    return (
        f"{attack.trained.num_images} trained and {attack.held_out.num_images} held out images: "
        f"AUROC {attack.auroc:.3f}; {result.value:.1%} of the trained ones found with "
        f"{result.false_alarms} false alarm(s) ({chance.value:.1%} by chance, {low:.1%} to "
        f"{high:.1%} in 95 % of cases)"
    )
