"""``medsd-jax downstream-utility``: what synthetic images add to a classifier.

The same classifier is trained on real images, on synthetic ones, on both, and on synthetic and
then on real ones, with several seeds, and tested on the same real patients. An arm that is done is
kept: the same command goes on where it was interrupted.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from medsd_jax.errors import UserError
from medsd_jax.files import write_text

if TYPE_CHECKING:
    import numpy as np

    from medsd_jax.classifier.model import Classifier
    from medsd_jax.data.record_lists import RecordList
    from medsd_jax.data.records import Split
    from medsd_jax.data.tfds_builder import RecordSplit
    from medsd_jax.evaluation.reports.classifiers import DownstreamUtilityReport, LabelledImages
    from medsd_jax.workflows.classifier_recipe import ClassifierRecipe, Labelled, TrainingStage

log = logging.getLogger(__name__)

_SETUP = "setup.json"


def measure_utility(config: ConfigDict, workdir: Path) -> "DownstreamUtilityReport":
    """Trains every arm with every seed, and compares them on held-out real patients.

    Args:
        config: by `medsd_jax.config.downstream_utility_config`.
        workdir: gets report.json and, in arms/ARM-SEED/, the classifiers and their curves.

    Returns:
        What report.json holds.
    """
    from medsd_jax.workflows.workdir import working_in

    check_config(config)
    with working_in(workdir, "a comparison"):
        return _compare(config, workdir)


def _compare(config: ConfigDict, workdir: Path) -> "DownstreamUtilityReport":
    import numpy as np

    from medsd_jax.data.patient_split import check_no_leak
    from medsd_jax.data.record_lists import JoinedSplits
    from medsd_jax.evaluation.by_classifier.downstream_utility import (
        REAL,
        SYNTHETIC,
        compare_arms,
        plan_arms,
    )
    from medsd_jax.evaluation.reports.classifiers import ArmStage, DownstreamUtilityReport
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports.downstream_utility import REPORT
    from medsd_jax.reports.writing import package_versions, write_report
    from medsd_jax.workflows.classifier_recipe import (
        ClassifierRecipe,
        TrainingStage,
        open_real_images,
    )

    plan = plan_arms(config.train.steps, config.fine_tuning.share)
    recipe = ClassifierRecipe(config)
    real = open_real_images(config, workdir)
    splits = {REAL: _few(real.train, config.real_images), SYNTHETIC: open_synthetic(config)}
    tested = {"calibration": real.calibration, "held_out": real.held_out}
    named = {REAL: splits[REAL], **tested}
    check_no_leak(
        [p for s in named.values() for p in s.patient_ids],
        [n for n, s in named.items() for _ in s.patient_ids],
    )
    if len(set(real.held_out.patient_ids)) < 2:
        raise UserError("one held-out patient gives no interval: raise data.validation_fraction")
    images = {name: _about(recipe, split, name) for name, split in (splits | tested).items()}
    for name, split in splits.items():
        if len(split) < config.data.batch_size:
            raise UserError(
                f"{len(split)} {name} images are fewer than data.batch_size = "
                f"{config.data.batch_size}: lower it, or add images"
            )
    calibration, held_out = recipe.labelled(real.calibration), recipe.labelled(real.held_out)
    _check_no_copies(recipe, splits[SYNTHETIC], (calibration, held_out))

    learning_rates = {False: config.optim.learning_rate, True: config.fine_tuning.learning_rate}
    arms = {
        arm: [
            TrainingStage(
                JoinedSplits([splits[name] for name in planned.images], "+".join(planned.images)),
                planned.steps,
                learning_rates[planned.fine_tunes],
            )
            for planned in stages
        ]
        for arm, stages in plan.items()
    }
    for stage in (stage for stages in arms.values() for stage in stages):
        recipe.optimizer(stage)  # a schedule that does not fit is told before any training
    seeds = [config.seed + i for i in range(config.seeds)]
    setups = {arm: _setup(config, stages, real.calibration) for arm, stages in arms.items()}
    probabilities = {arm: [] for arm in arms}
    for seed in seeds:
        for arm, stages in arms.items():
            folder = workdir / "arms" / f"{arm}-{seed}"
            classifier = _trained(recipe, stages, calibration, seed, folder, setups[arm])
            probabilities[arm].append(recipe.probabilities(classifier, held_out.images_u8))
    labels, mean_of_labels = compare_arms(
        recipe.labels,
        {arm: np.stack(p) for arm, p in probabilities.items()},
        held_out.targets,
        held_out.patient_ids,
    )
    report = DownstreamUtilityReport(
        versions=package_versions(),
        labels=labels,
        mean_of_labels=mean_of_labels,
        arms={
            arm: tuple(
                ArmStage(
                    images=planned.images,
                    steps=stage.steps,
                    learning_rate=stage.learning_rate,
                    epochs=stage.steps * config.data.batch_size / len(stage.images),
                )
                for planned, stage in zip(plan[arm], stages, strict=True)
            )
            for arm, stages in arms.items()
        },
        images=images,
        seeds=tuple(seeds),
        config=config.to_dict(),
    )
    if is_main_process():
        write_report(workdir / REPORT, report)
    return report


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values that no later check names as clearly."""
    from medsd_jax.workflows import train_classifier

    train_classifier.check_config(config)


