"""Two sets of images, and every number about them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.files import check_permission
from medsd_jax.workflows.sample_for_evaluation import Sampling, sample_for_evaluation

if TYPE_CHECKING:
    from medsd_jax.evaluation.images.image_sets import ImageSet
    from medsd_jax.evaluation.memorization.nearest_images import NearestImages
    from medsd_jax.evaluation.reports.base import Estimate
    from medsd_jax.evaluation.reports.evaluation import EvaluationReport, Memorization

_log = logging.getLogger(__name__)

_DEFINITIONS = 4  # raised when a number of the report comes to be computed in another way

Images = str | Path | np.ndarray
"""A folder, a table, a split of a prepared data set (see evaluation/images/image_sets.py), or
[n, H, W, 3] or [n, H, W] uint8."""


def evaluate(
    real: Images,
    synthetic: Images | Sampling,
    *,
    output: Path | str | None = None,
    features: str | Sequence[str] | None = None,
    train: Images | None = None,
    classifier: Path | str | None = None,
    seed: int = 0,
) -> "EvaluationReport":
    """Measures two sets of images against each other.

    Args:
        real: real images; with `train`, of patients that the model was not trained on.
        synthetic: generated images, or what to sample into OUTPUT/samples first.
        output: a folder; gets report.json, report.html and the features, so that a second call
            does not compute them again. Nothing is written if None.
        features: feature spaces: KIND=PATH or "thumbnail", see evaluation/features/extraction.py.
            None takes a rough one for a first look: the classifier, else the latents of the model
            that is sampled, else thumbnails.
        train: what the model was trained on: are there training images among the generated ones?
        classifier: folder of a classifier that says what images show.
        seed: of subsets and resamples.

    Returns:
        The report, as report.json holds it.

    Raises:
        UserError: something of this cannot be read or does not fit together.
    """
    from medsd_jax.workflows.workdir import working_in

    if isinstance(features, str):
        features = [features]
    elif not features:
        model = synthetic.model if isinstance(synthetic, Sampling) else None
        features = [_default_features(classifier, model)]
        _log.warning(
            "no feature space is named: distances are measured in %s, for a rough first look; "
            "name a network, such as xrv=FILE, for numbers to report",
            features[0],
        )
    if output is not None:
        with working_in(Path(output), "an evaluation"):
            return _evaluate(real, synthetic, Path(output), features, train, classifier, seed)
    if isinstance(synthetic, Sampling):
        raise UserError("images that are sampled need a folder: name an output")
    return _evaluate(real, synthetic, None, features, train, classifier, seed)


def fid(real: Images, synthetic: Images, features: str) -> "Estimate":
    """The Frechet distance of two sets of images, with its 95 % interval.

    It grows as sets shrink: `evaluate` has the numbers that tell by how much.

    Args:
        real: real images; those of one patient, where known, count as one draw.
        synthetic: generated images; those of one start noise, where known, likewise.
        features: a feature space, such as "inception=pt_inception-2015-12-05-6726825d.pth".

    Raises:
        UserError: images or network cannot be read, or there are too few images.
    """
    from medsd_jax.evaluation.features.extraction import features_of, open_network
    from medsd_jax.evaluation.images.image_sets import open_images
    from medsd_jax.evaluation.images.units import seeds_of, units_of_seeds
    from medsd_jax.evaluation.metrics import fidelity
    from medsd_jax.parallel.mesh import make_mesh

    network, mesh = open_network(features), make_mesh({"data": -1})
    reals, drawn = open_images(real), open_images(synthetic, patients=False)
    vectors = [
        network.for_distances(features_of(network, images, None, mesh)) for images in (reals, drawn)
    ]
    units = units_of_seeds(seeds_of(drawn), drawn.texts, drawn.name)
    return fidelity.fid(*vectors, reals.patient_ids, units)


def _evaluate(
    real: Images,
    synthetic: Images | Sampling,
    output: Path | None,
    features: Sequence[str],
    train: Images | None,
    classifier_folder: Path | str | None,
    seed: int,
) -> "EvaluationReport":
    from medsd_jax.classifier.model import load_classifier
    from medsd_jax.evaluation.by_classifier.prompt_adherence import measure_adherence_of_sets
    from medsd_jax.evaluation.features.extraction import features_of, open_network
    from medsd_jax.evaluation.features.rough import LATENT, THUMBNAIL
    from medsd_jax.evaluation.images.image_sets import open_images
    from medsd_jax.evaluation.images.prompt_labels import known_labels
    from medsd_jax.evaluation.images.units import seeds_of, units_of_seeds
    from medsd_jax.evaluation.memorization.nearest_images import (
        measure_memorization,
        measure_memorization_in_pixels,
    )
    from medsd_jax.evaluation.metrics.diversity import diversity
    from medsd_jax.evaluation.metrics.fidelity import fidelity
    from medsd_jax.evaluation.metrics.realism import realism
    from medsd_jax.evaluation.metrics.subgroups import subgroup_fidelity
    from medsd_jax.evaluation.reports.evaluation import EvaluationReport, FeatureSpace
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports import evaluation
    from medsd_jax.reports.writing import package_versions

    networks = {spec: open_network(spec) for spec in features}
    classifier = None if classifier_folder is None else load_classifier(Path(classifier_folder))
    # Sampling takes longest: what is wrong with the other sets is said before.
    if output is not None:
        check_permission(output)
    sets = {"real": open_images(real)}
    if train is not None:
        sets["train"] = open_images(train)
    if isinstance(synthetic, Sampling):
        synthetic = sample_for_evaluation(synthetic, output)
    sets["synthetic"] = open_images(synthetic, patients=False)
    reals, drawn = sets["real"], sets["synthetic"]
    labels = {name: known_labels(images) for name, images in sets.items()}
    units = units_of_seeds(seeds_of(drawn), drawn.texts, drawn.name)
    mesh, cache = make_mesh({"data": -1}), output and output / "features"

    patients = {"held_out_patients": reals.patient_ids, "synthetic_units": units}
    if train is not None:
        patients["train_patients"] = sets["train"].patient_ids
        _warn_of_shared_patients(sets["train"], reals)
    spaces, distances, subgroups, memorization, realness = {}, {}, {}, {}, None
    for spec, network in networks.items():
        result = {k: features_of(network, images, cache, mesh) for k, images in sets.items()}
        pair = result["real"], result["synthetic"]
        if train is not None and network.kind != THUMBNAIL:  # pixels show more
            memorization[spec] = measure_memorization(result["train"], *pair, **patients)
        pair = tuple(map(network.for_distances, pair))
        settings = {"real_patients": reals.patient_ids, "synthetic_units": units, "seed": seed}
        whole = fidelity(*pair, **settings)
        spaces[spec] = FeatureSpace(
            network=network.kind,
            weights_and_input=network.fingerprint,
            input_chain=network.chain,
            rough=network.kind in (LATENT, THUMBNAIL),
        )
        distances[spec] = whole
        subgroups[spec] = subgroup_fidelity(
            *pair, labels["real"], labels["synthetic"], whole=whole, **settings
        )
        realness = realism(*pair) if realness is None else realness
    protocol = [[spaces[spec].weights_and_input, distances[spec].k] for spec in spaces]
    adherence, predictions_by_label = None, {}
    if classifier is not None:
        adherence, predictions_by_label = measure_adherence_of_sets(
            classifier, reals, drawn, labels, mesh, units
        )
    if train is not None:
        memorization = {
            "pixels": measure_memorization_in_pixels(*_images(sets), **patients),
            **memorization,
        }
    report = EvaluationReport(
        versions=package_versions(),
        sets={name: images.summary() for name, images in sets.items()},
        feature_spaces=spaces,
        fidelity=distances,
        subgroups=subgroups,
        prompt_adherence=adherence,
        diversity=diversity(drawn, units, seed=seed),
        memorization=None if train is None else _memorization(memorization, sets),
        seed=seed,
        # Equal hashes: the numbers were measured in the same way and may be compared.
        protocol=hashlib.blake2b(
            json.dumps([_DEFINITIONS, sorted(protocol)]).encode(), digest_size=8
        ).hexdigest(),
    )
    if output is not None and is_main_process():
        evaluation.write(
            output, report, sets, evaluation.Cases(realness, predictions_by_label, memorization)
        )
    return report


def _default_features(classifier: Path | str | None, model: str | None) -> str:
    """The feature space that needs nothing but what is named already."""
    if classifier is not None:
        return f"classifier={classifier}"
    return "thumbnail" if model is None else f"latent={model}"


def _warn_of_shared_patients(train: "ImageSet", held_out: "ImageSet") -> None:
    shared = sorted(set(train.patient_ids) & set(held_out.patient_ids))
    if shared:
        _log.warning(
            "%d patient(s), such as %s, are in the training images %s and in the real images %s: "
            "the alarm needs patients that the model was not trained on",
            len(shared), shared[0], train.name, held_out.name,
        )  # fmt: skip


def _images(sets: Mapping[str, "ImageSet"]) -> list[Iterable[np.ndarray]]:
    """The three sets of memorization, image by image."""
    return [map(sets[k].read, range(len(sets[k]))) for k in ("train", "real", "synthetic")]


def _memorization(
    memorization: Mapping[str, "NearestImages"], sets: Mapping[str, "ImageSet"]
) -> "Memorization":
    """The report's memorization."""
    from medsd_jax.evaluation.memorization.alarm import QUANTILE
    from medsd_jax.evaluation.memorization.nearest_images import most_suspicious
    from medsd_jax.evaluation.reports.evaluation import Memorization

    return Memorization(
        quantile=QUANTILE,
        spaces={name: of_space.report() for name, of_space in memorization.items()},
        most_suspicious=most_suspicious(memorization, sets["synthetic"].keys, sets["train"].keys),
    )
