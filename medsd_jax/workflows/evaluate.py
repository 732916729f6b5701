"""``medsd-jax evaluate``: two sets of pictures, and every number about them."""

import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.files import check_permission
from medsd_jax.workflows.sample_for_evaluation import Sampling, sample_for_evaluation

_log = logging.getLogger(__name__)

_DEFINITIONS = 4  # raised when a number of the report comes to be computed in another way


def evaluate(
    real: str,
    synthetic: str | Sampling,
    output: Path,
    *,
    features: Sequence[str],
    train: str | None = None,
    judge: Path | None = None,
    seed: int = 0,
) -> None:
    """Measures two sets of pictures; writes report.json and report.html, and prints a summary.

    Args:
        real: real pictures, as the flag names them.
        synthetic: generated pictures likewise, or what to sample into OUTPUT/samples first.
        output: a folder; made where it is missing.
        features: feature spaces, KIND=PATH.
        train: what the model was trained on, for the audit.
        judge: folder of a classifier that says what pictures show.
        seed: of subsets and resamples.

    Raises:
        UserError: something of this cannot be read or does not fit together.
    """
    from medsd_jax.classifier.model import load_classifier
    from medsd_jax.evaluation.by_classifier.prompt_adherence import judge_pictures
    from medsd_jax.evaluation.features.extraction import features_of, open_network
    from medsd_jax.evaluation.features.rough import LATENT, THUMBNAIL
    from medsd_jax.evaluation.images.image_sets import open_pictures
    from medsd_jax.evaluation.images.prompt_labels import known_labels
    from medsd_jax.evaluation.images.units import seeds_of, units_of_seeds
    from medsd_jax.evaluation.memorization.nearest_images import audit_features, audit_pixels
    from medsd_jax.evaluation.metrics.diversity import diversity
    from medsd_jax.evaluation.metrics.fidelity import fidelity
    from medsd_jax.evaluation.metrics.realism import realism
    from medsd_jax.evaluation.metrics.subgroups import sliced_fidelity
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports import evaluation
    from medsd_jax.reports.evaluation_summary import print_summary

    networks = {spec: open_network(spec) for spec in features}
    classifier = None if judge is None else load_classifier(judge)
    # Sampling takes longest: what is wrong with the other sets is said before.
    check_permission(output)
    sets = {"real": open_pictures(real)}
    if train:
        sets["train"] = open_pictures(train)
    if isinstance(synthetic, Sampling):
        synthetic = sample_for_evaluation(synthetic, output)
    sets["synthetic"] = open_pictures(synthetic, patients=False)
    reals, drawn = sets["real"], sets["synthetic"]
    labels = {name: known_labels(pictures) for name, pictures in sets.items()}
    units = units_of_seeds(seeds_of(drawn), drawn.texts, drawn.name)
    mesh, cache = make_mesh({"data": -1}), output / "features"

    patients = {"held_out_patients": reals.patient_ids, "synthetic_units": units}
    if train:
        patients["train_patients"] = sets["train"].patient_ids
        _warn_of_shared_patients(sets["train"], reals)
    spaces, by_part, audits, realness = {}, {}, {}, None
    for spec, network in networks.items():
        found = {k: features_of(network, pictures, cache, mesh) for k, pictures in sets.items()}
        pair = found["real"], found["synthetic"]
        if train and network.kind != THUMBNAIL:  # the audit in pixels sees more
            audits[spec] = audit_features(found["train"], *pair, **patients)
        pair = tuple(map(network.for_distances, pair))
        settings = {"real_patients": reals.patient_ids, "synthetic_units": units, "seed": seed}
        whole = fidelity(*pair, **settings)
        spaces[spec] = {
            "network": network.kind,
            "weights_and_input": network.fingerprint,
            "input_chain": network.chain,
            "rough": network.kind in (LATENT, THUMBNAIL),
            **whole,
        }
        by_part[spec] = sliced_fidelity(
            *pair, labels["real"], labels["synthetic"], whole=whole, **settings
        )
        realness = realism(*pair) if realness is None else realness
    protocol = [[space["weights_and_input"], space["k"]] for space in spaces.values()]
    report: dict[str, Any] = {
        "sets": {
            name: {
                "where": pictures.name,
                "num_pictures": len(pictures),
                "num_patients": len(set(pictures.patient_ids)),
                "unreadable": list(pictures.unreadable),
                "fingerprint": pictures.fingerprint,
            }
            for name, pictures in sets.items()
        },
        "fidelity": spaces,
        "parts": by_part,
        "diversity": diversity(drawn, units, seed=seed),
        "condition": None,
        "privacy": None,
        "seed": seed,
        # Equal hashes: the numbers were measured in the same way and may be compared.
        "protocol": hashlib.blake2b(
            json.dumps([_DEFINITIONS, sorted(protocol)]).encode(), digest_size=8
        ).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("medsd_jax", "jax", "numpy", "scipy")},
        },
    }
    judgements = {}
    if classifier is not None:
        report["condition"], judgements = judge_pictures(
            classifier, reals, drawn, labels, mesh, units
        )
    if train:
        audits = {"pixels": audit_pixels(*_pictures(sets), **patients), **audits}
        report["privacy"] = _privacy(audits, sets)
    if is_main_process():
        print_summary(report)
        cases = evaluation.Cases(realness, judgements, audits)
        page = evaluation.write(output, report, sets, cases)
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")


def default_features(judge: Path | None, model: str | None) -> str:
    """The feature space that needs nothing but what the flags name already."""
    if judge is not None:
        return f"classifier={judge}"
    return "thumbnail" if model is None else f"latent={model}"


def _warn_of_shared_patients(train: Any, held_out: Any) -> None:
    shared = sorted(set(train.patient_ids) & set(held_out.patient_ids))
    if shared:
        _log.warning(
            "%d patient(s), such as %s, are in the training set %s and in the real set %s: the "
            "alarm needs patients that the model was not trained on",
            len(shared), shared[0], train.name, held_out.name,
        )  # fmt: skip


def _pictures(sets: Mapping[str, Any]) -> list[Iterable[np.ndarray]]:
    """The three sets of the audit, picture by picture."""
    return [map(sets[k].read, range(len(sets[k]))) for k in ("train", "real", "synthetic")]


def _privacy(audits: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any]:
    """The report's audit."""
    from medsd_jax.evaluation.memorization.alarm import QUANTILE
    from medsd_jax.evaluation.memorization.nearest_images import most_suspicious

    return {
        "quantile": QUANTILE,
        "spaces": {name: audit.to_dict() for name, audit in audits.items()},
        "most_suspicious": most_suspicious(audits, sets["synthetic"].keys, sets["train"].keys),
    }
