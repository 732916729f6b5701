"""The demo's result as one page: OUTPUT/report.html, OUTPUT/report.json and OUTPUT/images/.

report.html needs no other file and no network. report.json holds the page's numbers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medsd_jax.data.dataset import Dataset
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.prompt_adherence import PromptPredictions
from medsd_jax.evaluation.reports.base import LabelScores
from medsd_jax.evaluation.reports.studies import (
    DemoData,
    DemoPair,
    DemoReport,
    LossAt,
    LossEnds,
    TrainingRun,
    VaeError,
)
from medsd_jax.files import read_object, write_text
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.reports.page import page_template
from medsd_jax.reports.writing import package_versions, write_report
from medsd_jax.studies.demo.commands import next_steps
from medsd_jax.studies.demo.images import (
    Curve,
    Images,
    find_phantoms,
    plot_losses,
    read_images,
    read_previews,
    reconstruct,
)
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.train.data import open_data

STAGES = {
    "prepare": "Phantoms drawn, tokenizer learnt, random weights made",
    "vae": "Autoencoder trained",
    "diffusion": "Text encoder and U-Net trained",
    "classifier": "Classifier trained on phantoms",
    "sample": "Images sampled",
    "classify": "Images classified",
    "export": "Model written for PyTorch",
}
KEPT_STAGES = ("vae", "diffusion", "classifier")
"""Those that a second run does not repeat."""
RECONSTRUCTIONS_SHOWN = 8
RECONSTRUCTIONS_MEASURED = 64
WORST_SHOWN = 8


@dataclass(frozen=True)
class Classified:
    """What the classifier says of generated images.

    Attributes:
        predictions: of every classified image.
        images: [n, H, W, 3] uint8, the classified ones.
        classifier: its own scores for the label on held-out phantoms.
    """

    predictions: PromptPredictions
    images: np.ndarray
    classifier: LabelScores

    def worst(self) -> list[tuple[np.ndarray, str, float]]:
        """The images that agree least with their prompt: image, prompt, probability."""
        classified = self.predictions
        return [
            (self.images[i], classified.prompts[i], float(classified.probability[i]))
            for i in classified.worst(WORST_SHOWN)
        ]


def write(
    output: Path,
    plain: np.ndarray,
    effusion: np.ndarray,
    prompts: tuple[str, str],
    model: StableDiffusion,
    seconds: Mapping[str, float],
    classified: Classified,
) -> Path:
    """Write the report of a finished demo.

    Args:
        output: the demo's folder: metrics.jsonl, config.json and samples/ of the diffusion run,
            vae/ with those of the VAE's, data/ with the prepared phantoms.
        plain: [n, H, W, 3] uint8, image i sampled from seed i with the first prompt.
        effusion: [n, H, W, 3] uint8, image i sampled from seed i with the second prompt.
        prompts: without and with the finding.
        model: the trained model.
        seconds: stage -> seconds it took in this run, in the order of the stages.
        classified: the classifier's, on images of both prompts.

    Returns:
        The path of report.html.

    Raises:
        UserError: a file of the training runs is missing or unreadable.
    """
    assert plain.shape == effusion.shape and plain.dtype == effusion.dtype == np.uint8
    configs = {"vae": _read_config(output / "vae"), "diffusion": _read_config(output)}
    curves = {"vae": _read_curves(output / "vae"), "diffusion": _read_curves(output)}
    dataset = _open_data(configs["diffusion"], output)
    held_out, size = dataset.validation, plain.shape[1]
    measured = range(min(RECONSTRUCTIONS_MEASURED, len(held_out)))
    originals = read_images(held_out, measured, size)
    reconstructions, l1 = reconstruct(model, originals)
    images = Images(
        plain=plain,
        effusion=effusion,
        phantoms={
            "No finding": find_phantoms(held_out, "no_finding", size),
            "Pleural effusion": find_phantoms(held_out, "pleural_effusion", size),
        },
        originals=originals[:RECONSTRUCTIONS_SHOWN],
        reconstructions=reconstructions[:RECONSTRUCTIONS_SHOWN],
        previews=read_previews(output / "samples"),
        curves={name: plot_losses(curve) for name, curve in curves.items()},
    )
    adherence = classified.predictions.report()
    numbers = DemoReport(
        versions=package_versions(),
        prompts=DemoPair(plain=prompts[0], effusion=prompts[1]),
        num_images={"plain": len(plain), "effusion": len(effusion)},
        image_size=plain.shape[1:3],
        parameters=count_parameters(model),
        model_fingerprint=model.fingerprint(),
        data=_describe_data(dataset, configs["diffusion"]),
        training={name: _describe_run(configs[name], curves[name]) for name in configs},
        vae_reconstruction=VaeError(l1=l1, n=len(originals)),
        prompt_accuracy=adherence.prompt_accuracy,
        classifier_accuracy=classified.classifier.accuracy,
        prompt_adherence=adherence,
        classifier=classified.classifier,
        seconds={name: round(s, 2) for name, s in seconds.items()}
        | {"total": round(sum(seconds.values()), 2)},
        device=_describe_device(),
    )
    images.save(output / "images", prompts)
    write_report(output / "report.json", numbers)
    page = page_template("demo.html.jinja").render(
        numbers=numbers,
        images=images,
        worst=classified.worst(),
        latents=_describe_latents(model, size),
        preview_prompts=configs["diffusion"]["preview"]["prompts"],
        stages=[(STAGES.get(name, name), s) for name, s in seconds.items()],
        # A stage that an earlier run had finished takes no time to find done.
        kept=[STAGES[name] for name in KEPT_STAGES if seconds.get(name, 1.0) < 0.5],
        next_steps=next_steps(output, configs["diffusion"]),
    )  # fmt: skip
    report = output / "report.html"
    write_text(report, page)
    return report


def count_parameters(model: StableDiffusion) -> dict[str, int]:
    """Weights of each component, and of all."""
    counts = dict.fromkeys(("unet", "vae", "text_encoder"), 0)
    for name, weight in model.params.items():
        counts[name.partition(".")[0]] += int(np.prod(weight.shape))
    return counts | {"total": sum(counts.values())}


def _open_data(config: Mapping[str, Any], output: Path) -> Dataset:
    config = ConfigDict(config)
    config.data.cache_dir = str(output / "data")  # the folder may have moved since
    return open_data(config, output)


def _read_config(workdir: Path) -> dict[str, Any]:
    return read_object(_require(workdir / "config.json"), f"remove {workdir}: it is trained again")


def _read_curves(workdir: Path) -> dict[str, Curve]:
    path = _require(workdir / "metrics.jsonl")
    rows = read_scalars(workdir)
    curves = {
        kind: [(int(row["step"]), row[f"{kind}/loss"]) for row in rows if f"{kind}/loss" in row]
        for kind in ("train", "validation")
    }
    for kind, curve in curves.items():
        if not curve:
            raise UserError(f"{path} holds no {kind}/loss: the report needs a finished run")
    return curves


def _require(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the report needs the files of the training runs; "
            "make them with medsd-jax demo"
        )
    return path


def _describe_data(dataset: Dataset, config: Mapping[str, Any]) -> DemoData:
    info = dataset.info
    return DemoData(
        source=info.source,
        image_size=config["data"]["image_size"],
        num_images=dict(info.num_images),
        num_patients=dict(info.num_patients),
    )


def _describe_run(config: Mapping[str, Any], curves: Mapping[str, Curve]) -> TrainingRun:
    def ends(curve: Curve) -> LossEnds:
        first, last = (LossAt(step=step, value=value) for step, value in (curve[0], curve[-1]))
        return LossEnds(first=first, last=last)

    return TrainingRun(
        steps=config["train"]["steps"],
        batch_size=config["data"]["batch_size"],
        train_loss=ends(curves["train"]),
        validation_loss=ends(curves["validation"]),
    )


def _describe_latents(model: StableDiffusion, size: int) -> dict[str, Any]:
    side, channels = size // model.vae.downscale, model.vae.latent_channels
    return {"shape": (side, side, channels), "fewer": 3 * size**2 / (channels * side**2)}


def _describe_device() -> str:
    first = jax.devices()[0]
    if first.platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"{jax.device_count()} × {first.device_kind}"
