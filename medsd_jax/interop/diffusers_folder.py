"""The diffusers folder: everything that one model is, read and written without torch.

    model_index.json                 which classes the parts are
    scheduler/scheduler_config.json
    tokenizer/                       see tokenization.py
    unet/ vae/ text_encoder/         config.json and safetensors each
    text_encoder_projection/         likewise, where a BERT has one; see text_encoder_folder.py

The safety checker that a folder may also hold is left out: it blacks out radiographs.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.files import check_permission, write_json
from medsd_jax.folders import contents, is_moving, read_whole, replacing
from medsd_jax.interop.hub import resolve
from medsd_jax.interop.legacy import modernize
from medsd_jax.interop.model_index import (
    DIFFUSERS_VERSION,
    DROPPED,
    INDEX,
    PARTS,
    PROJECTION_FOLDER,
    check_index,
    make_index,
    read_json,
    read_scheduler,
    read_text_classes,
)
from medsd_jax.interop.safetensors_io import read_weights, require_finite, write_weights
from medsd_jax.interop.text_encoder_folder import (
    read_text_config,
    read_text_encoder,
    split_projection,
    text_classes,
    write_projection,
)
from medsd_jax.interop.tokenization import save_tokenizer
from medsd_jax.interop.torch_layout import from_torch, to_torch
from medsd_jax.interop.weight_names import WEIGHT_STEMS
from medsd_jax.models.config import UNetConfig, VAEConfig
from medsd_jax.models.networks import weight_shapes
from medsd_jax.models.params import component, with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.text_encoder import LoadedTextEncoder, context_width

_LOG = logging.getLogger(__name__)


_CONFIGS = {"unet": UNetConfig, "vae": VAEConfig}
_TAKEN_WITH_LATENTS = {
    5: "a mask and the masked image (inpainting)",
    4: "an image (editing by instruction, or depth and normals of one)",
    3: "a small image (upscaling)",
    1: "a map of depths",
}
"""Channels of a U-Net's input beyond the latents -> what they are in published models."""
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def load_pipeline(
    path_or_hub_id: str | os.PathLike,
    *,
    variant: str | None = None,
    dtype: np.typing.DTypeLike = np.float32,
) -> StableDiffusion:
    """Reads a Stable Diffusion model.

    Args:
        path_or_hub_id: a diffusers folder, a training workdir or a hub id; see `hub.resolve`.
        variant: the weights' variant to read, such as "fp16"; by default the plain files, or fp16
            where there is nothing else.
        dtype: float32, float16 or bfloat16, of the arrays returned.

    Returns:
        The bundle; its `params` are numpy arrays, for the caller to place on devices.

    Raises:
        UserError: the folder, one of its files or the kind of model cannot be used.
    """
    dtype = _checked_dtype(dtype)
    folder = resolve(path_or_hub_id, variant=variant)
    return read_whole(folder, INDEX, lambda: _load_folder(folder, variant, dtype))


def _load_folder(folder: Path, variant: str | None, dtype: np.dtype) -> StableDiffusion:
    if dropped := check_index(folder / INDEX):
        _LOG.info(
            "not loaded: %s; no prompt needs them, and a safety checker blacks out radiographs",
            " and ".join(dropped),
        )
    if absent := [name for name in PARTS if not (folder / name).is_dir()]:
        raise UserError(
            f"{folder} is not whole: {', '.join(absent)} missing; copy or download the model again"
        )
    scheduler = read_scheduler(folder)
    configs = _read_configs(folder)
    _check_latents(configs["unet"], configs["vae"], folder)
    text = _read_text(folder, variant, dtype)
    given, needed = context_width(text.config), configs["unet"].cross_attention_dim
    if given != needed:
        raise UserError(
            f"{folder}: the text encoder gives {given} values per token, the U-Net attends to "
            f"{needed}; take both from the same model, or put a BERT in by swap-text-encoder"
        )
    params = {}
    for name, config in configs.items():
        params |= with_prefix(_read_params(folder, name, config, variant, dtype), name)
    params |= with_prefix(text.params, "text_encoder")
    return StableDiffusion(
        **configs,
        text_encoder=text.config,
        scheduler=scheduler,
        tokenizer=text.tokenizer,
        params=params,
    )


def load_structure(path_or_hub_id: str | os.PathLike) -> StableDiffusion:
    """Reads the shapes of a model alone: for plans, which need no weights and no tokenizer.

    Returns:
        The bundle with `jax.ShapeDtypeStruct`s of float32 for weights, and None for the tokenizer.

    Raises:
        UserError: a config.json is missing or describes what is not supported.
    """
    folder = resolve(path_or_hub_id)
    check_index(folder / INDEX)
    classes = read_text_classes(folder / INDEX)
    configs = _read_configs(folder)
    _check_latents(configs["unet"], configs["vae"], folder)
    configs["text_encoder"] = read_text_config(folder, classes)
    params = {}
    for name, config in configs.items():
        params |= with_prefix(weight_shapes(name, config), name)
    scheduler = read_scheduler(folder)
    return StableDiffusion(**configs, scheduler=scheduler, tokenizer=None, params=params)


class LoadedVAE(NamedTuple):
    """The autoencoder of a model.

    Attributes:
        config: its shape and scaling factor.
        image_size: pixels, square, that the model's U-Net was trained for.
        params: float32 weights by their names in the VAE; numpy arrays.
    """

    config: VAEConfig
    image_size: int
    params: Mapping[str, np.ndarray]


