"""DINOv2 against transformers' own, with the same random weights."""

import dataclasses
import functools
import json
import time

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402

from medsd_jax.errors import UserError  # noqa: E402
from medsd_jax.models.attention import IMPLEMENTATIONS  # noqa: E402
from medsd_jax.models.params import abstract, bind  # noqa: E402
from medsd_jax.vision import dinov2  # noqa: E402
from medsd_jax.vision.dinov2 import Dinov2Config, Dinov2Model, read_config  # noqa: E402
from medsd_jax.vision.transformers_folder import open_tower  # noqa: E402
from tests.models import oracles  # noqa: E402
from tests.vision import towers  # noqa: E402

pytestmark = pytest.mark.torch

# Float32 sums in another order: 2e-7 to 6e-7 of the largest value was measured, tiny and full
# size. A wrong setting gives 1e-3 and more: see below.
TOLERANCE = 1e-5
TINY_PROCESSOR = {**towers.RAD_DINO_PROCESSOR, "size": 42, "crop_size": 42}


def images(height: int, width: int, number: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((number, height, width, 3), np.float32)


def embed(config, weights, x, **kwargs) -> np.ndarray:
    graphdef, _ = abstract(functools.partial(Dinov2Model, config, **kwargs))
    run = jax.jit(lambda w, x: bind(graphdef, w).pooled_features(x))
    return np.asarray(run(dict(weights), x))


def theirs(module, x) -> np.ndarray:
    with torch.inference_mode():
        return module(oracles.nchw(x)).pooler_output.numpy()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """torch's module and ours from the folder that it wrote."""
    folder = tmp_path_factory.mktemp("dinov2")
    module = towers.dinov2(**towers.TINY_DINOV2)
    return module, open_tower("rad-dino", towers.save(module, folder, TINY_PROCESSOR))


@pytest.mark.parametrize("attention", ["auto", "xla"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_equals_transformers(tmp_path, qkv_bias, attention):
    module = towers.dinov2(**towers.TINY_DINOV2, qkv_bias=qkv_bias)
    tower = open_tower("rad-dino", towers.save(module, tmp_path, TINY_PROCESSOR))
    x = images(42, 42)
    expected = theirs(module, x)
    ours = embed(tower.config, tower.params, x, attend=IMPLEMENTATIONS[attention])
    error = oracles.error(ours, expected)
    print(f"dinov2 {qkv_bias} {attention}: {error:.1e}")
    assert error <= TOLERANCE
    # Random weights could make every image look alike, and agreement would then mean nothing.
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (70, 70),  # more patches than the 3 x 3 that were trained
        (28, 28),  # fewer
        (45, 45),  # as many, of an image that is not a multiple: as they are
        (14, 126),  # as many, in one row: interpolated nevertheless
        (57, 71),
    ],
)
def test_other_sizes_equal_transformers(tiny, height, width):
    module, tower = tiny
    x = images(height, width)
    error = oracles.error(embed(tower.config, tower.params, x), theirs(module, x))
    print(f"dinov2 {height}x{width}: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("change", [{"num_attention_heads": 2}, {"layer_norm_eps": 1e-6}])
def test_a_wrong_setting_is_far_beyond_the_tolerance(tiny, change):
    """Neither shows in the weights' shapes."""
    module, tower = tiny
    x = images(42, 42)
    wrong = embed(dataclasses.replace(tower.config, **change), tower.params, x)
    assert oracles.error(wrong, theirs(module, x)) > 100 * TOLERANCE


def test_positions_that_are_not_interpolated_as_transformers_does_it_would_be_seen(
    tiny, monkeypatch
):
    module, tower = tiny
    x = images(70, 70)

    def nearest(positions, height, width):
        at = np.arange(height * width) % 9
        return jax.numpy.concatenate([positions[:, :1], positions[:, 1:][:, at]], axis=1)

    monkeypatch.setattr(dinov2, "interpolate_positions", nearest)
    wrong = embed(tower.config, tower.params, x)
    assert oracles.error(wrong, theirs(module, x)) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_equals_transformers_at_full_size(tmp_path):
    """microsoft/rad-dino at 518 px, and at 224 px with interpolated positions."""
    module = towers.dinov2(**towers.RAD_DINO_CONFIG)
    towers.save(module, tmp_path, towers.RAD_DINO_PROCESSOR)
    cases = {size: images(size, size) for size in (518, 224)}
    expected = {size: theirs(module, x) for size, x in cases.items()}
    del module
    (tmp_path / "config.json").write_text(json.dumps(towers.RAD_DINO_CONFIG))
    tower = open_tower("rad-dino", tmp_path)
    # All of Dinov2Model's at this size but the 768 of the mask token.
    assert sum(w.size for w in tower.params.values()) == 86_580_480 - 768
    for size, x in cases.items():
        start = time.perf_counter()
        ours = embed(tower.config, tower.params, x)
        error = oracles.error(ours, expected[size])
        print(f"rad-dino {size} px: {error:.1e}, ours took {time.perf_counter() - start:.1f} s")
        assert ours.shape == (2, 768)
        assert error <= TOLERANCE


def test_names_and_shapes_are_those_of_the_files(tiny, tmp_path):
    """Of the files, which hold the published names; in memory transformers 5 has others."""
    module, tower = tiny
    module.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert theirs.pop("embeddings.mask_token") == (1, 32)
    assert oracles.torch_shapes(tower.params) == theirs


def test_names_are_rad_dino_s():
    """Some of microsoft/rad-dino's model.safetensors, of each kind one."""
    _, like = abstract(functools.partial(Dinov2Model, read_config(towers.RAD_DINO_CONFIG, "x")))
    shapes = oracles.torch_shapes(like)
    assert len(shapes) == 5 + 12 * 18 + 1
    assert (
        shapes.items()
        >= {
            "embeddings.cls_token": (1, 1, 768),
            "embeddings.position_embeddings": (1, 1370, 768),
            "embeddings.patch_embeddings.projection.weight": (768, 3, 14, 14),
            "encoder.layer.0.norm1.bias": (768,),
            "encoder.layer.11.attention.attention.query.weight": (768, 768),
            "encoder.layer.11.attention.attention.key.bias": (768,),
            "encoder.layer.11.attention.output.dense.weight": (768, 768),
            "encoder.layer.11.layer_scale2.lambda1": (768,),
            "encoder.layer.3.mlp.fc1.weight": (3072, 768),
            "layernorm.weight": (768,),
        }.items()
    )


def test_names_in_memory_load_too(tiny):
    module, tower = tiny
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    assert "encoder.layer.0.attention.q_proj.weight" in state
    kept, left_out = dinov2.modernize(state)
    assert left_out == {"mask_token": 1}
    assert kept.keys() == oracles.torch_shapes(tower.params).keys()
    query = state["encoder.layer.1.attention.q_proj.weight"]
    assert kept["encoder.layer.1.attention.attention.query.weight"] is query


def test_reads_a_config_as_transformers_does():
    for values in (towers.RAD_DINO_CONFIG, {"model_type": "dinov2"}):
        theirs = transformers.Dinov2Config(**values)
        ours = read_config(values, "config.json")
        for field in dataclasses.fields(Dinov2Config):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_swiglu_ffn": True}, r"use_swiglu_ffn = True is not supported \(only False\)"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new' is not supported"),
        ({"num_channels": 1}, "num_channels = 1 is not supported"),
        ({"mlp_ratio": 2.5}, r"mlp_ratio = 2.5 is not supported \(expected int\)"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 768"),
        ({"image_size": 13}, "patch_size = 14 is above image_size = 13"),
        ({"num_register_tokens": 4}, "unknown key 'num_register_tokens'"),
        ({"architectures": ["Dinov2ForImageClassification"]}, "architectures = "),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    with pytest.raises(UserError, match=rf"^config.json: .*{message}") as error:
        read_config({**towers.RAD_DINO_CONFIG, **change}, "config.json")
    assert "\n" not in str(error.value)


def test_asks_for_full_float32_products():
    """Otherwise a TPU multiplies in bfloat16 and a GPU in TF32, and distances change with them."""
    config = Dinov2Config(**towers.TINY_DINOV2)
    for attend in IMPLEMENTATIONS.values():
        if attend is IMPLEMENTATIONS["cudnn"]:  # takes no float32
            continue
        graphdef, like = abstract(functools.partial(Dinov2Model, config, attend=attend))
        jaxpr = str(
            jax.make_jaxpr(lambda w, x, g=graphdef: bind(g, w).pooled_features(x))(
                like, images(70, 70)
            )
        )
        products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
        highest = jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
        assert products == highest >= 19  # 8 a layer, the patches, two for the positions


def test_refuses_images_without_a_patch(tiny):
    _, tower = tiny
    for shape, message in (
        ((1, 13, 70, 3), "13x70 are too small .* at least 14"),
        ((1, 42, 42, 1), "images have 1 channels"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(
                lambda w, x: bind(tower.graphdef, w).pooled_features(x),
                dict(tower.params),
                jax.ShapeDtypeStruct(shape, np.float32),
            )
