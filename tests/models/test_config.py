"""Configs refuse what the code would otherwise ignore, and write what the torch libraries read."""

import json

import pytest

from medsd_jax.errors import UserError
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from tests.tiny import networks

CONFIGS = {
    "unet_sd1": networks.UNET_SD1,
    "unet_sd2": networks.UNET_SD2,
    "vae": networks.VAE,
    "clip_sd1": networks.CLIP_SD1,
    "clip_sd2": networks.CLIP_SD2,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_through_json(name):
    cfg = CONFIGS[name]
    assert type(cfg).from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        # unknown keys
        (UNetConfig, "some_new_feature", True),
        (VAEConfig, "cross_attention_dim", 768),
        (CLIPTextConfig, "vision_config", {"hidden_size": 8}),
        # known keys with a value that is not implemented
        (UNetConfig, "act_fn", "gelu"),
        (UNetConfig, "class_embed_type", "timestep"),
        (UNetConfig, "dual_cross_attention", True),
        (UNetConfig, "only_cross_attention", [True, False]),
        (UNetConfig, "downsample_padding", 0),
        (UNetConfig, "resnet_time_scale_shift", "scale_shift"),
        (UNetConfig, "num_attention_heads", 8),
        (UNetConfig, "mid_block_type", None),
        (UNetConfig, "transformer_layers_per_block", [1, 2]),
        (UNetConfig, "encoder_hid_dim", 1280),
        (VAEConfig, "shift_factor", 0.1159),
        (VAEConfig, "use_quant_conv", False),
        (VAEConfig, "mid_block_add_attention", False),
        (CLIPTextConfig, "hidden_act", "relu"),
        (CLIPTextConfig, "model_type", "bert"),
        (CLIPTextConfig, "attention_dropout", 0.1),
        # ill-typed values; every entry of a list is looked at, not a sample of them
        (UNetConfig, "sample_size", "64"),
        (UNetConfig, "sample_size", 64.0),
        (UNetConfig, "layers_per_block", True),
        (UNetConfig, "block_out_channels", [16, "32"]),
        (UNetConfig, "block_out_channels", ["16", 32]),
        (UNetConfig, "block_out_channels", 32),
        (UNetConfig, "attention_head_dim", [4, 4.0]),
        (UNetConfig, "use_linear_projection", 1),
        (UNetConfig, "norm_eps", "1e-5"),
        (VAEConfig, "scaling_factor", None),
        (CLIPTextConfig, "vocab_size", "many"),
        # numbers that no model can have
        (UNetConfig, "attention_head_dim", 0),
        (UNetConfig, "norm_num_groups", 0),
        (UNetConfig, "layers_per_block", -1),
        (VAEConfig, "block_out_channels", [16, 0, 32]),
        (CLIPTextConfig, "num_attention_heads", 0),
        (UNetConfig, "norm_eps", float("nan")),
        (UNetConfig, "norm_eps", -1),
        (VAEConfig, "scaling_factor", 0),
        (VAEConfig, "scaling_factor", float("nan")),
        (VAEConfig, "scaling_factor", float("inf")),
        (VAEConfig, "scaling_factor", -0.18215),
        (VAEConfig, "scaling_factor", 1e-300),
        (VAEConfig, "scaling_factor", 10**400),
        (CLIPTextConfig, "layer_norm_eps", float("nan")),
        (CLIPTextConfig, "num_hidden_layers", 10**7),
        (CLIPTextConfig, "vocab_size", 10**12),
        (UNetConfig, "layers_per_block", 10**7),
        (UNetConfig, "sample_size", 10**7),
        (VAEConfig, "layers_per_block", 10**7),
        (UNetConfig, "freq_shift", 8),
        (UNetConfig, "freq_shift", -1),
        (UNetConfig, "x" * 500, 1),
        # lists of one value for each level: as many as levels, and equal
        (UNetConfig, "layers_per_block", [1, 2]),
        (UNetConfig, "layers_per_block", [1, 1, 1]),
        (UNetConfig, "cross_attention_dim", [24, 32]),
        (UNetConfig, "sample_size", [8, 16]),
        (VAEConfig, "layers_per_block", [2, 2, 2]),
        # values that contradict others
        (UNetConfig, "down_block_types", ["DownBlock2D"]),
        (UNetConfig, "up_block_types", ["UpBlock2D", "AttnUpBlock2D"]),
        (UNetConfig, "attention_head_dim", [4, 4, 4]),
        (UNetConfig, "attention_head_dim", [4, 5]),
        (UNetConfig, "norm_num_groups", 6),
        (VAEConfig, "norm_num_groups", 5),
        (VAEConfig, "up_block_types", ["UpDecoderBlock2D"]),
        (CLIPTextConfig, "num_attention_heads", 5),
    ],
)
def test_refuses_what_it_does_not_implement(cls, key, value):
    base = {
        UNetConfig: networks.UNET_SD1,
        VAEConfig: networks.VAE,
        CLIPTextConfig: networks.CLIP_SD1,
    }[cls]
    with pytest.raises(UserError) as caught:
        cls.from_dict({**base.to_dict(), key: value}, "some/folder/config.json")
    message = str(caught.value)
    assert "some/folder/config.json" in message
    assert key[:100] in message
    shown = tuple(value) if isinstance(value, list) else value
    assert repr(shown)[:200] in message and len(message) < 500
    assert "\n" not in message


