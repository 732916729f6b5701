"""The adaptations that arXiv 2210.04133 and RoentGen compare, in the order of the result table."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.files import write_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclass(frozen=True)
class Experiment:
    """One row of the table.

    Attributes:
        name: of its folder.
        title: of its row.
        recipe: its file in configs/, by scale; None where nothing is trained.
        encoder: a BERT takes part: "projected" into CLIP's space, or "swapped" for CLIP.
        paper: what the papers found.
    """

    name: str
    title: str
    recipe: dict[str, str] | None = None
    encoder: str | None = None
    paper: str = ""


BASE = "base"
BASE_RECIPE = {"phantom": "phantom_out_of_the_box", "full": "out_of_the_box"}
"""Nothing is trained by it; it says what every row samples, and which prompts by default."""
EVALUATION = "evaluation"
"""Folder of a training's images and of the report about them."""
LABEL = "pleural_effusion"
WITH_PRIOR, WITHOUT_PRIOR = "unet_prior", "unet_no_prior"

EXPERIMENTS = (
    Experiment(
        BASE,
        "Base model, not adapted",
        paper="Realistic medical images are hard to get from it.",
    ),
    Experiment(
        "text_projection",
        "Textual projection of an in-domain encoder",
        {"phantom": "phantom_text_projection", "full": "text_projection"},
        encoder="projected",
        paper="Its images did not resemble chest X-rays.",
    ),
    Experiment(
        "textual_inversion",
        "Textual inversion",
        {"phantom": "phantom_textual_inversion", "full": "textual_inversion"},
        paper="Better than the base model and the projection, far from medical reality.",
    ),
    Experiment(
        WITHOUT_PRIOR,
        "U-Net, ten images, no prior",
        {"phantom": "phantom_no_prior", "full": "few_shot_no_prior"},
        paper="Not told.",
    ),
    Experiment(
        WITH_PRIOR,
        "U-Net, ten images, prior preservation",
        {"phantom": "phantom_few_shot", "full": "few_shot"},
        paper="The best: lowest FID, the finding follows the prompt, 95 % by a classifier.",
    ),
    Experiment(
        "unet_and_text",
        "U-Net and text encoder, ten images, prior",
        {"phantom": "phantom_unet_and_text", "full": "few_shot_unet_and_text"},
        paper="RoentGen, on tens of thousands of images: highest fidelity.",
    ),
    Experiment(
        "bert",
        "BERT in CLIP's place, with the U-Net, ten images, prior",
        {"phantom": "phantom_bert", "full": "few_shot_unet_and_text"},
        encoder="swapped",
        paper="RoentGen, on tens of thousands of images: helps where the encoder is frozen.",
    ),
    Experiment(
        "lora",
        "LoRA on the U-Net, ten images, prior",
        {"phantom": "phantom_lora", "full": "few_shot_lora"},
        paper="Not in the papers.",
    ),
)


@dataclass(frozen=True)
class Materials:
    """What all rows share.

    Attributes:
        base: the model that is adapted.
        encoder: folder or hub id of a BERT.
        real: held-out real images, as `evaluate` takes them.
        classifier: folder of a classifier.
        features: feature spaces, as `evaluate` takes them; the first gives the table's distance.
    """

    base: str
    encoder: str
    real: str
    classifier: Path
    features: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
        scale: "phantom", where a small model is trained first, or "full": the papers' scale.
        output: the folder of everything.
        only: rows to train; all if empty. Finished rows stay in the table.
        num_images: of each prompt; the recipe's if None, as of the next three.
        guidance_scale: of sampling.
        sampler: likewise.
        num_steps: likewise.
        seeds: trainings of each row, with the recipe's seed and the next ones.
        train_steps: of every training instead of its recipe's, for a quick look.
        configs: folder of the recipes instead of the project's.
        model: the model that is adapted; this and all below are for scale "full" alone.
        source: data set of the ten images, as data.source.
        path: its folder.
        prompts: a file that textual projection learns from; the captions of the source if None.
        encoder: folder or hub id of an in-domain BERT.
        real: held-out real images, as `evaluate` takes them.
        classifier: folder of a classifier.
        features: feature spaces, as `evaluate` takes them.
    """

    scale: str
    output: Path
    only: Sequence[str] = ()
    num_images: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    num_steps: int | None = None
    seeds: int = 1
    train_steps: int | None = None
    configs: Path | None = None
    model: str | None = None
    source: str | None = None
    path: str | None = None
    prompts: str | None = None
    encoder: str | None = None
    real: str | None = None
    classifier: Path | None = None
    features: Sequence[str] | None = None


def sampling_of(study: Study) -> "ConfigDict":
    """How every row samples: by the base model's recipe, and by the flags that were given."""
    config = measuring_recipe(study, BASE_RECIPE)
    from medsd_jax.workflows.sample_for_evaluation import SETTINGS  # waits for JAX

    for name in SETTINGS:
        if getattr(study, name) is not None:
            config[name] = getattr(study, name)
    return config.lock()


def prompts_of(study: Study, experiment: Experiment | None = None) -> tuple[str, str]:
    """The prompt without the finding and the one with it: a row's own, or the base model's."""
    if experiment is None or experiment.recipe is None or experiment.encoder == "projected":
        without, with_finding = measuring_recipe(study, BASE_RECIPE).prompts
        return without, with_finding
    config = recipe_of(study, experiment.recipe[study.scale])
    return config.few_shot.prompt_without, config.few_shot.prompt_with


def measuring_recipe(study: Study, names: Mapping[str, str]) -> "ConfigDict":
    """A recipe by which nothing is trained, of the scale."""
    from medsd_jax.config.recipes import load_config

    return load_config(names[study.scale], study.configs)


@contextlib.contextmanager
def timed(workdir: Path) -> Iterator[None]:
    """Leaves the seconds of a training in its folder; of this call: a resumed run took longer."""
    began = time.perf_counter()
    yield
    write_json(workdir / "seconds.json", time.perf_counter() - began)


def recipe_of(study: Study, name: str) -> "ConfigDict":
    """A training's recipe, with the data that the flags name and shorter where they ask for it."""
    from medsd_jax.config.recipes import load_config

    config = load_config(name, study.configs)
    config.data.cache_dir = str(study.output / "data")
    if study.scale == "full":
        config.data.source, config.data.path = study.source, study.path
        if "prompts" in config.data:  # of a projection between text encoders
            config.data.prompts = study.prompts
    if study.train_steps is not None:
        config.train.steps = study.train_steps
        config.optim.warmup_steps = min(config.optim.warmup_steps, study.train_steps // 10)
    return config
