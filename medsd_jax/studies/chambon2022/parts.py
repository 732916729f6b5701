"""The experiments of `reproduce` in which nothing is trained: the autoencoder, the text encoders.

E1 of arXiv 2210.04133 asks whether Stable Diffusion's autoencoder keeps radiographs, E3 what its
text encoder knows of findings beside an in-domain BERT; RoentGen asks the latter of encoders that
were fine-tuned, too.
"""

from pathlib import Path
from typing import Any

from medsd_jax.files import json_object
from medsd_jax.studies.chambon2022.experiments import (
    BASE,
    LABEL,
    Materials,
    Study,
    measuring_recipe,
)
from medsd_jax.workflows.probe_text import REPORT

AUTOENCODER, TEXT_ENCODERS = "autoencoder", "text_encoders"
ENCODER_TITLES = {
    BASE: "the base model's",
    "in_domain": "in-domain BERT, as it is",
    "unet_and_text": "the base model's, trained on ten pictures",
    "bert": "BERT in its place, trained on ten pictures",
}
"""The base model's, the BERT, and the rows that trained one of them."""
SHOWN = ("rmse", "psnr", "ssim", "ms_ssim")
AUDIT_RECIPE = {"phantom": "phantom_vae_audit", "full": "vae_audit"}
PROBE_RECIPE = {"phantom": "phantom_text_probe", "full": "text_probe"}


def audit_autoencoder(study: Study, materials: Materials) -> dict[str, Any]:
    """What the base model's autoencoder keeps of the held-out pictures (E1).

    Returns:
        The main numbers of `evaluate vae`, whose report is made once, in OUTPUT/autoencoder.
    """
    from medsd_jax.workflows.reconstruct import audit

    folder = study.output / AUTOENCODER
    if not (folder / "report.json").exists():
        print("[reproduce] the autoencoder", flush=True)
        config = measuring_recipe(study, AUDIT_RECIPE).lock()
        audit(config, materials.base, materials.real, folder, judge_folder=materials.judge)
    with json_object(folder / "report.json", _again(folder)) as report:
        return _autoencoder_in_short(report)


def probe_text_encoders(
    study: Study, materials: Materials, models: dict[str, str]
) -> dict[str, Any]:
    """What the text encoders know of the finding in a caption, before and after training (E3).

    Args:
        study: the comparison.
        materials: with the BERT.
        models: row -> model.

    Returns:
        The main numbers of `probe-text`, whose report is made once for these encoders, in
        OUTPUT/text_encoders.
    """
    from medsd_jax.workflows.probe_text import probe_encoders

    path = study.output / TEXT_ENCODERS / REPORT
    everything = {**models, "in_domain": materials.encoder}
    wanted = {name: everything[name] for name in ENCODER_TITLES if name in everything}
    if path.exists():
        with json_object(path, _again(path.parent)) as report:
            if [entry["name"] for entry in report["encoders"]] == list(wanted):
                return _text_encoders_in_short(report)
    print(f"[reproduce] what {len(wanted)} text encoders know", flush=True)
    config = measuring_recipe(study, PROBE_RECIPE)
    config.labels = (LABEL,)
    data = ("phantom", None) if study.scale == "phantom" else (study.source, study.path)
    report = probe_encoders(
        config.lock(), wanted, data, path.parent, cache_dir=study.output / "data"
    )
    return _text_encoders_in_short(report)


def _again(folder: Path) -> str:
    return f"remove {folder}: the same command measures again"


def _autoencoder_in_short(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_images": report["measured"]["num_images"],
        "image_size": report["measured"]["image_size"],
        **{name: entry["mean"] for name, entry in report["similarity"].items() if name in SHOWN},
        "good_enough": report["verdict"]["good_enough"],
        "changed_calls": report["judge"]["labels"][LABEL]["changed"],
        "report": f"{AUTOENCODER}/report.html",
    }


def _text_encoders_in_short(report: dict[str, Any]) -> dict[str, Any]:
    """An encoder's scores are null where too few captions have the finding, or lack it."""
    return {
        "num_texts": report["data"]["validation"]["num_texts"],
        "encoders": [
            {
                "name": entry["name"],
                "class": entry["class"],
                "width": entry["width"],
                **{score: entry["labels"][LABEL].get(score) for score in ("auroc", "f1")},
            }
            for entry in report["encoders"]
        ],
        "report": f"{TEXT_ENCODERS}/{REPORT}",
    }