@pytest.mark.parametrize("cls", [UNetConfig, VAEConfig])
@pytest.mark.parametrize("levels", [0, 9, 10**6])
def test_a_model_has_some_levels(cls, levels):
    empty = {"block_out_channels": [32] * levels, "attention_head_dim": 4}
    down, up = cls().down_block_types[-1], cls().up_block_types[0]
    values = {**empty, "down_block_types": [down] * levels, "up_block_types": [up] * levels}
    values = values if cls is UNetConfig else {k: v for k, v in values.items() if "head" not in k}
    with pytest.raises(UserError, match=rf"{levels} entries; a model has 1 to 8"):
        cls.from_dict(values)


def test_lists_of_equal_values_are_that_value():
    levels = len(networks.UNET_SD1.block_out_channels)
    lists = {
        k: [networks.UNET_SD1.to_dict()[k]] * levels
        for k in ("layers_per_block", "cross_attention_dim")
    }
    lists |= {
        "transformer_layers_per_block": [1] * levels,
        "only_cross_attention": [False] * levels,
    }
    assert UNetConfig.from_dict({**networks.UNET_SD1.to_dict(), **lists}) == networks.UNET_SD1
    square = {"sample_size": [networks.VAE.sample_size] * 2}
    assert VAEConfig.from_dict({**networks.VAE.to_dict(), **square}) == networks.VAE
    unsaid = {**networks.UNET_SD1.to_dict(), "sample_size": None}
    assert UNetConfig.from_dict(unsaid).sample_size == UNetConfig().sample_size


def test_names_every_missing_field():
    values = networks.VAE.to_dict()
    assert VAEConfig.from_dict({"_class_name": "AutoencoderKL"}) == VAEConfig()
    assert (
        VAEConfig.from_dict({k: v for k, v in values.items() if k != "scaling_factor"})
        == networks.VAE
    )


def test_accepts_notes_of_the_libraries():
    """Among them what diffusers' EMAModel leaves in the config of a fine-tuned U-Net."""
    ema = {
        "decay": 0.9999,
        "inv_gamma": 1.0,
        "min_decay": 0.0,
        "optimization_step": 1000,
        "power": 0.6667,
        "update_after_step": 0,
        "use_ema_warmup": False,
    }
    notes = {"_name_or_path": "a/b", "_diffusers_version": "0.21.4", **ema}
    assert UNetConfig.from_dict({**networks.UNET_SD1.to_dict(), **notes}) == networks.UNET_SD1
    notes = {"_name_or_path": "a/b", "transformers_version": "4.25.1", "torch_dtype": "float16"}
    assert CLIPTextConfig.from_dict({**networks.CLIP_SD1.to_dict(), **notes}) == networks.CLIP_SD1
    notes = {"is_decoder": False, "tie_word_embeddings": True, "top_k": 50, "pruned_heads": {}}
    assert CLIPTextConfig.from_dict({**networks.CLIP_SD1.to_dict(), **notes}) == networks.CLIP_SD1


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_torch_libraries_read_ours_and_we_read_theirs(name, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.models import oracles

    cfg = CONFIGS[name]
    with torch.device("meta"):
        module = oracles.torch_module(cfg)
    module.config.save_pretrained(tmp_path) if "clip" in name else module.save_config(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    assert type(cfg).from_dict(theirs) == cfg
    # What we write is what they write, but for the defaults that we leave out.
    ours = {k: v for k, v in cfg.to_dict().items() if not k.startswith("_")}
    read_back = module.config.to_dict() if "clip" in name else theirs
    assert {k: read_back[k] for k in ours if k != "torch_dtype"} == {
        k: v for k, v in ours.items() if k != "torch_dtype"
    }


@pytest.mark.torch
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_reads_every_published_config(component):
    pytest.importorskip("torch")
    from tests.models import oracles

    cls = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}[component]
    oracles.published("sd15_unet_config")  # skips where there are none
    paths = sorted(oracles.PUBLISHED.glob(f"*_{component}_config.json"))
    assert paths
    for path in paths:
        values = json.loads(path.read_text())
        written = cls.from_dict(values, path.name).to_dict()
        notes = {"_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype"}
        for key in values.keys() & written.keys() - notes:
            assert written[key] == values[key], (path.name, key)
