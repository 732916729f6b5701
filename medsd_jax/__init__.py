"""Stable Diffusion in JAX/Flax, adapted to medical images.

import medsd_jax
model = medsd_jax.load("runs/demo/model")
images = medsd_jax.sample(model, ["A photo of a lung xray"], seeds=[0], num_steps=50)
medsd_jax.save(model, "my_model")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsd_jax.classifier.model import load_classifier as load_classifier
    from medsd_jax.config import classifier_config as classifier_config
    from medsd_jax.config import downstream_utility_config as downstream_utility_config
    from medsd_jax.config import reconstruction_config as reconstruction_config
    from medsd_jax.config import sampling_config as sampling_config
    from medsd_jax.config import text_probe_config as text_probe_config
    from medsd_jax.config import text_projection_config as text_projection_config
    from medsd_jax.config import training_config as training_config
    from medsd_jax.config.recipes import load_config as load_config
    from medsd_jax.data.dataset import open_dataset as open_dataset
    from medsd_jax.errors import UserError as UserError
    from medsd_jax.workflows.evaluate import evaluate as evaluate
    from medsd_jax.workflows.evaluate import fid as fid
    from medsd_jax.workflows.models import add_embedding as add_embedding
    from medsd_jax.workflows.models import add_lora as add_lora
    from medsd_jax.workflows.models import load as load
    from medsd_jax.workflows.models import save as save
    from medsd_jax.workflows.models import swap_text_encoder as swap_text_encoder
    from medsd_jax.workflows.sample import place as place
    from medsd_jax.workflows.sample import sample as sample
    from medsd_jax.workflows.sample import sample_batches as sample_batches
    from medsd_jax.workflows.train.own_loop import prepare_training as prepare_training
    from medsd_jax.workflows.train.run import train as train

__version__ = "0.1.0"

_HOME = {
    "UserError": "errors",
    "add_embedding": "workflows.models",
    "add_lora": "workflows.models",
    "classifier_config": "config",
    "downstream_utility_config": "config",
    "evaluate": "workflows.evaluate",
    "fid": "workflows.evaluate",
    "load": "workflows.models",
    "load_classifier": "classifier.model",
    "load_config": "config.recipes",
    "open_dataset": "data.dataset",
    "place": "workflows.sample",
    "prepare_training": "workflows.train.own_loop",
    "reconstruction_config": "config",
    "sample": "workflows.sample",
    "sample_batches": "workflows.sample",
    "sampling_config": "config",
    "save": "workflows.models",
    "swap_text_encoder": "workflows.models",
    "text_probe_config": "config",
    "text_projection_config": "config",
    "train": "workflows.train.run",
    "training_config": "config",
}
"""Public name -> the module that defines it, imported when the name is first asked for."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # Lazy: `import medsd_jax` and the command line's --help stay free of JAX's import time.
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
