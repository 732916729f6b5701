"""Our networks and torch's on the same numbers: the comparison behind ``export --verify``.

The one place where torch and diffusers are imported, inside functions: they are an extra. torch
reads the exported folder, as its users will. Ours runs the model that was exported, from memory and
rounded to the stored dtype, so that a fault of the files shows as a difference. Both compute in
float32; torch on the CPU.

Arrays that enter and leave are numpy in our layout: images [B, H, W, 3] in [-1, 1], latents
[B, h, w, C].
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy knows the name "bfloat16" by it
import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.interop.model_index import PROJECTION_FOLDER, read_json
from medsd_jax.models.networks import graph
from medsd_jax.models.params import bind, component
from medsd_jax.models.stable_diffusion import StableDiffusion

Outputs = dict[str, np.ndarray]
"""Component -> its output, for `COMPONENTS`."""

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def require_torch() -> None:
    """Raises UserError where torch or diffusers is not installed."""
    absent = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"an export is checked against PyTorch, but {' and '.join(absent)} cannot be imported; "
            "in the folder of medsd_jax run: pip install '.[torch]'"
        )


def torch_versions() -> dict[str, str]:
    """Versions of the packages on torch's side."""
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}


def as_stored(model: StableDiffusion, dtype: str) -> StableDiffusion:
    """The model with the values that its file in `dtype` holds, as float32 arrays."""
    stored = {name: np.asarray(x).astype(dtype) for name, x in model.params.items()}
    return replace(model, params={name: x.astype(np.float32) for name, x in stored.items()})


@dataclass(frozen=True)
class ComponentInputs:
    """What each network is given, in both frameworks.

    Attributes:
        prompt_ids: [B, S] int32.
        latents: [B, h, w, C] float32 unit noise, for the U-Net and, unscaled, the VAE's decoder.
        timesteps: [B] int32, of the U-Net.
        context: [B, S, D] float32, of the U-Net.
        images: [B, H, W, 3] float32 in [-1, 1], for the VAE's encoder.
    """

    prompt_ids: np.ndarray
    latents: np.ndarray
    timesteps: np.ndarray
    context: np.ndarray
    images: np.ndarray


