"""``python -m medsd_jax evaluate``: two sets of pictures, and every distance between them."""

import argparse
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

_DEFINITIONS = 1  # raised when a number of the report comes to be computed in another way

_EXAMPLES = """example:
  python -m medsd_jax train-classifier --config configs/demo_classifier.py --workdir runs/judge
  python -m medsd_jax evaluate --real real_pictures --synthetic runs/look \\
      --output runs/evaluation --features classifier=runs/judge

feature spaces, any number of them:
  classifier=FOLDER   the judge that train-classifier wrote
  inception=FILE      InceptionV3 of the FID literature (pt_inception-2015-12-05)
  xrv=FILE            torchxrayvision's densenet121-res224, as RoentGen measures"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure generated pictures against real ones",
        description="Compares two sets: FID, KID, precision, recall, density, coverage. With\n"
        "--train: looks for training pictures among the synthetic ones; --real are then pictures\n"
        "of patients that the model was not trained on.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("--real", required=True, type=Path, metavar="R", help="folder, or .csv of paths")
    add("--synthetic", required=True, type=Path, metavar="S", help="folder, or .csv of paths")
    add("--train", type=Path, metavar="T", help="what the model was trained on, for the audit")
    add(
        "--output", required=True, type=Path, metavar="DIR", help="gets report.json and report.html"
    )
    add(
        "--features", required=True, action="append", metavar="KIND=PATH",
        help="feature space; may be repeated",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of subsets and resamples (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.cli import evaluate_report
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.evaluation.diversity import diversity
    from medsd_jax.evaluation.features.extraction import features_of, open_network
    from medsd_jax.evaluation.fidelity import fidelity
    from medsd_jax.evaluation.picture_sets import open_pictures
    from medsd_jax.evaluation.privacy import audit_features
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process

    start_devices()
    networks = {spec: open_network(spec) for spec in args.features}
    where = {"real": args.real, "synthetic": args.synthetic}
    if args.train:
        where["train"] = args.train
    sets = {name: open_pictures(path) for name, path in where.items()}
    mesh, cache = make_mesh({"data": -1}), args.output / "features"
    spaces, audits = {}, {}
    for spec, network in networks.items():
        features = {k: features_of(network, pictures, cache, mesh) for k, pictures in sets.items()}
        spaces[spec] = {
            "network": network.kind,
            "weights_and_input": network.fingerprint,
            "input_chain": network.chain,
            **fidelity(features["real"], features["synthetic"], seed=args.seed),
        }
        if args.train:
            audits[spec] = audit_features(
                features["train"], features["real"], features["synthetic"]
            )
    protocol = [[space["weights_and_input"], space["k"]] for space in spaces.values()]
    report: dict[str, Any] = {
        "sets": {
            name: {
                "where": pictures.name,
                "num_pictures": len(pictures),
                "unreadable": list(pictures.unreadable),
                "fingerprint": pictures.fingerprint,
            }
            for name, pictures in sets.items()
        },
        "fidelity": spaces,
        "diversity": diversity(sets["synthetic"], seed=args.seed),
        "privacy": _privacy(audits, sets) if args.train else None,
        "seed": args.seed,
        # Equal hashes: the numbers were measured in the same way and may be compared.
        "protocol": hashlib.blake2b(
            json.dumps([_DEFINITIONS, sorted(protocol)]).encode(), digest_size=8
        ).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("medsd_jax", "jax", "numpy", "scipy")},
        },
    }
    if is_main_process():
        _print_summary(report)
        page = evaluate_report.write(args.output, report, sets)
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")
    return 0


def _privacy(audits: dict[str, Any], sets: dict[str, Any]) -> dict[str, Any]:
    """The report's audit: in pixels, and in the feature spaces of `audits`."""
    from medsd_jax.evaluation.privacy import QUANTILE, audit_pixels, most_suspicious

    pictures = ([p for b in sets[k].batches(1) for p in b] for k in ("train", "real", "synthetic"))
    audits = {"pixels": audit_pixels(*pictures), **audits}
    names = [[str(path) for path in sets[k].paths] for k in ("synthetic", "train")]
    return {
        "quantile": QUANTILE,
        "spaces": {name: audit.to_dict() for name, audit in audits.items()},
        "most_suspicious": most_suspicious(audits, *names),
    }


def _print_summary(report: dict[str, Any]) -> None:
    for spec, space in report["fidelity"].items():
        print(f"{spec}: {_in_words(space)}")
    if found := report["diversity"]:
        print(
            f"MS-SSIM within prompts {found['ms_ssim']['value']:.3f} ({found['num_prompts']} "
            f"prompts of {found['pictures_a_prompt']} pictures, {found['num_scales']} scales)"
        )
    for space, entry in (report["privacy"] or {"spaces": {}})["spaces"].items():
        print(
            f"{space}: {entry['num_suspicious']} pictures are nearer to a training picture "
            f"than strangers are ({entry['expected_by_chance']:.1f} by chance)"
        )


def _in_words(space: dict[str, Any]) -> str:
    halves = space["fid_real_halves"]
    parts = [f"FID {space['fid']:.4g} (halves of the real set: {halves['mean']:.4g})"]
    parts += [f"KID {space['kid']['value']:.3g} +- {space['kid']['standard_error']:.1g}"]
    parts += [
        f"{name} {space[name]:.3f}" for name in ("precision", "recall", "density", "coverage")
    ]
    return ", ".join(parts)
