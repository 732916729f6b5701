"""``python -m medsd_jax evaluate vae``: what a model's autoencoder keeps of pictures."""

import argparse
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsd_jax.cli.flags import check_seed, positive_int
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError

LEAST = {"psnr": 30.0, "ssim": 0.9}
"""Means that are good enough."""
BATCH_SIZE = 4

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
        "--least_psnr", type=float, default=LEAST["psnr"], metavar="DB",
        help="mean PSNR that is good enough: a convention, see below (default 30)",
    )  # fmt: skip
    add(
        "--least_ssim", type=float, default=LEAST["ssim"], metavar="X",
        help="mean SSIM that is good enough: a convention, see below (default 0.9)",
    )  # fmt: skip
    add("--batch_size", type=positive_int, default=BATCH_SIZE, help="on each device (default 4)")
    add("--seed", type=int, default=0, help="of the resamples of the intervals (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    check_flags(args)
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.parallel.multihost import is_main_process

    start_devices()
    report = audit(
        args.model,
        args.real,
        args.output,
        judge_folder=args.judge,
        num_images=args.num_images,
        image_size=args.image_size,
        resize_mode=args.resize_mode,
        least={"psnr": args.least_psnr, "ssim": args.least_ssim},
        batch_size=args.batch_size,
        seed=args.seed,
    )
    if is_main_process():
        print(in_words(report))
        page = args.output / "report.html"
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")
    return 0


def audit(
    model: str,
    real: str,
    output: Path,
    *,
    judge_folder: Path | None = None,
    num_images: int | None = None,
    image_size: int | None = None,
    resize_mode: str | None = None,
    least: Mapping[str, float] = LEAST,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a model's autoencoder and writes report.json, report.html and worst.png.

    Args:
        model: diffusers folder, hub id, or training workdir.
        real: the pictures, as the flag names them.
        output: a folder; made where it is missing.
        judge_folder: a classifier that looks at originals and reconstructions.
        num_images: so many, spread evenly over the set; None: all.
        image_size: pixels, square; None: of the workdir's recipe, else the U-Net's.
        resize_mode: likewise.
        least: "psnr" and "ssim" -> the smallest mean that is good enough.
        batch_size: on each device.
        seed: of the resamples of the intervals.

    Returns:
        What report.json holds.

    Raises:
        UserError: the model, the pictures or the judge cannot be read or do not fit together.
    """
    import numpy as np

    from medsd_jax.cli import evaluate_vae_report
    from medsd_jax.evaluation.autoencoder import open_autoencoder
    from medsd_jax.evaluation.changed_calls import changed_calls, check_judge
    from medsd_jax.evaluation.classifier import load_classifier
    from medsd_jax.evaluation.picture_sets import open_pictures
    from medsd_jax.evaluation.prompt_labels import known_labels
    from medsd_jax.evaluation.reconstruction import give_verdict, measure, summarise
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process

    autoencoder = open_autoencoder(model, image_size, resize_mode)
    judge = None if judge_folder is None else load_classifier(judge_folder)
    pictures = open_pictures(real)
    last, most = len(pictures) - 1, num_images or len(pictures)
    rows = np.unique(np.linspace(0, last, most).round().astype(int)).tolist()
    everything = known_labels(pictures)
    labels = [everything[row] for row in rows]
    patient_ids = [pictures.patient_ids[row] for row in rows]
    if judge is not None:
        check_judge(judge, labels, autoencoder.image_size)
    measured = measure(
        autoencoder, pictures, rows, batch_size=batch_size, mesh=make_mesh({"data": -1}),
        judge=judge,
    )  # fmt: skip
    report: dict[str, Any] = {
        "model": {"where": model, "vae_hash": autoencoder.fingerprint},
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
        "verdict": give_verdict(measured, least),
        **summarise(measured, patient_ids, seed=seed),
        "judge": None,
        "worst": [{"picture": pictures.keys[case.row], **case.values} for case in measured.worst],
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("medsd_jax", "jax", "numpy", "scipy")},
        },
    }
    if judge is not None:
        assert measured.calls is not None
        report["judge"] = {
            "where": str(judge_folder),
            "image_size": judge.image_size,
            "labels": changed_calls(judge, measured.calls, labels, patient_ids, seed=seed),
        }
    if is_main_process():
        evaluate_vae_report.write(output, report, measured)
    return report


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where a number makes no sense."""
    if args.num_images == 1:
        raise UserError("--num_images 1: a spread needs at least 2 pictures")
    if not 0 < args.least_psnr <= 100:
        raise UserError(f"--least_psnr {args.least_psnr} must be above 0 and at most 100 decibels")
    if not 0 < args.least_ssim <= 1:
        raise UserError(f"--least_ssim {args.least_ssim} must be above 0 and at most 1")
    check_seed(args.seed)


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
