"""Prompts to images in a folder. A call that was killed goes on where it was."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.bounds import MAX_IMAGES
from medsd_jax.data.sources.tables import is_no_text, read_csv
from medsd_jax.errors import UserError
from medsd_jax.files import content_hash, read_array
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.multihost import is_main_process
from medsd_jax.sampling.edits import Edit
from medsd_jax.sampling.images import make_grid, save_png
from medsd_jax.workflows.sample import sample_batches, trained_size
from medsd_jax.workflows.sample_folder import SampleFolder

log = logging.getLogger(__name__)

_READ_COLUMNS = ("prompt", "negative_prompt", "seed")
GRID_LIMIT = 64
"""Images in grid.png at most; more are too small to see."""


@dataclass(frozen=True)
class SamplingRequest:
    """One image to make.

    Attributes:
        prompt: what it shall show.
        negative_prompt: what guidance pushes away from.
        seed: of its noise.
        row: the other columns of its line in the table, such as an id and labels.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    row: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingSettings:
    """How all images of a folder are sampled; see `medsd_jax.sample`."""

    sampler: str = "ddim"
    num_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class StartLatents:
    """Noise that the images start from, instead of their seeds' own.

    Attributes:
        values: [n, h, w, 4] float32.
        path: where it was read, for the record.
    """

    values: np.ndarray
    path: Path


def sample_to_folder(
    model: StableDiffusion,
    requests: Sequence[SamplingRequest],
    output: Path,
    settings: SamplingSettings,
    *,
    source: Mapping[str, Any],
    layout: str = "files",
    height: int | None = None,
    width: int | None = None,
    latents: StartLatents | None = None,
    edit: Edit | None = None,
    batch_size: int | None = None,
    columns: int = 8,
) -> int:
    """Samples images into a folder: PNG files, samples.jsonl, grid.png.

    Images that an earlier call left there are kept, where they were asked for in the same way.

    Args:
        model: from `medsd_jax.load`.
        requests: one for each image.
        output: the folder.
        settings: how all of them are sampled.
        source: what the record says of the model: "model", "lora", "embedding".
        layout: names of the files, see `SampleFolder`.
        height: pixels; the size the model was trained for if None.
        width: likewise.
        latents: start noise.
        edit: an image to redraw instead of sampling one from noise; the images are square.
        batch_size: images at once over all devices; by their size if None.
        columns: of the grid.

    Returns:
        How many images grid.png shows.

    Raises:
        UserError: the folder holds other images, or a setting is out of its range.
    """
    size = trained_size(model)
    if edit is not None:
        size = height or width or size
        edit = edit.fitted(size)
    height, width = height or size, width or size
    record = {
        "sampler": settings.sampler,
        "num_steps": settings.num_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
        "eta": settings.eta,
        "height": height,
        "width": width,
        "dtype": settings.dtype,
        **source,
        "model_hash": model.fingerprint(),
        "start_latents": None if latents is None else str(latents.path),
        "start_latents_hash": None if latents is None else content_hash(latents.values),
        **({} if edit is None else edit.metadata),
    }
    entries = [
        {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            **({"row": dict(request.row)} if request.row else {}),
            **record,
        }
        for request in requests
    ]
    shown = np.zeros((0,))
    with SampleFolder(output, layout, entries) as folder:
        if folder.done:
            log.info("%d of %d images are there already", folder.done, len(requests))
        if folder.done < len(requests):
            batches = sample_batches(
                model,
                [r.prompt for r in requests],
                seeds=[r.seed for r in requests],
                negative_prompts=[r.negative_prompt for r in requests],
                sampler=settings.sampler,
                num_steps=settings.num_steps,
                guidance_scale=settings.guidance_scale,
                guidance_rescale=settings.guidance_rescale,
                eta=settings.eta,
                height=height,
                width=width,
                latents=None if latents is None else latents.values,
                batch_size=batch_size,
                dtype=settings.dtype,
                skip=folder.done,
                **({} if edit is None else edit.arguments()),
            )
            for images in batches:
                folder.add(images, edit=edit)
        folder.finish()
        if is_main_process():
            shown = folder.first(GRID_LIMIT)
            captions = [f"{r.prompt} ({r.seed})" for r in requests[: len(shown)]]
            grid = make_grid(
                shown, columns=min(columns, 8), captions=captions if width >= 128 else None
            )
            save_png(grid, output / "grid.png", record)
    return len(shown)


