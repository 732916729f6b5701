"""Names that older releases wrote, turned into today's before the weights are matched.

* VAE files from before diffusers 0.17 call the mid block's attention query, key, value, proj_attn;
  files made from the original checkpoints keep those four as 1x1 convolutions.
* transformers 5 drops CLIP's `text_model.` prefix; every published Stable Diffusion file has it.
* Text encoders saved by transformers before 4.31 carry `position_ids`, a constant and no weight.
* CLIPTextModelWithProjection projects the pooled state, which no U-Net of Stable Diffusion reads.
"""

import re
from collections.abc import Mapping

import numpy as np

_OLD_VAE_ATTENTION = re.compile(
    r"(?P<head>.*\.attentions\.\d+)\.(?P<old>query|key|value|proj_attn)\.(?P<leaf>weight|bias)"
)
_VAE_ATTENTION_WEIGHT = re.compile(r".*\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight")
_NEW_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BARE_CLIP = ("embeddings.", "encoder.", "final_layer_norm.")


def modernize(component: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the weights of one component to the names of its present torch class.

    A name that no rule knows is kept, so that the check against the module can report it.

    Args:
        component: "unet", "vae" or "text_encoder".
        state_dict: torch names as they stand in the file -> arrays in torch's layout.

    Returns:
        The same arrays under today's names.
    """
    if component == "vae":
        return dict(_modern_vae(name, x) for name, x in state_dict.items())
    if component == "text_encoder":
        return {
            f"text_model.{name}" if name.startswith(_BARE_CLIP) else name: x
            for name, x in state_dict.items()
            if not name.endswith("embeddings.position_ids") and name != "text_projection.weight"
        }
    return dict(state_dict)


def _modern_vae(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    if match := _OLD_VAE_ATTENTION.fullmatch(name):
        name = f"{match['head']}.{_NEW_VAE_ATTENTION[match['old']]}.{match['leaf']}"
    if _VAE_ATTENTION_WEIGHT.fullmatch(name) and x.shape[2:] == (1, 1):
        x = x[:, :, 0, 0]
    return name, x
