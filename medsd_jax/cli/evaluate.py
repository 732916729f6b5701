"""``python -m medsd_jax evaluate``: two sets of pictures, and every distance between them."""

import argparse
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

REPORT, SUSPICIOUS = "report.json", "suspicious.png"
_PAIRS_SHOWN, _PAIR_SIDE = 16, 128  # of the picture

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
    add("--output", required=True, type=Path, metavar="DIR", help=f"gets {REPORT}")
    add(
        "--features", required=True, action="append", metavar="KIND=PATH",
        help="feature space; may be repeated",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of subsets and resamples (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.evaluation.features.extraction import features_of, open_network
    from medsd_jax.evaluation.fidelity import fidelity
    from medsd_jax.evaluation.picture_sets import open_pictures
    from medsd_jax.evaluation.privacy import audit_features
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process

    networks = {spec: open_network(spec) for spec in args.features}
    where = {"real": args.real, "synthetic": args.synthetic}
    if args.train:
        where["train"] = args.train
    sets = {name: open_pictures(path) for name, path in where.items()}
    start_devices()
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
    protocol = {s: [space["weights_and_input"], space["k"]] for s, space in spaces.items()}
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
        "privacy": _privacy(audits, sets, args.output) if args.train else None,
        "seed": args.seed,
        # Equal hashes: the numbers were measured in the same way and may be compared.
        "protocol": hashlib.blake2b(
            json.dumps(sorted(protocol.values())).encode(), digest_size=8
        ).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("medsd_jax", "jax", "numpy", "scipy")},
        },
    }
    if is_main_process():
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (args.output / REPORT).write_text(text, encoding="utf-8")
        for spec, space in spaces.items():
            print(f"{spec}: {_in_words(space)}")
        if report["privacy"]:
            for space, entry in report["privacy"]["spaces"].items():
                print(
                    f"{space}: {entry['num_suspicious']} pictures are nearer to a training picture "
                    f"than strangers are ({entry['expected_by_chance']:.1f} by chance)"
                )
        print(f"the numbers are in {args.output / REPORT}")
    return 0


def _privacy(audits: dict[str, Any], sets: dict[str, Any], output: Path) -> dict[str, Any]:
    """The report's audit; the most suspicious pairs go into a picture."""
    import numpy as np

    from medsd_jax.data.transforms import resize
    from medsd_jax.evaluation.picture_sets import read_picture
    from medsd_jax.evaluation.privacy import QUANTILE, audit_pixels, most_suspicious
    from medsd_jax.sampling.images import make_grid, save_png

    pictures = ([p for b in sets[k].batches(1) for p in b] for k in ("train", "real", "synthetic"))
    audits = {"pixels": audit_pixels(*pictures), **audits}
    names = [[str(path) for path in sets[k].paths] for k in ("synthetic", "train")]
    listed = most_suspicious(audits, *names)
    shown = []
    for row in listed[:_PAIRS_SHOWN]:
        for path in (row["picture"], row["nearest"]):
            picture = read_picture(Path(path))
            rgb = np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture
            shown.append(resize(rgb, _PAIR_SIDE))
    captions = [
        text for row in listed[:_PAIRS_SHOWN] for text in (f"{row['ratio']:.2f}", "nearest")
    ]
    grid = make_grid(np.stack(shown), columns=8, padding=4, captions=captions)
    save_png(grid, output / SUSPICIOUS, {"pairs": "synthetic, nearest training picture"})
    return {
        "quantile": QUANTILE,
        "spaces": {name: audit.to_dict() for name, audit in audits.items()},
        "most_suspicious": listed,
    }


def _in_words(space: dict[str, Any]) -> str:
    halves = space["fid_real_halves"]
    parts = [f"FID {space['fid']:.4g} (halves of the real set: {halves['mean']:.4g})"]
    parts += [f"KID {space['kid']['value']:.3g} +- {space['kid']['standard_error']:.1g}"]
    parts += [
        f"{name} {space[name]:.3f}" for name in ("precision", "recall", "density", "coverage")
    ]
    return ", ".join(parts)
