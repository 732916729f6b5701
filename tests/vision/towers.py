"""Image towers of torch with random weights, as folders that transformers writes.

Import it only after `pytest.importorskip("torch")`, but for the published settings.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_BIT = {
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "BitImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}

# preprocessor_config.json as they were published. CLIP's is of 2021 and has bare numbers.
CLIP_PROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    **OPENAI,
    "resample": 3,
    "size": 224,
}
RAD_DINO_PROCESSOR = {
    **_BIT,
    "crop_size": {"height": 518, "width": 518},
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_std": [0.2583, 0.2583, 0.2583],
    "size": {"shortest_edge": 518},
}
DINOV2_PROCESSOR = {
    **_BIT,
    **IMAGENET,
    "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 256},
}

# openai/clip-vit-base-patch32's config.json, without half of its settings of text generation.
_OF_2022 = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "attention_dropout": 0.0,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dropout": 0.0,
    "hidden_act": "quick_gelu",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-05,
    "max_length": 20,
    "num_beams": 1,
    "num_hidden_layers": 12,
    "output_attentions": False,
    "pruned_heads": {},
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}
CLIP_CONFIG = {
    "_name_or_path": "openai/clip-vit-base-patch32",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {
        **_OF_2022,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 8,
        "pad_token_id": 1,
        "vocab_size": 49408,
    },
    "text_config_dict": None,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {
        **_OF_2022,
        "hidden_size": 768,
        "image_size": 224,
        "intermediate_size": 3072,
        "model_type": "clip_vision_model",
        "num_attention_heads": 12,
        "patch_size": 32,
    },
    "vision_config_dict": None,
}
RAD_DINO_CONFIG = {
    "apply_layernorm": True,
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "out_features": ["stage12"],
    "out_indices": [12],
    "patch_size": 14,
    "qkv_bias": True,
    "reshape_hidden_states": True,
    "stage_names": ["stem", *(f"stage{i}" for i in range(1, 13))],
    "torch_dtype": "float32",
    "use_swiglu_ffn": False,
}

# An epsilon as large as the variances: a tower with another one would be seen at once.
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
    "layer_norm_eps": 0.1,
}
TINY_DINOV2 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
    "layer_norm_eps": 0.1,
}


def clip_tower(**config):
    """CLIPVisionModelWithProjection of transformers."""
    import transformers

    return with_drawn_weights(
        transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
    )


def both_towers(vision: dict, projection_dim: int):
    """CLIPModel of transformers, with a text tower that is small."""
    import transformers

    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": 99,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        vision_config=vision,
        projection_dim=projection_dim,
    )
    return with_drawn_weights(transformers.CLIPModel(config))


def dinov2(**config):
    """Dinov2Model of transformers."""
    import transformers

    return with_drawn_weights(transformers.Dinov2Model(transformers.Dinov2Config(**config)))


def with_drawn_weights(module):
    """Weights that keep activations near one, so that images stay apart; evaluation mode."""
    import torch

    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, x in module.named_parameters():
            drawn = rng.standard_normal(tuple(x.shape), np.float32)
            if x.ndim > 1 and name.endswith("weight") and "position" not in name:
                drawn *= math.prod(x.shape[1:]) ** -0.5
            elif name.endswith((".weight", "lambda1")) and x.ndim == 1:
                drawn = 1 + 0.3 * drawn
            else:  # biases, tokens and positions, far from their initial zeros
                drawn *= 0.3
            x.copy_(torch.from_numpy(drawn.astype(np.float32)))
    return module.eval()


def save(module, folder: Path, processor: dict) -> Path:
    """Config and weights by transformers itself, and a preprocessor_config.json."""
    module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def edit(path: Path, **changes) -> None:
    """Changes keys of a JSON file; ... takes a key away."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def image(height: int, width: int, channels: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] with smooth parts and hard edges: bicubic overshoots at them."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / (9 + 4 * c) + y / (13 + c)) for c in range(channels)]
    out = np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, channels))
    out[height // 4 : height // 2, width // 3 : width // 2] = 255
    out[height // 2 : 2 * height // 3, width // 3 : width // 2] = 0
    out = out.clip(0, 255).astype(np.uint8)
    return out[:, :, 0] if channels == 1 else out


def write_images(folder: Path, number: int, size: int = 30) -> Path:
    """PNGs, grey and RGB in turn."""
    folder.mkdir()
    for i in range(number):
        pixels = image(size + i, size, 1 if i % 2 else 3)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder
