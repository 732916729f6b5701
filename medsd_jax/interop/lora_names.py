"""How LoRA files have called the weights of a layer, from 2022 to today.

    PEFT, diffusers   unet.mid_block.X.to_q.lora_A.weight               lora_B
    its adapters      unet.mid_block.X.to_q.lora_A.default.weight       by the adapter's name
    PEFT's own        base_model.model.mid_block.X.to_q.lora_A.weight   no part is named
    diffusers         unet.mid_block.X.to_q.lora.down.weight            up
      0.17 to 0.21    unet.mid_block.X.processor.to_q_lora.down.weight  to_out_lora is to_out.0
      0.11 to 0.16    mid_block.X.processor.to_q_lora.down.weight       the U-Net's alone
      text encoder    text_encoder.X.q_proj.lora_linear_layer.down.weight, X.to_q_lora.down.weight
    kohya             lora_unet_mid_block_X_to_q.lora_down.weight       lora_up, alpha

What wraps a network leaves its own prefix: `module.` (several GPUs) and `_orig_mod.` (compiled).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

PARTS = ("unet", "text_encoder")
_KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")

_OLD_PROCESSOR = re.compile(r"\.to_(q|k|v|out)_lora\.")
_ENDS = (
    re.compile(r"(?P<path>.+)\.lora_(?P<kind>A|B|down|up)(?:\.(?!weight$)[^.]+)?\.weight"),
    re.compile(r"(?P<path>.+)\.lora(?:_linear_layer|_layer)?\.(?P<kind>down|up)\.weight"),
    re.compile(r"(?P<path>.+?)(?:\.lora(?:_linear_layer|_layer)?)?\.(?P<kind>alpha)"),
)
_KINDS = {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha"}

_OTHERS = (
    (r"dora_scale|lora_magnitude_vector", "a DoRA, which scales the weights as well"),
    (r"\.hada_", "a LoHa"),
    (r"\.lokr_", "a LoKr"),
    (r"\.oft_|\.oft_blocks", "an OFT"),
    (r"\.lora_mid\.", "a LoRA in Tucker's decomposition (lora_mid)"),
    (r"\.diff(_b)?$", "a full difference of the weights"),
    (r"^bundle_emb\.", "an embedding bundled with a LoRA"),
    (r"lora_te[23]_|^text_encoder_[23]\.", "of a model with a second text encoder, as SDXL"),
    (
        r"^(lora_)?transformer[._]|(^|[._])(single|double|joint)(_transformer)?_blocks[._]",
        "of a transformer, as FLUX and SD 3",
    ),
    (
        r"(input|output)_blocks[._]\d|middle_block[._]\d|diffusion_model[._]",
        "named as in CompVis' code (input_blocks): save it with diffusers' names (down_blocks)",
    ),
)
"""Names that are known and not read -> what they belong to."""


class Spelled(NamedTuple):
    """What the name of a tensor says.

    Attributes:
        path: of the layer, without what wraps the network; see `layers_by_name`.
        kind: "down", "up" or "alpha".
        is_kohya: whether the layout is kohya's.
        wrapper: the prefix that was taken away, empty where there was none.
    """

    path: str
    kind: str
    is_kohya: bool
    wrapper: str


def parse(name: str) -> Spelled | None:
    """Reads the name of a tensor; None where it is in no layout that is known."""
    plain = _OLD_PROCESSOR.sub(_today, name.replace(".processor.", "."))
    match = next((found for end in _ENDS if (found := end.fullmatch(plain))), None)
    if match is None:
        return None
    path, kind = match["path"], _KINDS[match["kind"]]
    if path.startswith("lora_"):
        return Spelled(re.sub(r"^lora_te1_", "lora_te_", path), kind, True, "")
    part, wrapper, changed = "", "", True
    while changed:
        changed = False
        for prefix in (*_WRAPPERS, *(f"{part}." for part in PARTS)):
            if path.startswith(prefix):
                path, changed = path.removeprefix(prefix), True
                if prefix in _WRAPPERS:
                    wrapper = prefix
                else:
                    part = prefix
    return Spelled(part + path, kind, False, wrapper)


def layers_by_name(kernels: Iterable[str]) -> dict[str, str]:
    """What a file may call the layers of a model -> our names.

    Args:
        kernels: names of the model's weights; those of other parts and kinds are left out.
    """
    layers: dict[str, str] = {}
    for name in kernels:
        part, _, rest = name.removesuffix(".kernel").partition(".")
        if part not in PARTS or not name.endswith(".kernel"):
            continue
        module = f"{part}.{rest}"
        # transformers 5 calls CLIP's layers without text_model; the first diffusers gave the
        # projections of its attention the U-Net's names.
        short = rest.removeprefix("text_model.") if part == "text_encoder" else rest
        for path in {rest, short, _as_unet(short), _as_unet(rest)}:
            layers[f"{part}.{path}"] = layers[path] = module
            layers[f"{_KOHYA_PREFIX[part]}_{path.replace('.', '_')}"] = module
    return layers


def kohya_name(module: str) -> str:
    """How kohya calls a layer of ours."""
    part, _, rest = module.partition(".")
    return f"{_KOHYA_PREFIX[part]}_{rest.replace('.', '_')}"


def other_kind(name: str) -> str | None:
    """What a LoRA with such a name is, where it is of a known kind that is not read."""
    return next((kind for pattern, kind in _OTHERS if re.search(pattern, name)), None)


def _today(match: re.Match) -> str:
    return ".to_out.0.lora." if match[1] == "out" else f".to_{match[1]}.lora."


def _as_unet(path: str) -> str:
    renamed = re.sub(r"\.self_attn\.(q|k|v)_proj$", r".self_attn.to_\1", path)
    return re.sub(r"\.self_attn\.out_proj$", ".self_attn.to_out.0", renamed)
