"""Pictures of fixed prompts while training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax import api
from medsd_jax.arrays import Params
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.multihost import is_main_process
from medsd_jax.sampling.images import make_grid, save_png


def make_preview(
    config: ConfigDict, model: StableDiffusion, mesh: Mesh, workdir: Path
) -> Callable[[Params, int], None] | None:
    """Returns what samples the fixed prompts from fixed seeds into WORKDIR/samples/STEP.png.

    None where the config asks for no pictures.
    """
    if not config.preview.every_steps or not config.preview.prompts:
        return None
    each, size = config.preview.images_per_prompt, config.data.image_size
    prompts = [prompt for prompt in config.preview.prompts for _ in range(each)]
    seeds = [config.preview.seed + i for i in range(each)]
    model = replace(model, params={})  # the weights come with each call

    def preview(params: Params, step: int) -> None:
        images = api.sample(
            replace(model, params=params),
            prompts,
            seeds=seeds * len(config.preview.prompts),
            num_steps=config.preview.num_steps,
            guidance_scale=config.preview.guidance_scale,
            height=size,
            width=size,
            mesh=mesh,
            dtype=config.model.dtype,
            attention=config.model.attention,
            progress=False,
        )
        if not is_main_process():
            return
        folder = workdir / "samples"
        folder.mkdir(exist_ok=True)
        about = {"step": step, "prompts": list(config.preview.prompts), "seeds": seeds}
        save_png(make_grid(images, columns=each), folder / f"{step:07d}.png", about)

    return preview
