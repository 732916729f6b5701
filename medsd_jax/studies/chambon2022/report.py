"""The result of `reproduce`: results.json and results.html.

With several trainings a row's value is their mean, and its interval goes from the lowest to the
highest end of their intervals: what parts two rows then parts every training of theirs.
"""

import json
from pathlib import Path

import jax
import numpy as np

from medsd_jax.data.sources.tables import read_json_lines, text_cell
from medsd_jax.data.stored_image import UnreadableImageError, read_pixels
from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.intervals import bootstrap_interval
from medsd_jax.evaluation.metrics.similarity import intra_prompt_ms_ssim, most_scales
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.evaluation import EvaluationReport
from medsd_jax.evaluation.reports.studies import (
    AdaptationRow,
    AdaptationTraining,
    AutoencoderInShort,
    ClaimResult,
    ReproductionReport,
    TextEncodersInShort,
)
from medsd_jax.files import json_object, write_text
from medsd_jax.reports.page import page_template
from medsd_jax.reports.writing import package_versions, read_report, write_report
from medsd_jax.sampling.images import make_grid
from medsd_jax.studies.chambon2022.experiments import (
    BASE,
    EVALUATION,
    LABEL,
    WITH_PRIOR,
    WITHOUT_PRIOR,
    Experiment,
    Materials,
    Study,
    sampling_of,
)
from medsd_jax.studies.chambon2022.parts import ENCODER_TITLES

NUMBERS = ("fid", "prompt_accuracy", "ms_ssim")
GROUP = 4  # images of one prompt that are compared with each other: RoentGen's number
SHOWN = 8


def training(
    output: Path,
    folder: Path,
    experiment: Experiment,
    materials: Materials,
    *,
    seed: int,
    model: str,
) -> AdaptationTraining:
    """Gathers what one training and its evaluation left in their folder."""
    evaluation = folder / EVALUATION
    again = f"remove {evaluation}: the same command measures again"
    path = evaluation / "report.json"
    report = read_report(path, EvaluationReport, again)
    try:
        distances = report.fidelity[materials.features[0]]
        adherence = report.prompt_adherence.labels[LABEL]
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is of another evaluation (it lacks {error}); {again}") from error
    parameters, seconds = 0, None
    if experiment.recipe is not None:
        with json_object(folder / "parameters.json", f"remove {folder}: it is trained again") as x:
            parameters = int(x["trained"])
        seconds = _read_seconds(folder / "seconds.json")
    return AdaptationTraining(
        seed=seed,
        model=model,
        fid=distances.fid,
        prompt_accuracy=adherence.prompt_accuracy,
        confusion=adherence.confusion,
        ms_ssim=_ms_ssim(_samples(evaluation / "samples")),
        trained_parameters=parameters,
        seconds=seconds,
        evaluation=str(evaluation.relative_to(output)),
    )


def row(experiment: Experiment, output: Path, trainings: list[AdaptationTraining]) -> AdaptationRow:
    """One row of the table, from all trainings of it."""
    seconds = [entry.seconds for entry in trainings]
    return AdaptationRow(
        name=experiment.name,
        title=experiment.title,
        paper=experiment.paper,
        **{name: _together([getattr(entry, name) for entry in trainings]) for name in NUMBERS},
        trained_parameters=trainings[0].trained_parameters,
        seconds=None if None in seconds else sum(seconds) / len(seconds),
        prompts=tuple(_samples(output / trainings[0].evaluation / "samples")),
        trainings=tuple(trainings),
    )


def write(
    study: Study,
    materials: Materials,
    rows: list[AdaptationRow],
    autoencoder: AutoencoderInShort,
    text_encoders: TextEncodersInShort | None,
) -> None:
    """Writes both files; rows that are still to come are missing from them."""
    sampling = sampling_of(study)
    results = ReproductionReport(
        versions=package_versions(),
        scale=study.scale,
        base_model=materials.base,
        real=materials.real,
        features=tuple(materials.features),
        classifier=str(materials.classifier),
        guidance_scale=float(sampling.guidance_scale),
        sampler=sampling.sampler,
        num_steps=sampling.num_steps,
        num_images=2 * sampling.num_images,
        rows=tuple(rows),
        autoencoder=autoencoder,
        text_encoders=text_encoders,
        claims=claims(rows),
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    )
    write_report(study.output / "results.json", results)
    grids = {}
    for entry in rows:
        samples = _samples(study.output / entry.trainings[0].evaluation / "samples")
        shown = [x for images in samples.values() for x in images[:SHOWN]]
        grids[entry.name] = make_grid(np.stack(shown), columns=SHOWN)
    page = page_template("chambon2022.html.jinja").render(
        results=results, images=grids, encoder_titles=ENCODER_TITLES
    )
    write_text(study.output / "results.html", page)


