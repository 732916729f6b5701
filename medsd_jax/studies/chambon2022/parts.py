"""The experiments of `reproduce` in which nothing is trained: the autoencoder, the text encoders.

E1 of arXiv 2210.04133 asks whether Stable Diffusion's autoencoder keeps radiographs, E3 what its
text encoder knows of findings beside an in-domain BERT; RoentGen asks the latter of encoders that
were fine-tuned, too.
"""

from pathlib import Path

from medsd_jax.errors import UserError
from medsd_jax.evaluation.reports.reconstruction import ReconstructionReport
from medsd_jax.evaluation.reports.studies import (
    AutoencoderInShort,
    EncoderInShort,
    TextEncodersInShort,
)
from medsd_jax.evaluation.reports.text_probe import TextProbeReport
from medsd_jax.reports.writing import read_report
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
    "unet_and_text": "the base model's, trained on ten images",
    "bert": "BERT in its place, trained on ten images",
}
"""The base model's, the BERT, and the rows that trained one of them."""
SHOWN = ("rmse", "psnr", "ssim", "ms_ssim")
RECONSTRUCTION_RECIPE = {"phantom": "phantom_reconstruction", "full": "reconstruction"}
PROBE_RECIPE = {"phantom": "phantom_text_probe", "full": "text_probe"}


def measure_autoencoder(study: Study, materials: Materials) -> AutoencoderInShort:
    """What the base model's autoencoder keeps of the held-out images (E1).

    Returns:
        The main numbers of `reconstruct`, whose report is made once, in OUTPUT/autoencoder.
    """
    from medsd_jax.workflows.reconstruct import reconstruct

    folder = study.output / AUTOENCODER
    if not (folder / "report.json").exists():
        print("[reproduce] the autoencoder", flush=True)
        config = measuring_recipe(study, RECONSTRUCTION_RECIPE).lock()
        reconstruct(config, materials.base, materials.real, folder, classifier=materials.classifier)
    path = folder / "report.json"
    report = read_report(path, ReconstructionReport, _again(folder))
    if report.classifier is None or LABEL not in report.classifier.labels:
        raise UserError(f"{path} says nothing of {LABEL}; {_again(folder)}")
    return AutoencoderInShort(
        num_images=report.measured.num_images,
        image_size=report.measured.image_size,
        **{name: getattr(report.similarity, name).mean for name in SHOWN},
        good_enough=report.result.good_enough,
        prediction_flips=report.classifier.labels[LABEL].prediction_flips,
        report=f"{AUTOENCODER}/report.html",
    )


def probe_text_encoders(
    study: Study, materials: Materials, models: dict[str, str]
) -> TextEncodersInShort:
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
    chosen = {name: everything[name] for name in ENCODER_TITLES if name in everything}
    if path.exists():
        report = read_report(path, TextProbeReport, _again(path.parent))
        if any(LABEL not in entry.labels for entry in report.encoders):
            raise UserError(f"{path} says nothing of {LABEL}; {_again(path.parent)}")
        if [entry.name for entry in report.encoders] == list(chosen):
            return _text_encoders_in_short(report)
    print(f"[reproduce] what {len(chosen)} text encoders know", flush=True)
    config = measuring_recipe(study, PROBE_RECIPE)
    config.labels = (LABEL,)
    data = ("phantom", None) if study.scale == "phantom" else (study.source, study.path)
    report = probe_encoders(
        config.lock(), chosen, data, path.parent, cache_dir=study.output / "data"
    )
    return _text_encoders_in_short(report)


def _again(folder: Path) -> str:
    return f"remove {folder}: the same command measures again"


def _text_encoders_in_short(report: TextProbeReport) -> TextEncodersInShort:
    return TextEncodersInShort(
        num_texts=report.data.validation.num_texts,
        encoders=tuple(
            EncoderInShort(
                name=entry.name,
                architecture=entry.architecture,
                width=entry.width,
                auroc=entry.labels[LABEL].auroc,
                f1=entry.labels[LABEL].f1,
            )
            for entry in report.encoders
        ),
        report=f"{TEXT_ENCODERS}/{REPORT}",
    )
