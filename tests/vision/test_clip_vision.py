"""CLIP's image tower against transformers' own, with the same random weights."""

import dataclasses
import functools
import json
import time

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402

from medsd_jax.errors import UserError  # noqa: E402
from medsd_jax.interop.torch_layout import from_torch  # noqa: E402
from medsd_jax.models.attention import IMPLEMENTATIONS  # noqa: E402
from medsd_jax.models.params import abstract, bind  # noqa: E402
from medsd_jax.vision import clip_vision  # noqa: E402
from medsd_jax.vision.clip_vision import (  # noqa: E402
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    read_config,
)
from medsd_jax.vision.transformers_folder import open_tower  # noqa: E402
from tests.models import oracles  # noqa: E402
from tests.vision import towers  # noqa: E402

pytestmark = pytest.mark.torch

# Float32 sums in another order: 2e-7 to 6e-7 of the largest value was measured, tiny and full
# size. A wrong setting gives 1e-3 and more: see below.
TOLERANCE = 1e-5
TINY_PROCESSOR = {**towers.CLIP_PROCESSOR, "size": 24, "crop_size": 24}


def images(size: int, number: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((number, size, size, 3), np.float32)


def embed(config, weights, x, **kwargs) -> np.ndarray:
    graphdef, _ = abstract(functools.partial(CLIPVisionModelWithProjection, config, **kwargs))
    run = jax.jit(lambda w, x: bind(graphdef, w).pooled_features(x))
    return np.asarray(run(dict(weights), x))


def theirs(module, x) -> np.ndarray:
    with torch.inference_mode():
        return module(oracles.nchw(x)).image_embeds.numpy()


@pytest.mark.parametrize("attention", ["auto", "xla"])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_equals_transformers(tmp_path, hidden_act, attention):
    module = towers.clip_tower(**towers.TINY_CLIP, hidden_act=hidden_act)
    tower = open_tower("clip", towers.save(module, tmp_path, TINY_PROCESSOR))
    x = images(24)
    expected = theirs(module, x)
    ours = embed(tower.config, tower.params, x, attend=IMPLEMENTATIONS[attention])
    error = oracles.error(ours, expected)
    print(f"clip {hidden_act} {attention}: {error:.1e}")
    assert error <= TOLERANCE
    # Random weights could make every image look alike, and agreement would then mean nothing.
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu"}, {"num_attention_heads": 2}, {"layer_norm_eps": 1e-5}]
)
def test_a_wrong_setting_is_far_beyond_the_tolerance(tmp_path, change):
    """None of them shows in the weights' shapes."""
    module = towers.clip_tower(**towers.TINY_CLIP)
    tower = open_tower("clip", towers.save(module, tmp_path, TINY_PROCESSOR))
    x = images(24)
    wrong = embed(dataclasses.replace(tower.config, **change), tower.params, x)
    assert oracles.error(wrong, theirs(module, x)) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_equals_transformers_at_full_size(tmp_path):
    """openai/clip-vit-base-patch32: both towers in one file, its config as published."""
    module = towers.both_towers(towers.CLIP_CONFIG["vision_config"], 512)
    towers.save(module, tmp_path, towers.CLIP_PROCESSOR)
    x = images(224)
    with torch.inference_mode():
        expected = module.get_image_features(oracles.nchw(x)).pooler_output.numpy()
    del module
    (tmp_path / "config.json").write_text(json.dumps(towers.CLIP_CONFIG))
    tower = open_tower("clip", tmp_path)
    assert sum(w.size for w in tower.params.values()) == 87_849_216
    start = time.perf_counter()
    ours = embed(tower.config, tower.params, x)
    error = oracles.error(ours, expected)
    print(f"clip-vit-base-patch32: {error:.1e}, ours took {time.perf_counter() - start:.1f} s")
    assert ours.shape == (2, 512)
    assert error <= TOLERANCE


def test_of_both_towers_the_image_s_is_read(tmp_path, caplog):
    """projection_dim is the whole model's: the one in vision_config is not read by CLIPModel."""
    module = towers.both_towers({**towers.TINY_CLIP, "projection_dim": 99}, 20)
    towers.save(module, tmp_path, TINY_PROCESSOR)
    with caplog.at_level("INFO", "medsd_jax"):
        tower = open_tower("clip", tmp_path)
    in_text = sum("text" in name or name == "logit_scale" for name in module.state_dict())
    assert f"does not use: {in_text} of the text tower" in caplog.text
    x = images(24)
    with torch.inference_mode():
        expected = module.get_image_features(oracles.nchw(x)).pooler_output.numpy()
    ours = embed(tower.config, tower.params, x)
    assert ours.shape == (2, 20)
    assert oracles.error(ours, expected) <= TOLERANCE