def make_component_inputs(
    model: StableDiffusion, prompt_ids: np.ndarray, height: int, width: int, seed: int
) -> ComponentInputs:
    """Draws the inputs; numpy's generator gives the same ones on every machine."""
    rng = np.random.default_rng(seed)
    batch, downscale = len(prompt_ids), model.vae.downscale
    latents = (batch, height // downscale, width // downscale, model.vae.latent_channels)
    context = (*prompt_ids.shape, model.unet.cross_attention_dim)
    last = int(model.scheduler.get("num_train_timesteps", 1000)) - 1
    return ComponentInputs(
        prompt_ids=prompt_ids,
        latents=rng.standard_normal(latents, np.float32),
        # From nearly pure noise to nearly clean.
        timesteps=np.linspace(last, last // 10, batch).astype(np.int32),
        context=rng.standard_normal(context, np.float32),  # the text encoder ends in a layer norm
        images=rng.uniform(-1, 1, (batch, height, width, 3)).astype(np.float32),
    )


def our_components(model: StableDiffusion, inputs: ComponentInputs) -> Outputs:
    """Runs each network of ours once on one device. See `Outputs`."""

    def call(name: str, method: str, *args: np.ndarray) -> np.ndarray:
        run = _jitted(name, getattr(model, name), method)
        out = run(component(model.params, name), *map(jnp.asarray, args))
        return np.concatenate(out, axis=-1) if isinstance(out, tuple) else np.asarray(out)

    # Float32 is the comparison's subject; left alone, a TPU multiplies float32 in bfloat16 passes
    # and a GPU in TF32.
    with jax.default_matmul_precision("highest"):
        return {
            "text_encoder": call("text_encoder", "__call__", inputs.prompt_ids),
            "unet": call("unet", "__call__", inputs.latents, inputs.timesteps, inputs.context),
            "vae_decoder": call("vae", "decode", inputs.latents / model.vae.scaling_factor),
            "vae_encoder": call("vae", "encode", inputs.images),
        }


@functools.lru_cache(maxsize=8)  # a second check of the same shapes compiles nothing
def _jitted(name: str, config: Any, method: str) -> Callable[..., Any]:
    graphdef = graph(name, config)
    return jax.jit(lambda params, *args: getattr(bind(graphdef, params), method)(*args))


class TorchPipeline:
    """An exported folder in torch diffusers' StableDiffusionPipeline: float32, CPU, DDIM."""

    def __init__(self, folder: str | Path):
        """Loads the folder; whatever diffusers raises passes through."""
        import torch

        with _quiet():
            from diffusers import StableDiffusionPipeline

            pipe = StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
            # Widened afterwards: the argument for it has changed its name between releases.
            self._pipe = pipe.to(torch.float32)
            self._pipe.scheduler = _ddim(pipe.scheduler)
        self._pipe.set_progress_bar_config(disable=True)
        self._projection = _read_projection(Path(folder))

    def prompt_ids(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> [B, S] int32, by the folder's tokenizer as the pipeline calls it."""
        tokenizer = self._pipe.tokenizer
        length = tokenizer.model_max_length
        ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True)
        return np.asarray(ids["input_ids"], np.int32)

    def components(self, inputs: ComponentInputs) -> Outputs:
        """Runs each network once. See `Outputs`."""
        import torch

        vae = self._pipe.vae
        with torch.inference_mode():
            ids = torch.from_numpy(inputs.prompt_ids.astype(np.int64))
            times = torch.from_numpy(inputs.timesteps.astype(np.int64))
            context = torch.from_numpy(inputs.context)
            latents = _nchw(inputs.latents)
            posterior = vae.encode(_nchw(inputs.images)).latent_dist
            return {
                "text_encoder": self._context(ids).numpy(),
                "unet": _nhwc(self._pipe.unet(latents, times, context).sample),
                "vae_decoder": _nhwc(vae.decode(latents / vae.config.scaling_factor).sample),
                "vae_encoder": _nhwc(torch.cat([posterior.mean, posterior.logvar], dim=1)),
            }

    def _context(self, ids: Any) -> Any:
        hidden = self._pipe.text_encoder(ids).last_hidden_state
        return hidden if self._projection is None else self._projection(hidden)

    def sample(
        self, prompt: str, negative_prompt: str, latents: np.ndarray, **settings: Any
    ) -> np.ndarray:
        """Samples one image per row of latents.

        Args:
            prompt: the prompt of all.
            negative_prompt: likewise.
            latents: [B, h, w, C] float32 unit noise.
            **settings: num_inference_steps, guidance_scale, eta, height, width.

        Returns:
            [B, H, W, 3] uint8.
        """
        import torch

        count = len(latents)
        texts: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
        texts = {key: [text] * count for key, text in texts.items()}
        if self._projection is not None:  # of which the pipeline's own encoding knows nothing
            ids = {
                k: torch.from_numpy(self.prompt_ids(v).astype(np.int64)) for k, v in texts.items()
            }
            with torch.inference_mode():
                texts = {f"{key}_embeds": self._context(x) for key, x in ids.items()}
        images = self._pipe(
            **texts,
            latents=_nchw(latents),
            output_type="np",
            **settings,
        ).images
        return (images * 255).round().astype(np.uint8)  # as diffusers makes its PIL images


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Differences of two arrays of one shape, and the oracle's size that they are measured by."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return {
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "output_max_abs": float(np.abs(theirs).max()),
    }


def _read_projection(folder: Path) -> Any:
    """text_encoder_projection/ as a torch module; None where the folder has none."""
    import torch
    from safetensors.torch import load_file

    folder = folder / PROJECTION_FOLDER
    if not folder.is_dir():
        return None
    shape = read_json(folder / "config.json")
    inner, hidden, outer = (shape[f"{k}_features"] for k in ("in", "hidden", "out"))
    linear = torch.nn.Linear
    layers = [linear(inner, outer)]
    if hidden is not None:
        layers = [linear(inner, hidden), torch.nn.GELU(), linear(hidden, outer)]
    projection = torch.nn.Sequential(*layers)
    projection.load_state_dict(load_file(folder / "model.safetensors"))
    return projection.to(torch.float32)


def _ddim(scheduler: Any) -> Any:
    """DDIM with the noise schedule of the pipeline's own scheduler.

    Args:
        scheduler: of the pipeline object, which has put its own values over some of the file's, as
            for everyone who opens the folder. Keys that the file leaves out have the defaults of
            the class that the file names. Latents are not clipped: so the pipeline wants it.
    """
    import diffusers

    named: Mapping[str, Any] = scheduler.config
    known = {key: value for key, value in named.items() if not key.startswith("_")}
    return diffusers.DDIMScheduler.from_config({**known, "clip_sample": False})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' bars and advice, such as what to install besides, off the terminal."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (level, bar) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()


def _nchw(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _nhwc(x: Any) -> np.ndarray:
    return np.moveaxis(x.numpy(), 1, -1)