def read_requests(
    prompts: Sequence[str] = (),
    table: Path | None = None,
    *,
    num_images: int,
    seed: int = 0,
    same_seeds: bool = False,
    negative_prompt: str = "",
    seeds_draw_noise: bool = True,
) -> list[SamplingRequest]:
    """The images to make of some prompts and of a table of prompts, prompt by prompt.

    Args:
        prompts: texts.
        table: a CSV with a column prompt and, if wanted, negative_prompt and seed.
        num_images: of each prompt.
        seed: of the first image; image i of all has seed + i.
        same_seeds: image i of each prompt has seed + i instead.
        negative_prompt: where the table names none.
        seeds_draw_noise: false where the images start from given noise: then equal seeds make no
            copies.

    Raises:
        UserError: there is no prompt, or the table cannot be used.
    """
    rows = [{"prompt": prompt} for prompt in prompts]
    if table is not None:
        rows += _read_csv(table)
    if not rows:
        raise UserError("no prompt: give one, or a table of prompts")
    if len(rows) * num_images > MAX_IMAGES:
        raise UserError(
            f"{len(rows)} prompts with {num_images} images each are {len(rows) * num_images} "
            f"images, more than the {MAX_IMAGES} of one call: ask for fewer, and go on with "
            "another seed and folder"
        )
    requests: list[SamplingRequest] = []
    for row in rows:
        first = seed if same_seeds else seed + len(requests)
        if named := row.get("seed"):
            try:
                # pandas writes a column of whole numbers as 12.0 where one of them is missing.
                first = int(named.removesuffix(".0"))
            except ValueError:
                raise UserError(f"{table}: seed {named!r} is not a whole number") from None
        negative = row.get("negative_prompt") or negative_prompt
        others = {k: v for k, v in row.items() if k not in _READ_COLUMNS}
        requests += [
            SamplingRequest(row["prompt"], negative, first + i, others) for i in range(num_images)
        ]
    _check_seeds(requests, seeds_draw_noise)
    return requests


def _check_seeds(requests: Sequence[SamplingRequest], noise_of_seeds: bool) -> None:
    """Refuses seeds that no noise has, and tells of images that will be copies of each other."""
    for number, request in enumerate(requests):
        if not 0 <= request.seed < 2**32:
            raise UserError(
                f"seed {request.seed} of image {number} must be a whole number between 0 and "
                f"{2**32 - 1}: images count on from the first seed, or from the seed of their row"
            )
    distinct = {(r.prompt, r.negative_prompt, r.seed) for r in requests}
    if noise_of_seeds and len(distinct) < len(requests):
        log.warning(
            "%d of %d images are exact copies of others: their prompt and their seed are the same",
            len(requests) - len(distinct), len(requests),
        )  # fmt: skip


def _read_csv(path: Path) -> list[dict[str, str]]:
    table = read_csv(path, whole_rows=True)
    if "prompt" not in table.names:
        raise UserError(
            f"{path} has no column 'prompt' (columns: {', '.join(table.names) or 'none'})"
        )
    rows = [row for _, row in table.rows if not is_no_text(row["prompt"])]
    if len(rows) < len(table.rows):
        log.warning(
            "%s: %d rows whose prompt is nan, None or the like are left out",
            path, len(table.rows) - len(rows),
        )  # fmt: skip
    if empty := sum(not row["prompt"] for row in rows):
        log.warning("%s: %d prompts are empty", path, empty)
    return rows


def read_latents(path: Path) -> StartLatents:
    """Start noise from a .npy file; pickled arrays are refused because unpickling runs code."""
    latents = read_array(path, "give one array [n, h, w, 4] of floats")
    if latents.ndim != 4 or latents.dtype.kind != "f":
        raise UserError(f"start latents {path} must be one float array [n, h, w, 4]")
    if not np.isfinite(latents).all():
        raise UserError(f"start latents {path} contains values that are not finite")
    return StartLatents(latents.astype(np.float32), path)


def check_output(folder: Path) -> None:
    """Refuses a path that is no folder, before anything is loaded."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
