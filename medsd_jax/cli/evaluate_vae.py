"""``python -m medsd_jax evaluate vae``: what a model's autoencoder keeps of pictures."""

import argparse
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from medsd_jax.cli.flags import positive_int
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError

_EXAMPLES = """examples:
  python -m medsd_jax evaluate vae --model runs/demo --real runs/demo/data:validation \\
      --output runs/vae_audit --judge runs/demo/classifier
  python -m medsd_jax evaluate vae --model CompVis/stable-diffusion-v1-4 --real my_images \\
      --output runs/vae_audit --image_size 512 --num_images 1000

a set of pictures (R) is what `evaluate` takes: see python -m medsd_jax evaluate --help

The verdict compares two means with thresholds. Both thresholds are conventions of lossy image
compression and no medical validation: 30 dB is an RMSE of 3 % of the range, the lower end of what
compressed 8-bit pictures usually have; an SSIM of 0.9 is widely taken for "hardly distinguishable".
Neither says whether a finding can still be seen: --judge and the worst cases say more about that.
The exit code is 0 whatever the verdict is: this is a measurement, not a check."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``evaluate vae``."""
    parser = subparsers.add_parser(
        "evaluate vae",
        help="measure what a model's autoencoder keeps of pictures",
        description="Encodes pictures and decodes the mean of what comes out, as the first\n"
        "experiment of arXiv 2210.04133 does: RMSE, PSNR, SSIM and MS-SSIM on grey in [0, 1], the\n"
        "error by bands of grey, colour casts and, with --judge, which findings a classifier no\n"
        "longer calls alike.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="diffusers folder, hub id, or training workdir")
    add("--real", required=True, metavar="R", help="the pictures")
    add(
        "--output", required=True, type=Path, metavar="DIR",
        help="gets report.json, report.html and worst.png",
    )  # fmt: skip
    add(
        "--judge", type=Path, metavar="FOLDER",
        help="classifier that train-classifier wrote; it looks at originals and reconstructions",
    )  # fmt: skip
    add(
        "--num_images", type=positive_int, metavar="N",
        help="measure so many, spread evenly over the set (default: all)",
    )  # fmt: skip
    add(
        "--image_size", type=positive_int, metavar="P",
        help="pixels, square (default: of the workdir's recipe, else what the U-Net was made for)",
    )  # fmt: skip
    add(
        "--resize_mode", choices=RESIZE_MODES,
        help="how pictures become square (default: of the workdir's recipe, else pad)",
    )  # fmt: skip
    add(
        "--least_psnr", type=float, default=30.0, metavar="DB",
        help="mean PSNR that is good enough: a convention, see below (default 30)",
    )  # fmt: skip
    add(
        "--least_ssim", type=float, default=0.9, metavar="X",
        help="mean SSIM that is good enough: a convention, see below (default 0.9)",
    )  # fmt: skip
    add("--batch_size", type=positive_int, default=4, help="on each device (default 4)")
    add("--seed", type=int, default=0, help="of the resamples of the intervals (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    check_flags(args)

    import numpy as np

    from medsd_jax.cli import evaluate_vae_report
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.evaluation.autoencoder import open_autoencoder
    from medsd_jax.evaluation.changed_calls import changed_calls, check_judge
    from medsd_jax.evaluation.classifier import load_classifier
    from medsd_jax.evaluation.picture_sets import open_pictures
    from medsd_jax.evaluation.prompt_labels import known_labels
    from medsd_jax.evaluation.reconstruction import give_verdict, measure, summarise
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process

    start_devices()
    autoencoder = open_autoencoder(args.model, args.image_size, args.resize_mode)
    judge = None if args.judge is None else load_classifier(args.judge)
    pictures = open_pictures(args.real)
    last, most = len(pictures) - 1, args.num_images or len(pictures)
    rows = np.unique(np.linspace(0, last, most).round().astype(int)).tolist()
    everything = known_labels(pictures)
    labels = [everything[row] for row in rows]
    patient_ids = [pictures.patient_ids[row] for row in rows]
    if judge is not None:
        check_judge(judge, labels, autoencoder.image_size)
    measured = measure(
        autoencoder, pictures, rows, batch_size=args.batch_size, mesh=make_mesh({"data": -1}),
        judge=judge,
    )  # fmt: skip
    report: dict[str, Any] = {
        "model": {"where": args.model, "vae_hash": autoencoder.fingerprint},
        "set": {
            "where": pictures.name,
            "num_pictures": len(pictures),
            "num_patients": len(set(pictures.patient_ids)),
            "unreadable": list(pictures.unreadable),
            "fingerprint": pictures.fingerprint,
        },
        "measured": {
            "num_images": len(rows),
            "num_patients": len(set(patient_ids)),
            "image_size": autoencoder.image_size,
            "resize_mode": autoencoder.resize_mode,
        },
        "verdict": give_verdict(measured, {"psnr": args.least_psnr, "ssim": args.least_ssim}),
        **summarise(measured, patient_ids, seed=args.seed),
        "judge": None,
        "worst": [{"picture": pictures.keys[case.row], **case.values} for case in measured.worst],
        "seed": args.seed,
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("medsd_jax", "jax", "numpy", "scipy")},
        },
    }
    if judge is not None:
        assert measured.calls is not None
        report["judge"] = {
            "where": str(args.judge),
            "image_size": judge.image_size,
            "labels": changed_calls(judge, measured.calls, labels, patient_ids, seed=args.seed),
        }
    if is_main_process():
        page = evaluate_vae_report.write(args.output, report, measured)
        print(in_words(report))
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where a number makes no sense."""
    if args.num_images == 1:
        raise UserError("--num_images 1: a spread needs at least 2 pictures")
    if not 0 < args.least_psnr <= 100:
        raise UserError(f"--least_psnr {args.least_psnr} must be above 0 and at most 100 decibels")
    if not 0 < args.least_ssim <= 1:
        raise UserError(f"--least_ssim {args.least_ssim} must be above 0 and at most 1")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed} must be at least 0 and below 2**32")


def in_words(report: dict[str, Any]) -> str:
    """The main numbers in a few lines."""
    verdict, similarity = report["verdict"], report["similarity"]
    psnr, ssim = (similarity[name]["mean"]["value"] for name in ("psnr", "ssim"))
    lines = [
        f"{report['measured']['num_images']} pictures: PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, "
        f"MS-SSIM {similarity['ms_ssim']['mean']['value']:.4f} "
        f"({similarity['num_scales']} scales), RMSE {similarity['rmse']['mean']['value']:.4f}"
    ]
    for label, entry in (report["judge"] or {"labels": {}})["labels"].items():
        lines.append(f"{label}: the judge changes {entry['changed']['value']:.1%} of its calls")
        auroc = entry["auroc"] or {}
        if "difference" in auroc:
            low, high = auroc["difference"]["ci95"]
            lines[-1] += (
                f"; AUROC {auroc['original']['value']:.3f} -> "
                f"{auroc['reconstruction']['value']:.3f} ({low:+.3f} to {high:+.3f})"
            )
    criteria = ", ".join(
        f"mean {c['name'].upper()} {c['value']:.4g} {'>=' if c['passed'] else '<'} {c['least']:g}"
        for c in verdict["criteria"]
    )
    words = "good enough" if verdict["good_enough"] else "not good enough"
    return "\n".join([*lines, f"{words} ({criteria}). {verdict['caveat']}"])
