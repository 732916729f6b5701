"""``medsd-jax evaluate vae``: what a model's autoencoder keeps of pictures."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medsd_jax.arrays import evenly_spread
from medsd_jax.config.ranges import check_ranges
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError


def audit(
    config: ConfigDict, model: str, real: str, output: Path, *, judge_folder: Path | None = None
) -> dict[str, Any]:
    """Measures a model's autoencoder and writes report.json, report.html and worst.png.

    Args:
        config: by `medsd_jax.config.reconstruction_config`.
        model: diffusers folder, hub id, or training workdir.
        real: the pictures, as the flag names them.
        output: a folder; made where it is missing.
        judge_folder: a classifier that looks at originals and reconstructions.

    Returns:
        What report.json holds.

    Raises:
        UserError: the model, the pictures or the judge cannot be read or do not fit together.
    """
    from medsd_jax.classifier.model import load_classifier
    from medsd_jax.evaluation.autoencoder import open_autoencoder
    from medsd_jax.evaluation.by_classifier.prediction_flips import changed_calls, check_judge
    from medsd_jax.evaluation.images.image_sets import open_pictures
    from medsd_jax.evaluation.images.prompt_labels import known_labels
    from medsd_jax.evaluation.reconstruction import give_verdict, measure, summarise
    from medsd_jax.files import check_permission
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports import reconstruction

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
        reconstruction.write(output, report, measured)
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
