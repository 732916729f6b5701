"""Sampling for an evaluation: the images of some prompts, made once for OUTPUT."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from medsd_jax.config.ranges import check_ranges
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.errors import UserError
from medsd_jax.workflows.models import load
from medsd_jax.workflows.sample_to_folder import SamplingSettings, read_requests, sample_to_folder

SETTINGS = ("num_images", "sampler", "num_steps", "guidance_scale")
"""Keys that are flags of the same name here, in sample.py and in `reproduce`."""


@dataclass(frozen=True)
class Sampling:
    """What to sample.

    Attributes:
        model: diffusers folder, hub id, or training workdir.
        prompts: a table as for sample.py, or the prompts themselves.
        config: by `medsd_jax.config.sampling_config`; its prompts are not looked at.
    """

    model: str
    prompts: Path | Sequence[str]
    config: ConfigDict


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value makes no sense."""
    check_ranges(config)
    if config.sampler not in SAMPLER_NAMES:
        raise UserError(f"sampler = {config.sampler!r} is none of {', '.join(SAMPLER_NAMES)}")
    if any(not prompt.strip() for prompt in config.prompts):
        raise UserError("a prompt is empty; leave it out")


def sample_for_evaluation(sampling: Sampling, output: Path) -> Path:
    """Samples into OUTPUT/samples; images of an earlier call are kept.

    Returns:
        The folder of the images.

    Raises:
        UserError: images are there that were sampled in another way.
    """
    table = isinstance(sampling.prompts, Path)
    config = sampling.config
    requests = read_requests(
        () if table else sampling.prompts,
        sampling.prompts if table else None,
        num_images=config.num_images,
        seed=config.seed,
        same_seeds=config.same_seeds,
    )
    folder = output / "samples"
    sample_to_folder(
        load(sampling.model),
        requests,
        folder,
        SamplingSettings(
            sampler=config.sampler,
            num_steps=config.num_steps,
            guidance_scale=config.guidance_scale,
        ),
        source={"model": sampling.model, "lora": [], "embedding": []},
        columns=config.num_images,
    )
    return folder