@pytest.mark.parametrize("config", [towers.TINY_CLIP, {}], ids=["tiny", "base"])
def test_names_and_shapes_are_transformers(config):
    """{} is ViT-B/32, which transformers' defaults describe."""
    with torch.device("meta"):
        module = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
    theirs = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    _, like = abstract(functools.partial(CLIPVisionModelWithProjection, CLIPVisionConfig(**config)))
    assert oracles.torch_shapes(like) == theirs
    assert {x.dtype.name for x in like.values()} == {"float32"}
    assert "vision_model.encoder.layers.1.self_attn.out_proj.weight" in theirs


def test_names_of_other_files():
    """position_ids stand in files before 2023; a tower alone has no prefix in transformers 5."""
    module = towers.clip_tower(**towers.TINY_CLIP)
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    old = {**state, "vision_model.embeddings.position_ids": np.arange(10)[None]}
    bare = {name.removeprefix("vision_model."): x for name, x in state.items()}
    assert "embeddings.class_embedding" in bare and "visual_projection.weight" in bare
    for given, left_out in ((old, {"position_ids": 1}), (bare, {})):
        kept, counts = clip_vision.modernize(given)
        assert kept.keys() == state.keys()
        assert all(np.array_equal(kept[name], x) for name, x in state.items())
        assert counts == left_out
    # A name that no rule knows is reported as it stands in the file.
    _, like = abstract(functools.partial(CLIPVisionModelWithProjection, CLIPVisionConfig()))
    with pytest.raises(UserError, match=r"1 not expected: lora\.weight \[1\]"):
        tensors = {name: np.broadcast_to(np.float32(0), s)
                   for name, s in oracles.torch_shapes(like).items()}  # fmt: skip
        from_torch(clip_vision.modernize({**tensors, "lora.weight": np.ones(1)})[0], like, "x")


@pytest.mark.parametrize(
    "values",
    [
        towers.CLIP_CONFIG,
        # As transformers 4 wrote it: what equals a default is left out.
        {**towers.CLIP_CONFIG, "vision_config": {"model_type": "clip_vision_model"}},
        # LAION's: the second dict overrides all of the first, with its defaults.
        {
            **towers.CLIP_CONFIG,
            "vision_config": {"hidden_size": 320, "num_hidden_layers": 3},
            "vision_config_dict": {"hidden_size": 96, "patch_size": 14},
        },
        {**towers.CLIP_CONFIG, "projection_dim": 640},
    ],
)
def test_reads_a_config_as_transformers_does(values):
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(values)))
    ours = read_config(values, "config.json")
    for field in dataclasses.fields(CLIPVisionConfig):
        owner = theirs if field.name == "projection_dim" else theirs.vision_config
        assert getattr(ours, field.name) == getattr(owner, field.name), field.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act = 'silu' is not supported"),
        ({"num_channels": 1}, r"num_channels = 1 is not supported \(only 3\)"),
        ({"image_size": [224, 224]}, r"image_size = \(224, 224\) is not supported \(expected int"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 32"),
        ({"patch_size": 25}, "patch_size = 25 is above image_size = 24"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = "),
        ({"num_registers": 4}, "unknown key 'num_registers'"),
        ({"architectures": ["CLIPVisionModel"]}, r"architectures = \('CLIPVisionModel',\)"),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    alone = {**towers.TINY_CLIP, "model_type": "clip_vision_model", **change}
    with pytest.raises(UserError, match=message) as error:
        read_config(alone, "config.json")
    assert "\n" not in str(error.value)
    both = {"model_type": "clip", "vision_config": alone}
    with pytest.raises(UserError, match=rf"^config.json, vision_config: .*{message}"):
        read_config(both, "config.json")


def test_asks_for_full_float32_products():
    """Otherwise a TPU multiplies in bfloat16 and a GPU in TF32, and distances change with them."""
    config = CLIPVisionConfig(**towers.TINY_CLIP)
    for attend in IMPLEMENTATIONS.values():
        if attend is IMPLEMENTATIONS["cudnn"]:  # takes no float32
            continue
        graphdef, like = abstract(
            functools.partial(CLIPVisionModelWithProjection, config, attend=attend)
        )
        jaxpr = str(
            jax.make_jaxpr(lambda w, x, g=graphdef: bind(g, w).pooled_features(x))(like, images(24))
        )
        products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
        highest = jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
        assert products == highest >= 18  # 8 a layer, the patches, the projection


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 24, 24, 1), "images have 1 channels, but this network takes 3"),
        ((1, 32, 32, 3), "images of 32x32: this CLIP was trained on 24x24"),
    ],
)
def test_refuses_images_it_cannot_take(shape, message):
    config = CLIPVisionConfig(**towers.TINY_CLIP)
    graphdef, like = abstract(functools.partial(CLIPVisionModelWithProjection, config))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda w, x: bind(graphdef, w).pooled_features(x),
            like,
            jax.ShapeDtypeStruct(shape, np.float32),
        )
