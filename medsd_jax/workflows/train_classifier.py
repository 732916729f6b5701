"""``medsd-jax train-classifier``: a classifier that measures generated images."""

from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from medsd_jax.config.ranges import check_ranges
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.evaluation.reports.base import LabelScores
    from medsd_jax.evaluation.reports.classifiers import ClassifierReport

REPORT = "classifier_report.json"


def train_classifier(config: ConfigDict, workdir: Path) -> "ClassifierReport":
    """Trains, calibrates and tests a classifier; three sets of patients, none in two of them.

    Args:
        config: by `medsd_jax.config.classifier_config`.
        workdir: gets the classifier, metrics.jsonl and classifier_report.json.

    Returns:
        The report: scores of every label on the held-out patients, and what was trained on.
    """
    from medsd_jax.workflows.workdir import working_in

    check_config(config)
    with working_in(workdir, "a training"):
        return _train(config, workdir)


def _train(config: ConfigDict, workdir: Path) -> "ClassifierReport":
    from medsd_jax.classifier.model import save_classifier
    from medsd_jax.evaluation.by_classifier.label_scores import score_labels
    from medsd_jax.evaluation.reports.classifiers import ClassifierReport
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports.writing import package_versions, write_report
    from medsd_jax.workflows.classifier_recipe import (
        ClassifierRecipe,
        TrainingStage,
        open_real_images,
    )

    recipe = ClassifierRecipe(config)
    real = open_real_images(config, workdir)
    stage = TrainingStage(real.train, config.train.steps, config.optim.learning_rate)
    classifier = recipe.train(
        [stage], recipe.labelled(real.calibration), seed=config.seed, workdir=workdir
    )
    held_out = recipe.labelled(real.held_out)
    probabilities = recipe.probabilities(classifier, held_out.images_u8)
    splits = (real.train, real.calibration, real.held_out)
    report = ClassifierReport(
        versions=package_versions(),
        labels=score_labels(recipe.labels, probabilities, held_out.targets, held_out.patient_ids),
        num_images={s.name: len(s) for s in splits},
        steps=config.train.steps,
        image_size=config.data.image_size,
        started_from=config.network.weights,
    )
    if is_main_process():
        save_classifier(classifier, workdir)
        write_report(workdir / REPORT, report)
    return report


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values that no later check names as clearly."""
    if not config.labels:
        raise UserError("labels is empty: name at least one label of the data set")
    check_ranges(config)


def in_words(scores: "LabelScores") -> str:
    """The scores of one finding in a line."""
    counts = f"{scores.num_present} of {scores.num_images} images"
    if scores.too_few:
        return f"{counts}: too few to score"
    return f"{counts}, auroc {scores.auroc:.3f}, accuracy {scores.accuracy:.3f}, f1 {scores.f1:.3f}"
