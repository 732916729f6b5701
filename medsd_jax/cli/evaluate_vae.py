"""``python -m medsd_jax evaluate vae``: what a model's autoencoder keeps of pictures."""

import argparse
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medsd_jax.cli.config_ranges import check_ranges
from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.hosts import add_host_flags, host_flags
from medsd_jax.cli.recipes import add_recipe_flag, base_config, settings_of
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError

BASE, RECIPE = "get_vae_audit_config", "configs/vae_audit.py"

_EXAMPLES = """examples:
  python -m medsd_jax evaluate vae --model runs/demo --real runs/demo/data:validation \\
      --output runs/vae_audit --judge runs/demo/classifier
  python -m medsd_jax evaluate vae --model CompVis/stable-diffusion-v1-4 --real my_images \\
      --output runs/vae_audit --config configs/vae_audit.py

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
    default = base_config(BASE)
    add_host_flags(parser)
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
    add_recipe_flag(parser, RECIPE)
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
        "--least_psnr", type=float, metavar="DB",
        help=f"mean PSNR that is good enough: see below (default {default.least_psnr:g})",
    )  # fmt: skip
    add(
        "--least_ssim", type=float, metavar="X",
        help=f"mean SSIM that is good enough: see below (default {default.least_ssim:g})",
    )  # fmt: skip
    add(
        "--batch_size", type=positive_int, metavar="N",
        help=f"on each device (default {default.batch_size})",
    )  # fmt: skip
    add("--seed", type=int, help=f"of the resamples of the intervals (default {default.seed})")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    config = settings_of(args, BASE, RECIPE)
    check_config(config)
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.workdir import working_in
    from medsd_jax.parallel.multihost import is_main_process

    start_devices(host_flags(args))
    with working_in(args.output, "an evaluation"):
        report = audit(config, args.model, args.real, args.output, judge_folder=args.judge)
    if is_main_process():
        print(in_words(report))
        page = args.output / "report.html"
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")
    return 0


def audit(
    config: ConfigDict, model: str, real: str, output: Path, *, judge_folder: Path | None = None
) -> dict[str, Any]:
    """Measures a model's autoencoder and writes report.json, report.html and worst.png.

    Args:
        config: by `configs.base.get_vae_audit_config`.
        model: diffusers folder, hub id, or training workdir.
        real: the pictures, as the flag names them.
        output: a folder; made where it is missing.
        judge_folder: a classifier that looks at originals and reconstructions.

    Returns:
        What report.json holds.

    Raises:
        UserError: the model, the pictures or the judge cannot be read or do not fit together.
    """
    from medsd_jax.arrays import evenly_spread
    from medsd_jax.cli import evaluate_vae_report
    from medsd_jax.evaluation.autoencoder import open_autoencoder
    from medsd_jax.evaluation.changed_calls import changed_calls, check_judge
    from medsd_jax.evaluation.classifier import load_classifier
    from medsd_jax.evaluation.picture_sets import open_pictures
    from medsd_jax.evaluation.prompt_labels import known_labels
    from medsd_jax.evaluation.reconstruction import give_verdict, measure, summarise
    from medsd_jax.files import check_permission
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process

    check_permission(output)
    autoencoder = open_autoencoder(model, config.image_size, config.resize_mode)
    judge = None if judge_folder is None else load_classifier(judge_folder)
    pictures = open_pictures(real)
    rows = evenly_spread(len(pictures), config.num_images or len(pictures))
    everything = known_labels(pictures)
    labels = [everything[row] for row in rows]
    patient_ids = [pictures.patient_ids[row] for row in rows]
    if judge is not None:
        check_judge(judge, labels, autoencoder.image_size)
    measured = measure(
        autoencoder, pictures, rows, batch_size=config.batch_size, mesh=make_mesh({"data": -1}),
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
        "verdict": give_verdict(measured, {"psnr": config.least_psnr, "ssim": config.least_ssim}),
        **summarise(measured, patient_ids, seed=config.seed),
        "judge": None,
        "worst": [{"picture": pictures.keys[case.row], **case.values} for case in measured.worst],
        "seed": config.seed,
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
            "labels": changed_calls(judge, measured.calls, labels, patient_ids, seed=config.seed),
        }
    if is_main_process():
        evaluate_vae_report.write(output, report, measured)
    return report


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value makes no sense."""
    check_ranges(config)
    if config.num_images == 1:
        raise UserError("num_images = 1: a spread needs at least 2 pictures")
    if config.resize_mode not in (None, *RESIZE_MODES):
        known = ", ".join(RESIZE_MODES)
        raise UserError(f"resize_mode = {config.resize_mode!r} is none of {known}")


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
