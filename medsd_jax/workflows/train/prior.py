"""The images that a model draws before it is trained, for prior preservation."""

import contextlib
import hashlib
import json
import logging
import math
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.data.record_lists import RecordList
from medsd_jax.data.records import Record
from medsd_jax.errors import UserError
from medsd_jax.files import atomic_write, remove_parts
from medsd_jax.folders import wait_until_seen
from medsd_jax.locks import lock
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import batch_shards
from medsd_jax.parallel.multihost import is_first_on_disk, is_main_process, true_everywhere
from medsd_jax.sampling.images import save_png
from medsd_jax.workflows.models import load
from medsd_jax.workflows.train.preview import make_sample

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Images between two writes, on each device: what an interrupted run loses at most."""


def prior_images(
    config: ConfigDict, model: StableDiffusion, workdir: Path, mesh: Mesh
) -> tuple[RecordList, Path]:
    """Samples what is not there yet of the prior's images, and opens them.

    They lie in CACHE/prior-FINGERPRINT, where the fingerprint covers the weights and all settings:
    an interrupted run goes on with them, and every run from the same model shares them.

    Args:
        config: of the run; `config.prior` says what to sample.
        model: before training; it draws them, unless `config.prior.path` names another one.
        workdir: its data/ is the cache where config.data.cache_dir names none.
        mesh: the devices.

    Returns:
        The images with their prompts, and their folder.

    Raises:
        UserError: the folder cannot be written, or the other model not be read.
    """
    asked, size = config.prior, config.data.image_size
    if asked.path is not None:
        model = load(asked.path)
    settings = {
        "model_hash": model.fingerprint(),
        "scheduler": dict(model.scheduler),
        "prompts": list(asked.prompts),
        "seed": asked.seed,
        "sampler": asked.sampler,
        "num_steps": asked.num_steps,
        "guidance_scale": asked.guidance_scale,
        "image_size": size,
        "dtype": config.model.dtype,
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(config.data.cache_dir or workdir / "data") / f"prior-{fingerprint}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the prior's images to {folder}: {error}") from error
    prompts = [asked.prompts[i % len(asked.prompts)] for i in range(asked.num_images)]
    paths = [folder / f"{i:05d}.png" for i in range(asked.num_images)]
    sample = make_sample(config, model, mesh, asked)
    # As equal as they can be: another number of images is another program to compile.
    # Another run from the same model draws the same images: who comes second waits for them.
    with contextlib.ExitStack() as held:
        if is_main_process() and not all(path.is_file() for path in paths):
            held.enter_context(lock(folder, "a training", wait=math.inf))
            remove_parts(folder)
        writes: bool | None = None
        parts = math.ceil(asked.num_images / (_AT_ONCE * batch_shards(mesh)))
        for rows in np.array_split(np.arange(asked.num_images), parts):
            if true_everywhere(all(paths[i].is_file() for i in rows)):
                continue
            if writes is None:
                writes = is_first_on_disk(folder)
            log.info("sampling images %d to %d of the prior", rows[0], rows[-1])
            seeds = [asked.seed + int(i) for i in rows]
            images = sample(model.params, [prompts[i] for i in rows], seeds)
            for i, seed, image in zip(rows, seeds, images, strict=True):
                if not writes:
                    break
                with atomic_write(paths[i]) as part:
                    save_png(image, part, {**settings, "prompt": prompts[i], "seed": seed})
        if writes is not None:
            true_everywhere(True)  # all files are written
            for path in paths:
                wait_until_seen(path)
    records = [
        Record(key=path.name, image=path, text=prompt, patient_id=path.name)
        for path, prompt in zip(paths, prompts, strict=True)
    ]
    return RecordList(records, f"prior-{asked.num_images}", fingerprint), folder