def load_vae(path_or_hub_id: str | os.PathLike, *, variant: str | None = None) -> LoadedVAE:
    """Reads the VAE alone; arguments and errors as of `load_pipeline`.

    Of Stable Diffusion 1.5 that is 84 of 1,066 million weights.
    """
    folder = resolve(path_or_hub_id, variant=variant)

    def read() -> LoadedVAE:
        check_index(folder / INDEX)
        unet, vae = _read_configs(folder).values()
        params = _read_params(folder, "vae", vae, variant, np.dtype(np.float32))
        return LoadedVAE(vae, unet.sample_size * vae.downscale, params)

    return read_whole(folder, INDEX, read)


def save_pipeline(
    model: StableDiffusion,
    folder: str | os.PathLike,
    *,
    dtype: np.typing.DTypeLike | None = None,
) -> None:
    """Writes a model as a folder that torch diffusers loads, whole or not at all.

    An existing diffusers folder is replaced once the new one is complete on disk; files in it that
    are none of a pipeline's parts stay. On several hosts, one of them calls this, with arrays that
    it holds in full.

    Args:
        model: jax or numpy arrays.
        folder: new, empty, or a diffusers folder.
        dtype: float32, float16 or bfloat16 of the stored weights; None keeps the arrays' own.

    Raises:
        UserError: the folder holds something else, or a weight is not finite or does not fit into
            float16.
    """
    dtype = None if dtype is None else _checked_dtype(dtype)
    folder = Path(folder).expanduser().resolve()
    check_writable(folder)
    owned = (*PARTS, PROJECTION_FOLDER, *DROPPED)
    with replacing(folder, "a process that writes a model", last=INDEX, owned=owned) as new:
        for name in (*_CONFIGS, "text_encoder"):
            config = getattr(model, name)
            params = component(model.params, name)
            shapes = {k: x.shape for k, x in weight_shapes(name, config).items()}
            assert {k: x.shape for k, x in params.items()} == shapes, f"{name} is not its config's"
            (new / name).mkdir()
            tensors = to_torch(params)
            for key, x in tensors.items():
                require_finite(key, x, name)
            tensors = {k: _cast(k, x, dtype) for k, x in tensors.items()}
            if name == "text_encoder":
                tensors, projection = split_projection(tensors)
                if projection:
                    write_projection(new, config.projection, projection)
            write_json(new / name / "config.json", _config_json(name, config, tensors))
            write_weights(new / name, f"{WEIGHT_STEMS[name]}.safetensors", tensors)
        (new / "scheduler").mkdir()
        write_json(new / "scheduler" / "scheduler_config.json", dict(model.scheduler))
        save_tokenizer(model.tokenizer, new / "tokenizer")
        write_json(new / INDEX, make_index(model.scheduler, text_classes(model.text_encoder)))


def check_writable(folder: str | os.PathLike) -> None:
    """Raises UserError unless `save_pipeline` may write here; call it before hours of training."""
    folder = Path(folder).expanduser()
    if folder.is_dir():
        names = contents(folder)
        if names and INDEX not in names and not is_moving(folder, INDEX):
            raise UserError(
                f"{folder} holds files that are no diffusers model; they are not overwritten: "
                "give a new or empty folder"
            )
    elif folder.exists():
        raise UserError(f"{folder} is a file; give a new or empty folder")
    check_permission(folder)


def _read_configs(folder: Path) -> dict[str, Any]:
    configs = {}
    for name, kind in _CONFIGS.items():
        path = folder / name / "config.json"
        configs[name] = kind.from_dict(read_json(path), str(path))
    return configs


def _check_latents(unet: UNetConfig, vae: VAEConfig, folder: Path) -> None:
    """Raises UserError unless the U-Net takes the VAE's latents, gives the like, and no more."""
    where, channels = folder / "unet" / "config.json", vae.latent_channels
    if also := _TAKEN_WITH_LATENTS.get(unet.in_channels - channels):
        raise UserError(
            f"{where}: in_channels = {unet.in_channels}: {channels} latents and {also}; such a "
            "U-Net is not supported, take a text-to-image model"
        )
    for key in ("in_channels", "out_channels"):
        if (count := getattr(unet, key)) != channels:
            raise UserError(
                f"{where}: {key} = {count}, but the VAE's latents have {channels} channels; take "
                "both from the same text-to-image model"
            )


def _read_text(folder: Path, variant: str | None, dtype: np.dtype) -> LoadedTextEncoder:
    return read_text_encoder(folder, read_text_classes(folder / INDEX), variant, dtype)


def _read_params(
    folder: Path, name: str, config: Any, variant: str | None, dtype: np.dtype
) -> dict[str, np.ndarray]:
    tensors = read_weights(folder / name, WEIGHT_STEMS[name], variant=variant, dtype=dtype)
    return from_torch(modernize(name, tensors), weight_shapes(name, config), str(folder / name))


def _config_json(name: str, config: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    values = config.to_dict()
    if PARTS[name].library == "diffusers":
        return {**values, "_diffusers_version": DIFFUSERS_VERSION}
    # transformers creates the module in the dtype that its config states, whatever the file holds.
    return {**values, "torch_dtype": next(iter(tensors.values())).dtype.name}


def _checked_dtype(dtype: np.typing.DTypeLike) -> np.dtype:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UserError(f"dtype {name} is not supported; use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _cast(name: str, x: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None or x.dtype == dtype:
        return x
    with np.errstate(over="ignore"):
        y = x.astype(dtype)
    if np.isfinite(x.astype(np.float32)).all() and not np.isfinite(y.astype(np.float32)).all():
        raise UserError(
            f"{name} has values beyond {dtype.name}'s range; save as bfloat16 or float32"
        )
    return y
