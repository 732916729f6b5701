"""``python -m medsd_jax train-classifier``: the judge of generated pictures, from real ones."""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medsd_jax.errors import UserError

log = logging.getLogger(__name__)

REPORT = "classifier_report.json"


def run_words(argv: Sequence[str]) -> int:
    """Trains by a recipe; its flags are train.py's."""
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.flags import parse_train_flags

    flags = parse_train_flags(argv, prog="python -m medsd_jax train-classifier")
    start_devices()
    report = train_classifier(flags.config, flags.workdir)
    for name, scores in report["labels"].items():
        print(f"{name}: {_in_words(scores)}")
    print(f"the classifier is in {flags.workdir}, its scores in {flags.workdir / REPORT}")
    return 0


def train_classifier(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, calibrates and tests a classifier; three sets of patients, none in two of them.

    Args:
        config: by `configs.base.get_classifier_config`.
        workdir: gets the classifier, metrics.jsonl and classifier_report.json.

    Returns:
        The report: scores of every label on the held-out patients, and what was trained on.
    """
    import jax
    import scipy.special

    from medsd_jax.cli.train import open_data
    from medsd_jax.data.loader import eval_batches, make_loader
    from medsd_jax.data.splits import first_patients
    from medsd_jax.data.tfds_builder import RecordSplit
    from medsd_jax.evaluation.classifier import Classifier, predict_logits, save_classifier
    from medsd_jax.evaluation.classifier_training import Augmentation, calibrate, fit
    from medsd_jax.evaluation.features.densenet import DenseNetConfig, random_params
    from medsd_jax.evaluation.label_scores import score_labels
    from medsd_jax.parallel.mesh import check_batch, make_mesh
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.training.metrics import ScalarWriter
    from medsd_jax.training.optim import make_optimizer, make_schedule

    check_config(config)
    mesh = make_mesh(config.mesh.to_dict())
    check_batch(config.data.batch_size, mesh)
    dataset = open_data(config, workdir)
    labels, train = tuple(config.labels), dataset.train
    chosen = np.array(first_patients(train.patient_ids, config.calibration_fraction))
    calibration = train.select(np.flatnonzero(chosen).tolist(), "calibration")
    train = train.select(np.flatnonzero(~chosen).tolist(), "train_classifier")

    def pictures(split: RecordSplit) -> np.ndarray:
        batches = eval_batches(
            split, num_examples=None, batch_size=64, columns={}, process_index=0, process_count=1,
            image_size=config.data.image_size, resize_mode=config.data.resize_mode,
        )  # fmt: skip
        grey = [np.rint((batch["images"].mean(-1) + 1.0) * 127.5) for batch in batches]
        return np.concatenate(grey)[: len(split)].astype(np.uint8)

    network = DenseNetConfig(
        growth_rate=config.network.growth_rate,
        block_config=tuple(config.network.block_config),
        num_init_features=config.network.num_init_features,
        num_classes=len(labels),
        in_channels=1,
    )
    steps = config.train.steps
    schedule = make_schedule(
        config.optim.schedule, config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps, total_steps=steps,
    )  # fmt: skip
    settings = ("b1", "b2", "eps", "weight_decay", "clip_norm", "no_decay")
    optimizer = make_optimizer(schedule, **{key: config.optim[key] for key in settings})
    loader = make_loader(
        train, batch_size=config.data.batch_size, columns={"targets": targets_of(train, labels)},
        image_size=config.data.image_size, resize_mode=config.data.resize_mode, seed=config.seed,
        num_threads=config.data.num_workers,
    )  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    writer = ScalarWriter(workdir, keep_through=None, enabled=is_main_process())
    with (
        contextlib.closing(writer),
        contextlib.closing(loader),
        tqdm(total=steps, desc="train classifier", unit="step") as bar,
    ):

        def note(step: int, metrics: dict[str, jax.Array]) -> None:
            bar.update()
            if step % config.log.every_steps == 0 or step == steps:
                scalars = {f"train/{name}": float(x) for name, x in metrics.items()}
                bar.set_postfix(loss=f"{scalars['train/loss']:.3f}")
                writer.write(step, scalars)

        params = fit(
            random_params(network, np.random.default_rng(config.seed)), network, loader, optimizer,
            steps=steps, augment=Augmentation(**config.augmentation.to_dict()), seed=config.seed,
            mesh=mesh, on_step=note,
        )  # fmt: skip

    one = np.ones(len(labels), np.float32)
    shape = (network, labels, config.data.image_size, config.data.resize_mode)
    classifier = Classifier(*shape, params, one, 0 * one)
    slope, intercept = calibrate(
        predict_logits(classifier, pictures(calibration), mesh), targets_of(calibration, labels)
    )
    classifier = Classifier(*shape, params, slope, intercept)
    held_out = dataset.validation
    logits = predict_logits(classifier, pictures(held_out), mesh).astype(np.float64)
    probabilities = scipy.special.expit(slope * logits + intercept)  # float64: no new ties
    report = {
        "labels": score_labels(
            labels, probabilities, targets_of(held_out, labels), held_out.patient_ids
        ),
        "num_images": {s.name: len(s) for s in (train, calibration, held_out)},
        "steps": steps,
        "image_size": config.data.image_size,
    }
    if is_main_process():
        save_classifier(classifier, workdir)
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (workdir / REPORT).write_text(text, encoding="utf-8")
    return report


def targets_of(split, labels: Sequence[str]) -> np.ndarray:
    """Yes/no labels of a split -> [n, labels] float32: 1, 0, or NaN where a record lacks one.

    Raises:
        UserError: no record has the label, or a value is neither 1 nor 0.
    """
    targets = np.full((len(split), len(labels)), np.nan, np.float32)
    known = sorted({name for row in split.labels for name in row})
    for column, label in enumerate(labels):
        if label not in known:
            raise UserError(f"no picture has the label {label!r} (there are: {', '.join(known)})")
        for row, values in enumerate(split.labels):
            value = values.get(label)
            if value is None or value == "":
                continue
            if value not in (0, 1):
                raise UserError(f"label {label!r} of {split.keys[row]} is {value!r}: write 1 or 0")
            targets[row, column] = value
    return targets


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values that no later check names as clearly."""
    if not config.labels:
        raise UserError("labels is empty: name at least one label of the data set")
    if config.train.steps < 1:
        raise UserError(f"train.steps = {config.train.steps} must be at least 1")
    if not 0 < config.calibration_fraction < 1:
        raise UserError(
            f"calibration_fraction = {config.calibration_fraction} must lie between 0 and 1"
        )


def _in_words(scores: dict[str, Any]) -> str:
    counts = f"{scores['num_present']} of {scores['num_images']} pictures"
    if scores.get("too_few"):
        return f"{counts}: too few to score"
    parts = [
        f"{name} {scores[name]['value']:.3f} ({scores[name]['ci95'][0]:.3f} to "
        f"{scores[name]['ci95'][1]:.3f})"
        for name in ("auroc", "accuracy", "f1")
    ]
    return f"{counts}, {', '.join(parts)}"
