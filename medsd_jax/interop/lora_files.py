"""LoRA files: a low-rank difference of some layers, as other programs read and write it.

    PEFT, diffusers   unet.mid_block.X.to_q.lora_A.weight [r, I]      scale = alpha / r, alpha = r
                      unet.mid_block.X.to_q.lora_B.weight [O, r]      where the file says nothing
    kohya             lora_unet_mid_block_X_to_q.lora_down.weight
                      lora_unet_mid_block_X_to_q.lora_up.weight
                      lora_unet_mid_block_X_to_q.alpha                scale = alpha / r

These two are written; lora_names.py has the older spellings, which are read too. Convolutions have
[r, I, kH, kW] and [O, r, 1, 1]. Files in the first layout are written with B times alpha / r, so
that readers which know of no alpha get the same difference.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medsd_jax.adaptation.lora import adapted_kernels, matrix_names
from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.files import save_tensors
from medsd_jax.interop.lora_alphas import CONFIG_FILE, config_alphas, header_alphas
from medsd_jax.interop.lora_names import Spelled, kohya_name, layers_by_name, other_kind, parse
from medsd_jax.interop.safetensors_io import file_in_folder, read_weights_file
from medsd_jax.interop.torch_layout import from_torch, to_torch

_LOG = logging.getLogger(__name__)

PEFT_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers' load_lora_weights looks for in a folder."""
KOHYA_FILE = "kohya.safetensors"

_PEFT_OWN_FILE = "adapter_model.safetensors"
_PEFT_WRAPPER = "base_model.model."


class Lora(NamedTuple):
    """The content of a LoRA file, for `adaptation.lora.merge`.

    Attributes:
        matrices: A and B of each adapted kernel, float32, under our names and in our axes.
        scales: kernel -> alpha / r.
    """

    matrices: Params
    scales: Mapping[str, float]


def write_lora(folder: Path, matrices: Mapping[str, Any], alpha: float) -> None:
    """Writes a trained difference in both layouts: `PEFT_FILE` and `KOHYA_FILE`.

    Args:
        folder: created where it is missing.
        matrices: of `adaptation.lora`, under our names.
        alpha: the constant of the run; one for all kernels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peft: dict[str, np.ndarray] = {}
    kohya: dict[str, np.ndarray] = {}
    for kernel in adapted_kernels(matrices):
        names = matrix_names(kernel)
        down, up = to_torch(
            {name: np.asarray(matrices[name], np.float32) for name in names}
        ).values()
        rank = down.shape[0]
        module = kernel.removesuffix(".kernel")
        peft[f"{module}.lora_A.weight"] = down
        peft[f"{module}.lora_B.weight"] = up * np.float32(alpha / rank)
        short = kohya_name(module)
        kohya[f"{short}.lora_down.weight"] = down
        kohya[f"{short}.lora_up.weight"] = up
        kohya[f"{short}.alpha"] = np.asarray(alpha, np.float32)
    for name, tensors in ((PEFT_FILE, peft), (KOHYA_FILE, kohya)):
        whole = {key: np.array(x, order="C") for key, x in tensors.items()}
        save_tensors(folder / name, whole, {"format": "pt"})


def read_lora(path: Path, params: Mapping[str, Any]) -> Lora:
    """Reads a file of any layout of lora_names.py; it must belong to this model.

    Args:
        path: the file, or a folder with `PEFT_FILE`, or with one safetensors file of another name.
        params: the model's weights, for their names and shapes.

    Raises:
        UserError: the file cannot be read, is of another layout or kind, or of another model.
    """
    path = file_in_folder(path, (PEFT_FILE, _PEFT_OWN_FILE), "a LoRA") if path.is_dir() else path
    tensors = read_weights_file(path)
    if not tensors:
        raise UserError(f"{path} holds no weights")
    spelled = {name: _spelled(path, name) for name in tensors}
    layers = layers_by_name(params)
    _refuse_foreign(path, {x.path: name for name, x in spelled.items()}, layers)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tensors.items():
        part = parts.setdefault(layers[spelled[name].path], {})
        if spelled[name].kind in part:
            raise UserError(
                f"{path}: {name} is a second LoRA of the same layer; give each adapter as a file "
                "of its own"
            )
        part[spelled[name].kind] = x
    stated = _stated_alphas(path, spelled.values(), parts)
    matrices: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    for layer, part in parts.items():
        if not {"down", "up"} <= part.keys():
            raise UserError(f"{path}: {layer} has one of its two matrices only")
        matrices |= _checked(path, layer, part["down"], part["up"], params[f"{layer}.kernel"])
        rank = part["down"].shape[0]
        alpha = (
            _one_number(path, layer, part["alpha"]) if "alpha" in part else stated.get(layer, rank)
        )
        scales[f"{layer}.kernel"] = alpha / rank
    _LOG.info("%s: a LoRA of %d layers", path, len(scales))
    return Lora(matrices, scales)


def _spelled(path: Path, name: str) -> Spelled:
    spelled = parse(name)
    if spelled is not None:
        return spelled
    kind = other_kind(name)
    raise UserError(
        f"{path}: {name} is in neither of the two layouts that are read, PEFT's "
        "(unet.X.lora_A.weight) and kohya's (lora_unet_X.lora_down.weight)"
        + (f": the file is {kind}" if kind else "")
    )


def _refuse_foreign(path: Path, paths: Mapping[str, str], layers: Mapping[str, str]) -> None:
    """Raises UserError where the model has no such layers; path -> the tensor's name."""
    foreign = [name for short, name in paths.items() if short not in layers]
    if foreign:
        kind = next((kind for name in foreign if (kind := other_kind(name))), "of another model")
        raise UserError(
            f"{path}: {len(foreign)} of {len(paths)} adapted layers are not in this model, the "
            f"first is {foreign[0]}: the LoRA is {kind}"
        )


