"""A tiny model folder and a recipe that trains it on phantoms in seconds."""

import dataclasses
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config
from medsd_jax.interop.train_tokenizer import train_clip_tokenizer
from medsd_jax.models.scratch import random_model
from medsd_jax.workflows.models import save
from tests.tiny.training import tiny_model

ROOT = Path(__file__).parents[2]
CAPTIONS = ("Chest X-ray. Large left pleural effusion.", "Frontal chest radiograph, no finding.")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """For the modules that import it: machine code is optimised for hours, and runs for seconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def write_model(folder: Path, captions=CAPTIONS, num_merges: int = 20) -> None:
    """Random weights from scratch and a tokenizer of its own, learnt from the captions."""
    shapes = tiny_model()
    tokenizer = train_clip_tokenizer(captions, num_merges=num_merges, max_length=16)
    text = dataclasses.replace(
        shapes.text_encoder,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save(
        random_model(shapes.unet, shapes.vae, text, shapes.scheduler, tokenizer, 0),
        folder,
    )


def recipe(model: Path, data: Path, **overrides) -> ConfigDict:
    """base.py made small; keys of `overrides` are dotted with a double underscore."""
    config = load_config(ROOT / "configs" / "base.py")
    values = {
        "model__path": str(model),
        "data__cache_dir": str(data),
        "data__num_images": 60,
        "data__image_size": 16,
        "data__num_workers": 0,
        "data__validation_fraction": 0.3,
        "optim__learning_rate": 1e-3,
        "mesh__fsdp": 2,
        "train__steps": 4,
        "train__ema_decay": 0.9,
        "log__every_steps": 1,
        "validation__every_steps": 2,
        "validation__num_images": 11,  # a batch of 8, and one of 3 with padding
        "preview__every_steps": 4,
        "preview__images_per_prompt": 2,
        "preview__num_steps": 2,
        **overrides,
    }
    for name, value in values.items():
        section, _, key = name.rpartition("__")
        target = config[section] if section else config
        target[key] = value
    return config.lock()
