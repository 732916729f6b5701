"""Images of fixed prompts while training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.arrays import Params
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.multihost import is_main_process
from medsd_jax.sampling.images import make_grid, save_png
from medsd_jax.workflows.sample import sample as sample_images

Sample = Callable[[Params, Sequence[str], Sequence[int]], np.ndarray]
"""``(weights, prompts, seeds) -> [n, H, W, 3] uint8``"""


def make_sample(
    config: ConfigDict, model: StableDiffusion, mesh: Mesh, asked: ConfigDict
) -> Sample:
    """Returns what samples from the weights of a training run, as the run computes.

    Args:
        config: of the run.
        model: its shapes and tokenizer; the weights come with each call.
        mesh: the devices.
        asked: `config.preview`, `config.evaluation` or `config.prior`: sampler, num_steps and
            guidance_scale.
    """
    model, size = replace(model, params={}), config.data.image_size

    def sample(params: Params, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        return sample_images(
            replace(model, params=params),
            prompts,
            seeds=seeds,
            sampler=asked.sampler,
            num_steps=asked.num_steps,
            guidance_scale=asked.guidance_scale,
            height=size,
            width=size,
            mesh=mesh,
            dtype=config.model.dtype,
            attention=config.model.attention,
            progress=False,
        )

    return sample


def make_preview(
    config: ConfigDict, model: StableDiffusion, mesh: Mesh, workdir: Path
) -> Callable[[Params, int], None] | None:
    """Returns what samples the fixed prompts from fixed seeds into WORKDIR/samples/STEP.png.

    None where the config asks for no images.
    """
    if not config.preview.every_steps or not config.preview.prompts:
        return None
    each = config.preview.images_per_prompt
    prompts = [prompt for prompt in config.preview.prompts for _ in range(each)]
    seeds = [config.preview.seed + i for i in range(each)]
    sample = make_sample(config, model, mesh, config.preview)

    def preview(params: Params, step: int) -> None:
        images = sample(params, prompts, seeds * len(config.preview.prompts))
        if not is_main_process():
            return
        folder = workdir / "samples"
        folder.mkdir(exist_ok=True)
        metadata = {"step": step, "prompts": list(config.preview.prompts), "seeds": seeds}
        save_png(make_grid(images, columns=each), folder / f"{step:07d}.png", metadata)

    return preview