def claims(rows: list[AdaptationRow]) -> tuple[ClaimResult, ...]:
    """What the papers claim that these numbers can be held against.

    A claim is held to where the two 95 % intervals part, refuted where they part the other way;
    otherwise the numbers do not tell.
    """
    by_name = {entry.name: entry for entry in rows}
    known = [
        ("With a prior the finding follows the prompt better than in the base model.",
         "prompt_accuracy", WITH_PRIOR, BASE, 1),
        ("With a prior the U-Net has a lower FID than the base model.",
         "fid", WITH_PRIOR, BASE, -1),
        ("U-Net fine-tuning has a lower FID than textual inversion.",
         "fid", WITH_PRIOR, "textual_inversion", -1),
        ("U-Net fine-tuning has a lower FID than textual projection.",
         "fid", WITH_PRIOR, "text_projection", -1),
        ("U-Net fine-tuning follows the prompt better than textual inversion.",
         "prompt_accuracy", WITH_PRIOR, "textual_inversion", 1),
        ("Textual inversion has a lower FID than the base model.",
         "fid", "textual_inversion", BASE, -1),
        ("Textual inversion has a lower FID than textual projection.",
         "fid", "textual_inversion", "text_projection", -1),
        ("With a prior the finding follows the prompt better than without one (not told).",
         "prompt_accuracy", WITH_PRIOR, WITHOUT_PRIOR, 1),
        ("The prior keeps the images of one prompt more diverse (DreamBooth, 2208.12242).",
         "ms_ssim", WITH_PRIOR, WITHOUT_PRIOR, -1),
    ]  # fmt: skip
    result = []
    for claim, metric, one, other, sign in known:
        if one not in by_name or other not in by_name:
            continue
        first, second = (getattr(by_name[name], metric) for name in (one, other))
        result.append(
            ClaimResult(
                claim=claim,
                metric=metric,
                estimates={one: first, other: second},
                result=_result(first.ci95, second.ci95, sign),
            )
        )
    return tuple(result)


def in_words(rows: list[AdaptationRow]) -> str:
    """The table for a terminal."""
    lines = [f"{'':56} {'FID':>8} {'accuracy':>9} {'MS-SSIM':>8} {'trained':>11} {'seconds':>8}"]
    for entry in rows:
        seconds = "" if entry.seconds is None else f"{entry.seconds:.0f}"
        lines.append(
            f"{entry.title:56} {entry.fid.value:8.3g} {entry.prompt_accuracy.value:9.1%} "
            f"{entry.ms_ssim.value:8.3f} {entry.trained_parameters:11,} {seconds:>8}"
        )
    return "\n".join(lines)


def _result(one: tuple[float, float], other: tuple[float, float], sign: int) -> str:
    if sign < 0:
        one, other = other, one
    if one[0] > other[1]:
        return "agrees"
    return "disagrees" if one[1] < other[0] else "undecided"


def _samples(folder: Path) -> dict[str, list[np.ndarray]]:
    """Prompt -> its images [H, W, 3] uint8, in the order of their sampling."""
    result: dict[str, list[np.ndarray]] = {}
    for where, entry in read_json_lines(folder / "samples.jsonl").rows:
        file, prompt = (text_cell(entry, name, where) for name in ("file", "prompt"))
        try:
            pixels, _ = read_pixels((folder / file).read_bytes())
        except (OSError, UnreadableImageError) as error:
            message = getattr(error, "strerror", None) or error
            raise UserError(
                f"{folder / file} cannot be read: {message}; remove {folder}"
            ) from error
        rgb = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
        result.setdefault(prompt, []).append(rgb)
    return result


def _read_seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; write the training's seconds") from error


def _ms_ssim(samples: dict[str, list[np.ndarray]]) -> Estimate:
    """MS-SSIM in groups of four images of one prompt, the groups resampled.

    Both prompts start from the same noises in the same order, so that their groups at one place are
    drawn together; where there is one place alone, each by itself.
    """
    groups, places = [], []
    for images in samples.values():
        grey = np.stack(images).mean(axis=-1, keepdims=True, dtype=np.float32) / 255.0
        count = len(grey) // GROUP
        groups.append(grey[: count * GROUP].reshape(count, GROUP, *grey.shape[1:]))
        places.extend(range(count))
    together = np.concatenate(groups)
    scales = most_scales(*together.shape[2:4])
    result = intra_prompt_ms_ssim(together, num_scales=scales)
    units = np.array(places) if len(set(places)) > 1 else None
    return bootstrap_interval(np.mean, result.of_prompts, units=units, seed=0)


def _together(estimates: list[Estimate]) -> Estimate:
    if len(estimates) == 1:
        return estimates[0]
    lows, highs = zip(*(estimate.ci95 for estimate in estimates), strict=True)
    return Estimate(
        value=float(np.mean([estimate.value for estimate in estimates])),
        n=sum(estimate.n for estimate in estimates),
        ci95=(min(lows), max(highs)),
    )
