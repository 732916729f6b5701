"""Metrics while training: what the config asks for becomes one function for the loop."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from medsd_jax.arrays import Params
from medsd_jax.classifier.model import load_classifier
from medsd_jax.data.dataset import Dataset
from medsd_jax.data.tfds_builder import RecordSplit
from medsd_jax.data.transforms import load_image
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.prompt_adherence import judge_prompts
from medsd_jax.evaluation.features.extraction import FeatureNetwork, make_extractor, open_network
from medsd_jax.evaluation.metrics.fidelity import DISTANCES, NEIGHBOURS, distances
from medsd_jax.evaluation.metrics.frechet import moments_of
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.training.best import KeepBest
from medsd_jax.training.checkpoint import has_checkpoint
from medsd_jax.workflows.models import save
from medsd_jax.workflows.train.preview import make_sample

LARGER_IS_BETTER = {
    "validation_loss": False,
    "fid": False,
    "kid": False,
    "precision": True,
    "recall": True,
    "prompt_accuracy": True,
}
"""The metrics of `evaluation.metrics`, and which way the best of each lies."""

Metrics = dict[str, float]
Sample = Callable[[Params, Sequence[str]], np.ndarray]
"""``(weights, prompts) -> [n, H, W, 3] uint8``, picture i from the i-th seed."""

_MIN = NEIGHBOURS + 1
_READ_AT_ONCE = 256


def check_evaluation(config: ConfigDict) -> None:
    """Raises UserError where `evaluation` contradicts itself."""
    asked = config.evaluation
    if not asked.every_steps:
        return
    if config.task != "diffusion":
        raise UserError(f"evaluation.every_steps = {asked.every_steps} needs task = 'diffusion'")
    known = ", ".join(LARGER_IS_BETTER)
    if not asked.metrics:
        raise UserError(f"evaluation.metrics is empty: name some of {known}")
    for name in asked.metrics:
        if name not in LARGER_IS_BETTER:
            raise UserError(f"evaluation.metrics: {name!r} does not exist (there are: {known})")
    if asked.keep_best is not None and asked.keep_best not in asked.metrics:
        raise UserError(
            f"evaluation.keep_best = {asked.keep_best!r} is not among evaluation.metrics = "
            f"{tuple(asked.metrics)}: add it there"
        )
    needs = [name for name in asked.metrics if name in DISTANCES]
    if needs and asked.features is None:
        raise UserError(
            f"evaluation.metrics: {needs[0]!r} needs evaluation.features, such as classifier=FOLDER"
        )
    if needs and asked.num_images < _MIN:
        raise UserError(
            f"evaluation.num_images = {asked.num_images} must be at least {_MIN} for {needs[0]!r}"
        )
    if "prompt_accuracy" not in asked.metrics:
        return
    if asked.classifier is None:
        raise UserError(
            "evaluation.metrics: 'prompt_accuracy' needs evaluation.classifier, the folder that "
            "train-classifier wrote"
        )
    if asked.num_images < 2 or not asked.prompts_with or not asked.prompts_without:
        raise UserError(
            "'prompt_accuracy' needs evaluation.prompts_with, evaluation.prompts_without and an "
            f"evaluation.num_images of at least 2, not {asked.num_images}"
        )


def make_evaluation(
    config: ConfigDict, model: StableDiffusion, dataset: Dataset, mesh: Mesh, workdir: Path
) -> Callable[[Params, int, float | None], Metrics] | None:
    """Returns ``evaluation(params, step, validation loss) -> metrics``.

    None where the config asks for none. All processes call it, and all of them know the result; the
    main one writes the best weights into WORKDIR/best.

    Args:
        config: checked by `check_evaluation`.
        model: its shapes and tokenizer; the weights come with each call.
        dataset: its validation split is what the distances compare with.
        mesh: the devices.
        workdir: of the run.

    Raises:
        UserError: a network cannot be read or does not fit, or the split has too few pictures.
    """
    asked = config.evaluation
    if not asked.every_steps:
        return None
    names = tuple(asked.metrics)
    model = replace(model, params={})
    from_seeds = make_sample(config, model, mesh, asked)

    def sample(params: Params, prompts: Sequence[str]) -> np.ndarray:
        return from_seeds(params, prompts, [asked.seed + i for i in range(len(prompts))])

    parts: list[Callable[[Params], Metrics]] = []
    if of_features := [name for name in names if name in DISTANCES]:
        network = open_network(asked.features)
        parts.append(
            _make_distances(config, dataset.validation, network, sample, of_features, mesh)
        )
    if "prompt_accuracy" in names:
        parts.append(_make_judge(config, sample))
    best = _make_best(config, model, workdir) if asked.keep_best is not None else None

    def evaluation(params: Params, step: int, validation_loss: float | None) -> Metrics:
        found = {} if validation_loss is None else {"validation_loss": validation_loss}
        for part in parts:
            found |= part(params)
        found = {name: found[name] for name in names}
        if best is not None:
            best(params, step, found)
        return found

    return evaluation


def _make_distances(
    config: ConfigDict,
    split: RecordSplit,
    network: FeatureNetwork,
    sample: Sample,
    names: Sequence[str],
    mesh: Mesh,
) -> Callable[[Params], Metrics]:
    """Pictures of captions spread over the split, against all pictures of the split."""
    count = len(split)
    if count < _MIN:
        raise UserError(
            f"the {split.name} split has {count} pictures, but {names[0]!r} compares with at least "
            f"{_MIN}: raise data.validation_fraction"
        )
    most = max(config.evaluation.num_images, min(count, _READ_AT_ONCE))
    extract = make_extractor(network, mesh, most)
    found = []
    for start in tqdm(range(0, count, most), desc="features of the validation split"):
        rows = range(start, min(start + most, count))
        found.append(extract([_picture(config, split, row) for row in rows]))
    real = np.concatenate(found)
    real_moments = moments_of(real, "real")
    chosen = np.arange(config.evaluation.num_images) * count // config.evaluation.num_images
    prompts = [split.texts[row] for row in chosen]

    def measure(params: Params) -> Metrics:
        drawn = extract(sample(params, prompts))
        return distances(real, real_moments, drawn, names, split.patient_ids)

    return measure


def _picture(config: ConfigDict, split: RecordSplit, row: int) -> np.ndarray:
    return load_image(split[row].read_bytes(), config.data.image_size, config.data.resize_mode)


def _make_judge(config: ConfigDict, sample: Sample) -> Callable[[Params], Metrics]:
    """Half of the pictures with the finding; the other half from the same seeds without it."""
    asked = config.evaluation
    classifier = load_classifier(Path(asked.classifier).expanduser())
    classifier.column(asked.label)
    if classifier.image_size != config.data.image_size:
        raise UserError(
            f"evaluation.classifier = {asked.classifier} judges pictures of "
            f"{classifier.image_size} pixels, but data.image_size = {config.data.image_size}"
        )
    half = asked.num_images // 2
    sides = {True: asked.prompts_with, False: asked.prompts_without}

    def judge(params: Params) -> Metrics:
        images, prompts, answers = [], [], []
        for wanted, side in sides.items():
            texts = [side[i % len(side)] for i in range(half)]
            images.append(sample(params, texts))
            prompts += texts
            answers += [wanted] * half
        found = judge_prompts(classifier, asked.label, np.concatenate(images), prompts, answers)
        return {"prompt_accuracy": float(found.right.mean())}

    return judge


def _make_best(config: ConfigDict, model: StableDiffusion, workdir: Path) -> KeepBest:
    asked = config.evaluation
    # All that the values depend on besides the weights and the data.
    settings = {
        key: asked[key]
        for key in (
            "features", "classifier", "label", "prompts_with", "prompts_without", "num_images",
            "seed", "sampler", "num_steps", "guidance_scale",
        )
    }  # fmt: skip
    settings |= {f"validation.{key}": config.validation[key] for key in ("num_images", "seed")}
    return KeepBest(
        workdir,
        metric=asked.keep_best,
        larger_is_better=LARGER_IS_BETTER[asked.keep_best],
        settings=settings,
        resumed=has_checkpoint(workdir),
        save=lambda params, folder: save(replace(model, params=params), folder),
    )
