"""What a model's autoencoder keeps of images."""

from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from medsd_jax.arrays import evenly_spread
from medsd_jax.config.ranges import check_ranges
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.evaluation.reports.reconstruction import ReconstructionReport


def reconstruct(
    config: ConfigDict, model: str, real: str, output: Path, *, classifier: Path | None = None
) -> "ReconstructionReport":
    """Measures a model's autoencoder and writes report.json, report.html and worst.png.

    Args:
        config: by `medsd_jax.config.reconstruction_config`.
        model: diffusers folder, hub id, or training workdir.
        real: the images, as the flag names them.
        output: a folder; made where it is missing.
        classifier: folder of one that looks at originals and reconstructions.

    Returns:
        What report.json holds.

    Raises:
        UserError: the model, the images or the classifier cannot be read or do not fit together.
    """
    from medsd_jax.classifier.model import load_classifier
    from medsd_jax.evaluation.autoencoder import open_autoencoder
    from medsd_jax.evaluation.by_classifier.prediction_flips import (
        check_classifier,
        prediction_flips,
    )
    from medsd_jax.evaluation.images.image_sets import open_images
    from medsd_jax.evaluation.images.prompt_labels import known_labels
    from medsd_jax.evaluation.reconstruction import compare_with_thresholds, measure, summarise
    from medsd_jax.evaluation.reports.reconstruction import (
        ClassifierFlips,
        MeasuredImages,
        MeasuredModel,
        ReconstructionReport,
        WorstImage,
    )
    from medsd_jax.files import check_permission
    from medsd_jax.parallel.mesh import make_mesh
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports import reconstruction
    from medsd_jax.reports.writing import package_versions

    check_permission(output)
    autoencoder = open_autoencoder(model, config.image_size, config.resize_mode)
    loaded = None if classifier is None else load_classifier(classifier)
    images = open_images(real)
    rows = evenly_spread(len(images), config.num_images or len(images))
    everything = known_labels(images)
    labels = [everything[row] for row in rows]
    patient_ids = [images.patient_ids[row] for row in rows]
    if loaded is not None:
        check_classifier(loaded, labels, autoencoder.image_size)
    measured = measure(
        autoencoder, images, rows, batch_size=config.batch_size, mesh=make_mesh({"data": -1}),
        classifier=loaded,
    )  # fmt: skip
    similarity, colour_cast, bands = summarise(measured, patient_ids, seed=config.seed)
    flips = None
    if loaded is not None:
        assert measured.calls is not None
        flips = ClassifierFlips(
            where=str(classifier),
            image_size=loaded.image_size,
            labels=prediction_flips(loaded, measured.calls, labels, patient_ids, seed=config.seed),
        )
    report = ReconstructionReport(
        versions=package_versions(),
        model=MeasuredModel(where=model, vae_hash=autoencoder.fingerprint),
        set=images.summary(),
        measured=MeasuredImages(
            num_images=len(rows),
            num_patients=len(set(patient_ids)),
            image_size=autoencoder.image_size,
            resize_mode=autoencoder.resize_mode,
        ),
        result=compare_with_thresholds(
            measured, {"psnr": config.least_psnr, "ssim": config.least_ssim}
        ),
        similarity=similarity,
        colour_cast=colour_cast,
        bands=bands,
        classifier=flips,
        worst=tuple(
            WorstImage(image=images.keys[case.row], **case.values) for case in measured.worst
        ),
        seed=config.seed,
    )
    if is_main_process():
        reconstruction.write(output, report, measured)
    return report


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value makes no sense."""
    check_ranges(config)
    if config.num_images == 1:
        raise UserError("num_images = 1: a spread needs at least 2 images")
    if config.resize_mode not in (None, *RESIZE_MODES):
        known = ", ".join(RESIZE_MODES)
        raise UserError(f"resize_mode = {config.resize_mode!r} is none of {known}")


def in_words(report: "ReconstructionReport") -> str:
    """The main numbers in a few lines."""
    similarity = report.similarity
    lines = [
        f"{report.measured.num_images} images: PSNR {similarity.psnr.mean.value:.2f} dB, "
        f"SSIM {similarity.ssim.mean.value:.4f}, MS-SSIM {similarity.ms_ssim.mean.value:.4f} "
        f"({similarity.num_scales} scales), RMSE {similarity.rmse.mean.value:.4f}"
    ]
    for label, entry in (report.classifier.labels if report.classifier else {}).items():
        lines.append(
            f"{label}: {entry.prediction_flips.value:.1%} of the classifier's predictions flip"
        )
        auroc = entry.auroc
        if auroc is not None and auroc.difference is not None:
            lines[-1] += (
                f"; AUROC {auroc.original.value:.3f} -> {auroc.reconstruction.value:.3f}, "
                f"difference {auroc.difference:+.3f}"
            )
    criteria = ", ".join(
        f"mean {c.name.upper()} {c.value:.4g} {'>=' if c.passed else '<'} {c.minimum:g}"
        for c in report.result.criteria
    )
    words = "good enough" if report.result.good_enough else "not good enough"
    return "\n".join([*lines, f"{words} ({criteria}). {report.result.caveat}"])
