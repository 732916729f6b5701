"""Stable Diffusion in JAX/Flax, adapted to medical images.

import medsd_jax
model = medsd_jax.load("runs/demo/model")
images = medsd_jax.sample(model, ["A photo of a lung xray"], seeds=[0], num_steps=50)
medsd_jax.save(model, "my_model")
"""

__version__ = "0.1.0"
__all__ = ["load", "place", "sample", "save"]


def __getattr__(name: str):
    # Lazy: `import medsd_jax` and the command line's --help stay free of JAX's import time.
    if name in __all__:
        from medsd_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'medsd_jax' has no attribute {name!r}")