def _stated_alphas(
    path: Path, spelled: Iterable[Spelled], layers: Iterable[str]
) -> Mapping[str, float]:
    """Layer -> alpha by the header, or by what lies beside a file of PEFT's own."""
    spelled = list(spelled)
    if any(x.is_kohya for x in spelled):
        return {}
    stated = header_alphas(path, layers)
    if stated or not any(x.wrapper == _PEFT_WRAPPER for x in spelled):
        return stated
    beside = config_alphas(path, layers)
    if beside is None and not any(x.kind == "alpha" for x in spelled):
        _LOG.warning(
            "%s: no %s beside it says the LoRA's alpha: taken to be its rank, so that the "
            "difference counts once",
            path, CONFIG_FILE,
        )  # fmt: skip
    return beside or {}


def _one_number(path: Path, layer: str, alpha: np.ndarray) -> float:
    if alpha.size != 1 or not np.isfinite(alpha).all():
        raise UserError(
            f"{path}: alpha of {layer} must be one finite number, not {alpha.ravel()[:4].tolist()}"
        )
    return float(alpha.item())


def _checked(
    path: Path, module: str, down: np.ndarray, up: np.ndarray, kernel: Any
) -> dict[str, np.ndarray]:
    """A and B under our names; raises UserError where their product is not like the kernel."""
    *space, fan_in, fan_out = kernel.shape
    for x in (down, up):
        if x.ndim not in (2, 4) or not x.size or x.dtype.kind != "f":
            raise UserError(
                f"{path}: a matrix of {module} is {x.dtype} {list(x.shape)}; a LoRA has floating "
                "[r, in] and [out, r], or those of a convolution"
            )
    rank = down.shape[0]
    expected = dict(
        zip(
            matrix_names(f"{module}.kernel"),
            ((*space, fan_in, rank), (*(1 for _ in space), rank, fan_out)),
            strict=True,
        )
    )
    like = {name: np.broadcast_to(np.float32(0), shape) for name, shape in expected.items()}
    given = {f"{module}.lora_A.weight": _as_kernel(down, space),
             f"{module}.lora_B.weight": _as_kernel(up, space)}  # fmt: skip
    return from_torch(
        given, like, str(path), owner="this model", advice="the LoRA is of another model"
    )


def _as_kernel(x: np.ndarray, space: list[int]) -> np.ndarray:
    """SD 1's 1x1 convolutions are written as linear layers by some programs, and the reverse."""
    if x.ndim == 2 and space == [1, 1]:
        return x[:, :, None, None]
    return x[:, :, 0, 0] if x.ndim == 4 and not space and x.shape[2:] == (1, 1) else x
