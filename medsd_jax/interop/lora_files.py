"""LoRA files: the two layouts that other programs read and write.

    PEFT, diffusers   unet.mid_block.X.to_q.lora_A.weight [r, I]      scale = alpha / r, alpha = r
                      unet.mid_block.X.to_q.lora_B.weight [O, r]      where the file says nothing
    kohya             lora_unet_mid_block_X_to_q.lora_down.weight
                      lora_unet_mid_block_X_to_q.lora_up.weight
                      lora_unet_mid_block_X_to_q.alpha                scale = alpha / r

The first layout has older spellings, which are read too: lora.down and lora.up, and for the text
encoder lora_linear_layer.down and .up. Convolutions have [r, I, kH, kW] and [O, r, 1, 1]. The text
encoder's prefix is "text_encoder." or "lora_te_". Files in the first layout are written with B
times alpha / r, so that readers which know of no alpha get the same difference.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medsd_jax.adaptation.lora import adapted_kernels, matrix_names
from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.files import save_tensors
from medsd_jax.interop.safetensors_io import open_safetensors, read_weights_file
from medsd_jax.interop.torch_layout import from_torch, to_torch

PEFT_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers' load_lora_weights looks for in a folder."""
KOHYA_FILE = "kohya.safetensors"

_METADATA = "lora_adapter_metadata"
_KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}
_KOHYA = re.compile(r"(lora_(?:unet|te)_.+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_PEFT = re.compile(
    r"((?:unet|text_encoder)\..+?)\."
    r"(lora_[AB]\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|alpha)"
)


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
        short = _kohya_name(module)
        kohya[f"{short}.lora_down.weight"] = down
        kohya[f"{short}.lora_up.weight"] = up
        kohya[f"{short}.alpha"] = np.asarray(alpha, np.float32)
    for name, tensors in ((PEFT_FILE, peft), (KOHYA_FILE, kohya)):
        whole = {key: np.array(x, order="C") for key, x in tensors.items()}
        save_tensors(folder / name, whole, {"format": "pt"})


def read_lora(path: Path, params: Mapping[str, Any]) -> Lora:
    """Reads a file of either layout; it must belong to this model.

    Args:
        path: the file, or a folder with `PEFT_FILE`.
        params: the model's weights, for their names and shapes.

    Raises:
        UserError: the file cannot be read, is of another layout or kind, or of another model.
    """
    path = path / PEFT_FILE if path.is_dir() else path
    tensors = read_weights_file(path)
    is_kohya = any(name.startswith("lora_") for name in tensors)
    pattern = _KOHYA if is_kohya else _PEFT
    modules = _modules(params, is_kohya)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            raise UserError(
                f"{path}: {name} is in neither of the two layouts that are read: PEFT's "
                "(unet.X.lora_A.weight) and kohya's (lora_unet_X.lora_down.weight)"
            )
        parts.setdefault(match[1], {})[_kind(match[2])] = x
    if not parts:
        raise UserError(f"{path} holds no weights")
    if foreign := [short for short in parts if short not in modules]:
        raise UserError(
            f"{path}: {len(foreign)} of {len(parts)} adapted layers are not in this model, the "
            f"first is {foreign[0]}: the LoRA is of another model"
        )
    said = {} if is_kohya else _said_scales(path)
    matrices: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    for short, part in parts.items():
        if not {"down", "up"} <= part.keys():
            raise UserError(f"{path}: {short} has one of its two matrices only")
        module = modules[short]
        matrices |= _checked(path, module, part["down"], part["up"], params[f"{module}.kernel"])
        rank = part["down"].shape[0]
        alpha = part["alpha"].item() if "alpha" in part else said.get(short, rank)
        scales[f"{module}.kernel"] = alpha / rank
    return Lora(matrices, scales)


def _kind(end: str) -> str:
    if end == "alpha":
        return end
    return "down" if "lora_A" in end or "down" in end else "up"


def _modules(params: Mapping[str, Any], is_kohya: bool) -> dict[str, str]:
    """What a file may call the layers of a model -> our names."""
    modules = {}
    for name in params:
        if name.endswith(".kernel") and not name.startswith("vae."):
            module = name.removesuffix(".kernel")
            modules[_kohya_name(module) if is_kohya else module] = module
            # transformers 5 calls CLIP's layers so.
            modules[module.replace("text_encoder.text_model.", "text_encoder.")] = module
    return modules


def _kohya_name(module: str) -> str:
    component, _, rest = module.partition(".")
    return f"{_KOHYA_PREFIX[component]}_{rest.replace('.', '_')}"


def _checked(
    path: Path, module: str, down: np.ndarray, up: np.ndarray, kernel: Any
) -> dict[str, np.ndarray]:
    """A and B under our names; raises UserError where their product is not like the kernel."""
    *space, fan_in, fan_out = kernel.shape
    rank = down.shape[0]
    wanted = dict(
        zip(
            matrix_names(f"{module}.kernel"),
            ((*space, fan_in, rank), (*(1 for _ in space), rank, fan_out)),
            strict=True,
        )
    )
    like = {name: np.broadcast_to(np.float32(0), shape) for name, shape in wanted.items()}
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


def _said_scales(path: Path) -> dict[str, float]:
    """Module -> alpha, from the header that newer diffusers write; empty where there is none."""
    with open_safetensors(path) as file:
        header = (file.metadata() or {}).get(_METADATA)
        modules = sorted({match[1] for name in file.keys() if (match := _PEFT.fullmatch(name))})
    if header is None:
        return {}
    settings, alphas = json.loads(header), {}
    for module in modules:
        component, _, rest = module.partition(".")
        alpha = settings.get(f"{component}.lora_alpha")
        for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", rest):
                alpha = value
        if settings.get(f"{component}.use_rslora") or settings.get(f"{component}.use_dora"):
            raise UserError(f"{path}: rank-stabilised or DoRA adapters are not supported")
        if alpha is not None:
            alphas[module] = float(alpha)
    return alphas
