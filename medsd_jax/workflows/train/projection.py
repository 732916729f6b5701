"""``medsd-jax train-projection``: a frozen BERT is taught to speak CLIP's language."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from medsd_jax.config.ranges import check_ranges
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.models.stable_diffusion import StableDiffusion

log = logging.getLogger(__name__)

_TRAINED = r"^text_encoder\.projection\."


def train_projection(config: ConfigDict, workdir: Path) -> None:
    """One run; the result is a diffusers folder WORKDIR/model.

    Args:
        config: by `medsd_jax.config.text_projection_config`.
        workdir: checkpoints, curves and the model go here; a checkpoint found here is resumed.

    Raises:
        UserError: the config, a model or the prompts cannot be used.
        DivergedError: the training diverged.
        KeyboardInterrupt: it was interrupted, and can be resumed.
    """
    from medsd_jax.workflows.workdir import working_in

    check_config(config)
    with working_in(workdir, "a training"):
        _train(config, workdir)


def _train(config: ConfigDict, workdir: Path) -> None:
    import jax.numpy as jnp

    from medsd_jax.adaptation.full import full
    from medsd_jax.data.prompt_batches import PromptBatches, PromptEvalBatches
    from medsd_jax.interop.diffusers_folder import check_writable
    from medsd_jax.models.networks import graph
    from medsd_jax.models.params import component, with_prefix
    from medsd_jax.parallel.mesh import check_batch, make_mesh, process_rows
    from medsd_jax.parallel.multihost import is_main_process, on_every_host
    from medsd_jax.training.loop import LoopSettings, run_loop
    from medsd_jax.training.projection_step import (
        TEACHER,
        make_projection_eval_step,
        make_projection_train_step,
    )
    from medsd_jax.workflows.models import load, save
    from medsd_jax.workflows.train.steps import optimizer_of

    mesh = make_mesh(config.mesh.to_dict())
    check_batch(config.data.batch_size, mesh, config.train.accumulation_steps)
    learning_rate, optimizer = optimizer_of(config)
    check_writable(workdir / "model")
    model = load(config.model.path, variant=config.model.variant)
    swapped = with_projection(model, config)

    # The U-Net and the VAE have no part in this: they stay on the host.
    params = {k: x for k, x in swapped.params.items() if k.startswith("text_encoder.")}
    params |= with_prefix(component(model.params, "text_encoder"), TEACHER)
    dtype = jnp.dtype(config.model.dtype)
    student = graph("text_encoder", swapped.text_encoder, dtype=dtype)
    teacher = graph("text_encoder", model.text_encoder, dtype=dtype)
    adaptation = full((_TRAINED,))
    size = config.data.batch_size
    rows = process_rows(mesh, size)
    for_training, for_validation = prompts_of(config, workdir)
    trained = run_loop(
        workdir,
        LoopSettings(
            steps=config.train.steps, seed=config.seed, ema=config.train.ema_decay > 0,
            log_every=config.log.every_steps, checkpoint_every=config.checkpoint.every_steps,
            keep_checkpoints=config.checkpoint.keep,
            validate_every=config.validation.every_steps,
            validation_seed=0, preview_every=0, evaluate_every=0,
        ),
        mesh=mesh,
        params=params,
        adaptation=adaptation,
        tx=optimizer,
        learning_rate=learning_rate,
        train_step=make_projection_train_step(
            student, teacher, adaptation, optimizer,
            accumulation_steps=config.train.accumulation_steps, ema_decay=config.train.ema_decay,
        ),
        eval_step=make_projection_eval_step(student, teacher, adaptation),
        batches=PromptBatches(
            _columns(model, swapped, for_training), batch_size=size, seed=config.seed, rows=rows
        ),
        validation=PromptEvalBatches(
            _columns(model, swapped, for_validation),
            num_examples=config.validation.num_prompts, batch_size=size, rows=rows,
        ),
        preview=None,
        evaluation=None,
        config=config.to_dict(),
    )  # fmt: skip
    projection = on_every_host(trained)
    if is_main_process():
        save(replace(swapped, params=swapped.params | projection), workdir / "model")


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values that no later check names as clearly."""
    check_ranges(config)
    if not 0 < config.data.validation_fraction < 1:
        raise UserError(
            f"data.validation_fraction = {config.data.validation_fraction} must lie between 0 and 1"
        )
    if config.model.dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype = {config.model.dtype!r} is not one of float32, bfloat16")


def with_projection(model: "StableDiffusion", config: ConfigDict) -> "StableDiffusion":
    """The model with the encoder and its untrained projection in CLIP's place.

    Raises:
        UserError: the encoder cannot be read, or the model's own text encoder is no CLIP.
    """
    from medsd_jax.interop.bert_folder import load_bert
    from medsd_jax.models.config import CLIPTextConfig
    from medsd_jax.models.text_encoder_swap import swap_text_encoder

    if not isinstance(model.text_encoder, CLIPTextConfig):
        raise UserError(
            f"model.path = {config.model.path} has a BERT as its text encoder: give the model "
            "whose CLIP the projection shall imitate"
        )
    return swap_text_encoder(
        model, *load_bert(config.encoder.path),
        projection="mlp",
        hidden_features=config.projection.hidden_features,
        max_length=model.tokenizer.model_max_length,  # position by position
        seed=config.seed,
    )  # fmt: skip


def prompts_of(config: ConfigDict, workdir: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to train and to validate on; of a file, no prompt is in both.

    Raises:
        UserError: there are none, or the file or the data set cannot be read.
    """
    import numpy as np

    from medsd_jax.data.patient_split import first_patients
    from medsd_jax.data.prompt_batches import read_prompts
    from medsd_jax.workflows.train.data import open_data

    if config.data.prompts is None:
        dataset = open_data(config, workdir)
        parts = (dataset.train.texts, dataset.validation.texts)
    else:
        prompts = read_prompts(Path(config.data.prompts).expanduser())
        # By a hash of the words, as patients are parted: a prompt that is repeated stays together.
        held_out = np.array(first_patients(prompts, config.data.validation_fraction))
        parts = tuple(
            tuple(prompts[i] for i in np.flatnonzero(side)) for side in (~held_out, held_out)
        )
    if not all(parts):
        raise UserError("no prompts to validate on: raise data.validation_fraction")
    log.info("%d prompts train, %d validate", *map(len, parts))
    return parts


def _columns(model: "StableDiffusion", swapped: "StableDiffusion", texts: Sequence[str]) -> dict:
    from medsd_jax.interop.tokenization import encode_prompts

    return {
        "prompt_ids": encode_prompts(swapped.tokenizer, texts),
        "teacher_ids": encode_prompts(model.tokenizer, texts),
    }