def open_synthetic(config: ConfigDict) -> "RecordList":
    """The synthetic images with the labels that the recipe names.

    Raises:
        UserError: they cannot be read, or their labels cannot.
    """
    from medsd_jax.data.labels import label_name
    from medsd_jax.data.record_lists import RecordList
    from medsd_jax.data.records import Record
    from medsd_jax.evaluation.images.image_sets import open_images
    from medsd_jax.evaluation.images.prompt_labels import known_labels, labels_by_prompt

    images = open_images(config.synthetic.path, patients=False)
    table = config.synthetic.labels_by_prompt
    if table is None:
        labels = known_labels(images)
    else:
        labels = labels_by_prompt(images, Path(table).expanduser())
    records = [
        Record(
            key=images.keys[i],
            image=functools.partial(images.read_bytes, i),
            text=images.texts[i],
            patient_id=images.patient_ids[i],
            # Tables and prompts spell labels in one way, the real data in its own.
            labels={label: row.get(label_name(label), "") for label in config.labels},
        )
        for i, row in enumerate(labels)
    ]
    described = json.dumps([record.labels for record in records])
    digest = hashlib.blake2b(f"{images.fingerprint} {described}".encode(), digest_size=8)
    return RecordList(records, "synthetic", digest.hexdigest())


def _few(split: "RecordSplit", count: int | None) -> "RecordSplit":
    """The first so many images by the patients' hashes; None: all of them."""
    from medsd_jax.data.patient_split import first_images

    if count is None:
        return split
    if count > len(split):
        raise UserError(
            f"real_images = {count}, but only {len(split)} real images neither validate nor "
            "calibrate: lower it, or set it to None for all of them"
        )
    chosen = first_images(split.patient_ids, count)
    return split.select([i for i, taken in enumerate(chosen) if taken], "real")


def _about(recipe: "ClassifierRecipe", split: "Split", name: str) -> "LabelledImages":
    """The report's entry on a set of images; warns where a set cannot teach a finding."""
    from medsd_jax.evaluation.reports.classifiers import LabelCounts, LabelledImages
    from medsd_jax.workflows.classifier_recipe import targets_of

    targets, labels = targets_of(split, recipe.labels), {}
    for column, label in enumerate(recipe.labels):
        present, absent = (int((targets[:, column] == value).sum()) for value in (1, 0))
        labels[label] = LabelCounts(present=present, absent=absent)
        if not present + absent:
            raise UserError(
                f"of the {len(split)} {name} images, none is known to show or not to show "
                f"{label!r}: give it as a column of 1 and 0 in the set's table"
            )
        if not present or not absent:
            every = "no" if not present else "every"
            log.warning("%s: %s image that says so has %s", name, every, label)
    return LabelledImages(
        num_images=len(split),
        num_patients=len(set(split.patient_ids)),
        labels=labels,
        fingerprint=split.fingerprint,
    )


def _check_no_copies(
    recipe: "ClassifierRecipe", synthetic: "Split", tested: Sequence["Labelled"]
) -> None:
    """Raises UserError where a synthetic image is, pixel for pixel, one that is tested on."""

    def digest(image: "np.ndarray") -> bytes:
        return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    held_back = {digest(image) for images in tested for image in images.images_u8}
    drawn = [digest(image) for batch in recipe.grey_batches(synthetic) for image in batch]
    copies = [key for key, x in zip(synthetic.keys, drawn, strict=True) if x in held_back]
    if copies:
        raise UserError(
            f"{len(copies)} of {len(drawn)} synthetic images are, pixel for pixel, images that "
            f"test or calibrate ({', '.join(copies[:3])}{', ...' if len(copies) > 3 else ''}): "
            "no arm may train on them"
        )


def _setup(config: ConfigDict, stages: "Sequence[TrainingStage]", calibration: "Split") -> str:
    """What a classifier depends on besides its seed; equal texts give equal classifiers."""
    recipe, weights = config.to_dict(), config.network.weights
    described = {
        "medsd_jax": importlib.metadata.version("medsd_jax"),
        "stages": [[x.images.fingerprint, len(x.images), x.steps, x.learning_rate] for x in stages],
        "calibration": [calibration.fingerprint, len(calibration)],
        "data": {key: recipe["data"][key] for key in ("image_size", "resize_mode", "batch_size")},
        **{key: recipe[key] for key in ("labels", "network", "augmentation", "optim")},
        "weights": weights and hashlib.blake2b(Path(weights).expanduser().read_bytes()).hexdigest(),
    }
    return json.dumps(described, indent=2, sort_keys=True) + "\n"


def _trained(
    recipe: "ClassifierRecipe",
    stages: "Sequence[TrainingStage]",
    calibration: "Labelled",
    seed: int,
    folder: Path,
    setup: str,
) -> "Classifier":
    """An arm's classifier: from its folder where it is done, trained and saved there else."""
    from medsd_jax.classifier.model import load_classifier, save_classifier
    from medsd_jax.parallel.multihost import is_main_process, true_everywhere

    done = folder / _SETUP
    if true_everywhere(done.is_file() and done.read_text(encoding="utf-8") == setup):
        log.info("%s is trained already", folder)
        return load_classifier(folder)
    done.unlink(missing_ok=True)
    classifier = recipe.train(stages, calibration, seed=seed, workdir=folder)
    if is_main_process():
        save_classifier(classifier, folder)
        write_text(done, setup)  # last: a killed run leaves no half arm
    return classifier
