"""Stable Diffusion in JAX/Flax, adapted to medical images.

import medsd_jax
model = medsd_jax.load("runs/demo/model")
images = medsd_jax.sample(model, ["A photo of a lung xray"], seeds=[0], num_steps=50)
medsd_jax.save(model, "my_model")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsd_jax.errors import UserError as UserError
    from medsd_jax.workflows.models import add_embedding as add_embedding
    from medsd_jax.workflows.models import add_lora as add_lora
    from medsd_jax.workflows.models import load as load
    from medsd_jax.workflows.models import save as save
    from medsd_jax.workflows.sample import place as place
    from medsd_jax.workflows.sample import sample as sample

__version__ = "0.1.0"

_HOME = {
    "UserError": "errors",
    "add_embedding": "workflows.models",
    "add_lora": "workflows.models",
    "load": "workflows.models",
    "place": "workflows.sample",
    "sample": "workflows.sample",
    "save": "workflows.models",
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
