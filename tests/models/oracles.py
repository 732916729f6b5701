"""torch's own modules with the same weights: what the parity tests compare with.

Import it only after `pytest.importorskip("torch")`.
"""

import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig as TorchCLIPTextConfig
from transformers import CLIPTextModel

from medsd_jax.interop.torch_layout import from_torch, to_torch
from medsd_jax.models import clip, config, params, unet, vae

_ASSETS = Path(__file__).parents[3] / "shared" / "assets"
PUBLISHED = Path(os.environ.get("MEDSD_ASSETS", _ASSETS)) / "sd_configs"


def published(name: str) -> dict:
    """A JSON file of the published configs; skips the test where they are absent."""
    path = PUBLISHED / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is absent: the published configs are not part of the repository")
    return json.loads(path.read_text())


def our_module(cfg):
    """make_module(rngs=...) of the class that a config belongs to."""
    classes = {
        config.UNetConfig: unet.UNet2DConditionModel,
        config.VAEConfig: vae.AutoencoderKL,
        config.CLIPTextConfig: clip.CLIPTextModel,
    }
    return functools.partial(classes[type(cfg)], cfg)


def torch_module(cfg) -> torch.nn.Module:
    """The torch module that reads what our config writes, in evaluation mode."""
    if isinstance(cfg, config.CLIPTextConfig):
        return CLIPTextModel(TorchCLIPTextConfig(**cfg.to_dict())).eval()
    cls = UNet2DConditionModel if isinstance(cfg, config.UNetConfig) else AutoencoderKL
    return cls.from_config(cfg.to_dict()).eval()


def published_name(name: str) -> str:
    """transformers 5 drops the `text_model.` that every published text encoder has."""
    bare = name.startswith(("embeddings.", "final_layer_norm.", "encoder.layers."))
    return f"text_model.{name}" if bare else name


def random_torch_module(cfg, seed: int) -> torch.nn.Module:
    """As `torch_module`, with noise on norms and biases: at 1 and 0 they would hide a mix-up."""
    torch.manual_seed(seed)
    module = torch_module(cfg)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    return module


def state_dict(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The weights under their published names; shares memory with the module."""
    return {published_name(name): x.numpy() for name, x in module.state_dict().items()}


def ours_with_weights_of(module: torch.nn.Module, cfg):
    """Structure and weights of our module holding a copy of the torch module's weights."""
    graphdef, like = params.abstract(our_module(cfg))
    weights = from_torch(state_dict(module), like, "torch")
    return graphdef, {name: jax.device_put(np.array(x)) for name, x in weights.items()}


def torch_shapes(like: dict) -> dict[str, tuple[int, ...]]:
    """Our abstract weights as torch names and shapes them, through the rule of exports."""
    # A broadcast scalar has every shape and holds one number.
    views = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in like.items()}
    return {name: x.shape for name, x in to_torch(views).items()}


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def error(ours: jax.Array | np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference as a share of the oracle's largest absolute value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
