"""``python -m medsd_jax evaluate``: two sets of pictures, and every number about them."""

import argparse
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.cli.evaluate_sampling import (
    Sampling,
    add_sampling_flags,
    sampled,
    sampling_of_flags,
)
from medsd_jax.cli.flags import check_seed
from medsd_jax.cli.hosts import add_host_flags, host_flags
from medsd_jax.errors import UserError
from medsd_jax.files import check_permission

_log = logging.getLogger(__name__)

_DEFINITIONS = 4  # raised when a number of the report comes to be computed in another way

_EXAMPLES = """examples:
  python -m medsd_jax train-classifier --config configs/demo_classifier.py --workdir runs/judge
  python -m medsd_jax evaluate --real runs/judge/data:validation --synthetic runs/look \\
      --output runs/evaluation --features classifier=runs/judge --judge runs/judge
  python -m medsd_jax evaluate --real runs/judge/data:validation --train runs/judge/data:train \\
      --model runs/demo --prompts_csv prompts.csv --guidance_scale 4 \\
      --output runs/evaluation --features classifier=runs/judge
  python -m medsd_jax evaluate --real runs/judge/data:validation --judge runs/judge \\
      --model CompVis/stable-diffusion-v1-4 --config configs/out_of_the_box.py \\
      --output runs/out_of_the_box --features xrv=FILE

`python -m medsd_jax evaluate vae` measures a model's autoencoder alone, on real pictures.

a set of pictures (R, S, T) is
  FOLDER              its pictures, or those of its metadata.csv, metadata.jsonl, samples.jsonl
  TABLE.csv           with a column of paths; further columns: prompt, patient_id, labels
  FOLDER:validation   a prepared data set, as `python -m medsd_jax data` makes it; or FOLDER:train

feature spaces, any number of them:
  classifier=FOLDER   the judge that train-classifier wrote
  inception=FILE      InceptionV3 of the FID literature (pt_inception-2015-12-05)
  xrv=FILE            torchxrayvision's densenet121-res224, as RoentGen measures
  clip=FOLDER         CLIP's image tower, such as openai/clip-vit-base-patch32
  rad-dino=FOLDER     microsoft/rad-dino, as CheXGenBench measures
  latent=MODEL        the latents of a Stable Diffusion model's autoencoder: near copies
                      show there (--train); rough as a distance of sets
  thumbnail           8 x 8 grey cells, for a first look: rough

Without --features it is the classifier of --judge, else the latents of --model, else thumbnail: a
default for a first look that takes no download, and no number to publish."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure generated pictures against real ones",
        description="Compares two sets: FID, KID, precision, recall, density, coverage; as a\n"
        "whole and by finding, sex, age and view. With --judge: do the pictures show what their\n"
        "prompts ask for. With --train: are there training pictures among them; --real are then\n"
        "pictures of patients that the model was not trained on.",
        epilog=_EXAMPLES,
    )
    add_host_flags(parser)
    add = parser.add_argument
    add("--real", required=True, metavar="R", help="the real pictures")
    add("--synthetic", metavar="S", help="the generated pictures; or give --model")
    add("--train", metavar="T", help="what the model was trained on, for the audit")
    add(
        "--output", required=True, type=Path, metavar="DIR", help="gets report.json and report.html"
    )
    add(
        "--features", action="append", metavar="KIND=PATH",
        help="feature space; may be repeated; pictures are ordered for the page by the first one; "
        "a rough one by default, see below",
    )  # fmt: skip
    add("--judge", type=Path, metavar="FOLDER", help="classifier that says what pictures show")
    add(
        "--seed", type=int,
        help="of subsets and resamples, and of the first image that --model draws (default 0)",
    )  # fmt: skip
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    check_flags(args)
    sampling = sampling_of_flags(args)
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.workdir import working_in

    start_devices(host_flags(args))
    features = args.features
    if features is None:
        features = [default_features(args.judge, args.model)]
        _log.warning(
            "no --features: distances are measured in %s, for a rough first look; name a network, "
            "such as --features xrv=FILE, for numbers to report",
            features[0],
        )
    with working_in(args.output, "an evaluation"):
        evaluate(
            args.real,
            sampling or args.synthetic,
            args.output,
            train=args.train,
            features=features,
            judge=args.judge,
            seed=args.seed or 0,
        )
    return 0


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
    from medsd_jax.cli import evaluate_report
    from medsd_jax.cli.evaluate_summary import print_summary
    from medsd_jax.evaluation.classifier import load_classifier
    from medsd_jax.evaluation.condition import judge_pictures
    from medsd_jax.evaluation.diversity import diversity
    from medsd_jax.evaluation.features.extraction import features_of, open_network
    from medsd_jax.evaluation.features.rough import LATENT, THUMBNAIL
    from medsd_jax.evaluation.fidelity import fidelity
    from medsd_jax.evaluation.picture_sets import open_pictures
    from medsd_jax.evaluation.privacy import audit_features, audit_pixels
    from medsd_jax.evaluation.prompt_labels import known_labels
    from medsd_jax.evaluation.realism import realism
    from medsd_jax.evaluation.slices import sliced_fidelity
    from medsd_jax.evaluation.units import seeds_of, units_of_seeds
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process

    networks = {spec: open_network(spec) for spec in features}
    classifier = None if judge is None else load_classifier(judge)
    # Sampling takes longest: what is wrong with the other sets is said before.
    check_permission(output)
    sets = {"real": open_pictures(real)}
    if train:
        sets["train"] = open_pictures(train)
    if isinstance(synthetic, Sampling):
        synthetic = sampled(synthetic, output)
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
        cases = evaluate_report.Cases(realness, judgements, audits)
        page = evaluate_report.write(output, report, sets, cases)
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where the flags do not say one set of generated pictures."""
    if (args.synthetic is None) == (args.model is None):
        raise UserError("give --synthetic S, or --model M to sample with and say what")
    check_seed(args.seed or 0)


def default_features(judge: Path | None, model: str | None) -> str:
    """The feature space that needs nothing but what the flags name already."""
    if judge is not None:
        return f"classifier={judge}"
    return "thumbnail" if model is None else f"latent={model}"


def _warn_of_shared_patients(train: Any, held_out: Any) -> None:
    shared = sorted(set(train.patient_ids) & set(held_out.patient_ids))
    if shared:
        _log.warning(
            "%d patient(s), such as %s, are in --train %s and in --real %s: the alarm needs "
            "patients that the model was not trained on",
            len(shared), shared[0], train.name, held_out.name,
        )  # fmt: skip


def _pictures(sets: Mapping[str, Any]) -> list[Iterable[np.ndarray]]:
    """The three sets of the audit, picture by picture."""
    return [map(sets[k].read, range(len(sets[k]))) for k in ("train", "real", "synthetic")]


def _privacy(audits: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any]:
    """The report's audit."""
    from medsd_jax.evaluation.alarm import QUANTILE
    from medsd_jax.evaluation.privacy import most_suspicious

    return {
        "quantile": QUANTILE,
        "spaces": {name: audit.to_dict() for name, audit in audits.items()},
        "most_suspicious": most_suspicious(audits, sets["synthetic"].keys, sets["train"].keys),
    }
