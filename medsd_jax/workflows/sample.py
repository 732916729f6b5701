"""Sampling as a notebook and all commands call it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.errors import UserError
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.batching import filled
from medsd_jax.parallel.mesh import batch_shards, make_mesh
from medsd_jax.parallel.multihost import fetch
from medsd_jax.sampling.editing import edit_inputs
from medsd_jax.sampling.edits import DEFAULT_STRENGTH
from medsd_jax.sampling.finite import require_finite_images
from medsd_jax.sampling.inputs import SamplerShape, make_inputs
from medsd_jax.sampling.sampler import compiled_sampler, place_inputs, place_params

MAX_STEPS = 1000
"""Static bound of the sampling program; the number of steps itself is traced."""

_CELLS_PER_SHARD = 4 * 64 * 64
"""Latent cells a device works on at once by default: four images of 512 px, 256 of 64 px."""


def schedule_of(model: StableDiffusion) -> ScheduleConfig:
    """The model's noise schedule, with the two values that StableDiffusionPipeline always sets.

    Whatever the file says, latents are never clipped and "leading" times are shifted by 1.
    `clip_sample` bounds pixels at [-1, 1]; latents are not bounded, and clipping them ruins the
    image. A `steps_offset` other than 1 is what files of early releases, and those of other
    schedulers, hold by default; diffusers samples them with 1.
    """
    config = ScheduleConfig.from_dict(model.scheduler)
    return replace(config, clip_sample=False, steps_offset=1)


def place(model: StableDiffusion, mesh: Mesh | None = None) -> StableDiffusion:
    """The same model with its weights on the devices, so that sampling moves them no more."""
    return replace(model, params=place_params(model.params, mesh or make_mesh({"data": -1})))


def trained_size(model: StableDiffusion) -> int:
    """Pixels along one side of the square images that the model was trained for."""
    return model.unet.sample_size * model.vae.downscale


def sample(
    model: StableDiffusion,
    prompts: Sequence[str] | str,
    *,
    seeds: Sequence[int] | None = None,
    sampler: str = "ddim",
    num_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    negative_prompts: Sequence[str] | str = "",
    height: int | None = None,
    width: int | None = None,
    latents: np.ndarray | None = None,
    init_images: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    strength: float | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    attention: str = "auto",
    progress: bool = True,
) -> np.ndarray:
    """Samples one image per prompt with classifier-free guidance, or redraws given images.

    With `init_images` the images are noised and denoised again under their prompts; with `masks`
    only the masked part changes, and all pixels outside of it stay as they are.

    A second call with other prompts, seeds, steps, guidance or eta compiles nothing, as long as the
    batch size and the image size stay.

    Args:
        model: from `load`; see `place` for sampling repeatedly from a large one.
        prompts: n texts, or one.
        seeds: n integers in [0, 2^32); image i depends on seeds[i], not on its neighbours.
            0, 1, 2, ... by default.
        sampler: "ddim", "pndm", "dpmpp_2m", "dpmpp_2m_karras", "euler" or "euler_ancestral".
        num_steps: of the sampler, at most 1000.
        guidance_scale: 1 follows the plain conditional model; the papers use 4 and 7.5.
        guidance_rescale: against over-exposure at large guidance scales: 0 is off, 1 the strongest.
        eta: of DDIM; 0 is deterministic given the start noise, 1 adds fresh noise at every step.
        negative_prompts: one for all, or n.
        height: pixels; the size the model was trained for by default.
        width: likewise.
        latents: [n, h, w, 4] float32 unit noise to start from instead of the seeds' own.
        init_images: [H, W, 3] uint8 for all prompts, or [n, H, W, 3]; height and width are theirs.
        masks: [H, W] bool for all prompts, or [n, H, W], true where the image is redrawn;
            everywhere by default. A rim of half a latent cell inside of it fades into the image.
        strength: in (0, 1], how much noise the init images get: 1 redraws with all steps, less
            makes the last num_steps * strength of them. 0.8 by default.
        batch_size: images at once over all devices; chosen by the image size by default.
        mesh: device mesh; all devices by default.
        dtype: of the computation, "float32" or "bfloat16".
        attention: attention implementation.
        progress: show a progress bar.

    Returns:
        [n, H, W, 3] uint8, all of it in every process.

    Raises:
        UserError: a setting is out of its range, the lengths do not agree, or the model gives
            numbers that are not finite: it names the part.
    """
    return np.concatenate(list(sample_batches(**locals())))


def sample_batches(
    model: StableDiffusion,
    prompts: Sequence[str] | str,
    *,
    seeds: Sequence[int] | None = None,
    sampler: str = "ddim",
    num_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    negative_prompts: Sequence[str] | str = "",
    height: int | None = None,
    width: int | None = None,
    latents: np.ndarray | None = None,
    init_images: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    strength: float | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    attention: str = "auto",
    progress: bool = True,
    skip: int = 0,
) -> Iterator[np.ndarray]:
    """`sample`, batch by batch: one batch alone is kept in memory.

    The arguments are those of `sample`. The first `skip` images are not made: they are there from
    an earlier call.

    Returns:
        An iterator over [b, H, W, 3] uint8 in the order of the prompts. Mistakes in the arguments
        are raised by this call, before anything is computed.

    Raises:
        UserError: as `sample`; a batch with numbers that are not finite is never given out.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    n = len(prompts)
    if not n:
        raise UserError("no prompt given")
    one_for_all = isinstance(negative_prompts, str)
    negatives = [negative_prompts] * n if one_for_all else list(negative_prompts)
    # As objects: a float, or an integer beyond 64 bits, must reach the check as it is.
    seeds = np.asarray(range(n) if seeds is None else seeds, object)
    if len(negatives) != n or seeds.shape != (n,):
        given = f"{list(seeds.shape)} and [{len(negatives)}]"
        raise UserError(f"{n} prompts need as many seeds and negative prompts, not {given}")
    if latents is not None:
        latents = np.asarray(latents, np.float32)
        if latents.shape[:1] != (n,):
            given = list(latents.shape)
            raise UserError(f"{n} prompts need start latents [{n}, h, w, C], not {given}")
    for name, value in (("masks", masks), ("strength", strength)):
        if value is not None and init_images is None:
            raise UserError(f"{name} without init_images: there is no image to redraw")
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    given = {}
    if init_images is not None:
        given = edit_inputs(n, init_images, masks, model.vae.downscale)
        height, width = _agreed_size(given["given_u8"].shape[1:3], height, width)
    shape = SamplerShape(
        model.unet, model.vae, model.text_encoder, schedule_of(model),
        trained_size(model) if height is None else height,
        trained_size(model) if width is None else width,
        max_steps=MAX_STEPS, dtype=dtype, attention=attention, sampler=sampler, edits=bool(given),
    )  # fmt: skip
    settings = {
        "num_steps": num_steps, "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale, "eta": eta,
    }  # fmt: skip
    if given:
        settings["strength"] = DEFAULT_STRENGTH if strength is None else strength
    batch_size = _batch_size(batch_size, n, shape, mesh)
    ids, negative_ids = (encode_prompts(model.tokenizer, texts) for texts in (prompts, negatives))
    # All inputs are checked before anything is computed.
    make_inputs(shape, ids, negative_ids, seeds, start=latents, **settings, **given)

    params = place_params(model.params, mesh)
    generate = compiled_sampler(shape, mesh)

    def batches() -> Iterator[np.ndarray]:
        with tqdm(total=n, initial=skip, unit="image", desc="sample", disable=not progress) as bar:
            for start in range(skip, n, batch_size):
                stop_if_asked()
                rows = filled(np.arange(start, min(start + batch_size, n)), batch_size)
                inputs = make_inputs(
                    shape, ids[rows], negative_ids[rows], seeds[rows],
                    start=None if latents is None else latents[rows], **settings,
                    **{name: rows_of_all[rows] for name, rows_of_all in given.items()},
                )  # fmt: skip
                made, finite = generate(params, place_inputs(inputs, mesh))
                require_finite_images(fetch(finite)[: n - start], start, prompts, seeds)
                made = fetch(made)[: n - start]
                bar.update(len(made))
                yield made

    return batches()


def _agreed_size(size: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
    for name, given, theirs in (("height", height, size[0]), ("width", width, size[1])):
        if given is not None and given != theirs:
            raise UserError(f"{name} = {given}, but the init images have {theirs} pixels")
    return size


def _batch_size(given: int | None, n: int, shape: SamplerShape, mesh: Mesh) -> int:
    shards = batch_shards(mesh)
    if given is not None:
        if given < 1 or given % shards:
            raise UserError(f"batch_size = {given} must be a multiple of {shards} device shard(s)")
        return given
    h, w, _ = shape.latents
    most = shards * max(_CELLS_PER_SHARD // max(h * w, 1), 1)
    # Batches of one size, as equal as they can be: the last one is filled up with wasted images.
    batches = math.ceil(n / most)
    return shards * math.ceil(n / (batches * shards))
