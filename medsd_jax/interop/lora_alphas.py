"""What a LoRA of PEFT says of its alpha outside of its tensors.

Newer diffusers write it into the header of the safetensors file, part by part ("unet.lora_alpha");
PEFT itself writes adapter_config.json beside the file. A layer's scale is alpha / r.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsd_jax.errors import UserError
from medsd_jax.files import parse_object
from medsd_jax.interop.lora_names import PARTS
from medsd_jax.interop.model_index import read_json
from medsd_jax.interop.safetensors_io import open_safetensors

CONFIG_FILE = "adapter_config.json"
_LARGEST_ALPHA = 1e38  # float32's
_HEADER = "lora_adapter_metadata"


def header_alphas(path: Path, layers: Iterable[str]) -> dict[str, float]:
    """Layer -> alpha, of those that the file's header speaks of.

    Args:
        path: the safetensors file.
        layers: our names, "unet.X" or "text_encoder.X".

    Raises:
        UserError: the header cannot be read, or asks for what is not supported.
    """
    with open_safetensors(path) as file:
        header = (file.metadata() or {}).get(_HEADER)
    if header is None:
        return {}
    where = f"{path}: the header's {_HEADER}"
    settings = parse_object(header, where, "write or download the file again")
    of_parts = {
        part: {
            key.removeprefix(f"{part}."): value
            for key, value in settings.items()
            if key.startswith(f"{part}.")
        }
        for part in PARTS
    }
    return _alphas(of_parts, layers, where)


def config_alphas(path: Path, layers: Iterable[str]) -> dict[str, float] | None:
    """Layer -> alpha by the adapter_config.json beside a file; None if there is none."""
    config = path.parent / CONFIG_FILE
    if not config.is_file():
        return None
    settings = read_json(config)
    if not isinstance(settings, dict) or settings.get("peft_type", "LORA") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else settings
        raise UserError(f"{config}: peft_type is {str(kind)[:80]!r}; only LORA is read")
    return _alphas(dict.fromkeys(PARTS, settings), layers, str(config))


def _alphas(
    settings: Mapping[str, Mapping[str, Any]], layers: Iterable[str], where: str
) -> dict[str, float]:
    alphas = {}
    for layer in layers:
        part, _, rest = layer.partition(".")
        if settings[part].get("use_rslora") or settings[part].get("use_dora"):
            raise UserError(f"{where}: rank-stabilised or DoRA adapters are not supported")
        alpha = settings[part].get("lora_alpha")
        for pattern, value in _patterns(settings[part].get("alpha_pattern"), where):
            if pattern.match(rest):
                alpha = value
        if alpha is not None:
            alphas[layer] = _number(alpha, where)
    return alphas


def _patterns(table: Any, where: str) -> list[tuple[re.Pattern, Any]]:
    if not table:
        return []
    if not isinstance(table, dict):
        raise UserError(f"{where}: alpha_pattern must be a table, not {str(table)[:80]!r}")
    try:
        # As PEFT searches them: at the end of a layer's name.
        return [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in table.items()]
    except (re.error, OverflowError, RecursionError) as error:
        keys = ", ".join(map(repr, table))[:80]
        raise UserError(
            f"{where}: alpha_pattern {keys} holds what is no regular expression ({error}); "
            "correct it"
        ) from None


def _number(alpha: Any, where: str) -> float:
    right = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not right or not abs(alpha) <= _LARGEST_ALPHA:  # also NaN
        raise UserError(f"{where}: alpha must be a finite number, not {str(alpha)[:80]!r}")
    return float(alpha)
