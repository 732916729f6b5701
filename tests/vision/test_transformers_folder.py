"""Folders of transformers: what is read of them, and one line for each way to be wrong."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file  # noqa: E402

from medsd_jax.errors import UserError  # noqa: E402
from medsd_jax.vision.transformers_folder import open_tower  # noqa: E402
from tests.vision import towers  # noqa: E402

pytestmark = pytest.mark.torch
KINDS = ("clip", "rad-dino")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    clip, dino = towers.clip_tower(**towers.TINY_CLIP), towers.dinov2(**towers.TINY_DINOV2)
    towers.save(clip, root / "clip", {**towers.CLIP_PROCESSOR, "size": 24, "crop_size": 24})
    towers.save(dino, root / "rad-dino", {**towers.RAD_DINO_PROCESSOR, "size": 42, "crop_size": 42})
    return root


@pytest.fixture
def folders(saved, tmp_path):
    """Of one's own, to damage."""
    return shutil.copytree(saved, tmp_path / "towers")


def _line(kind: str, folder) -> str:
    with pytest.raises(UserError) as error:
        open_tower(kind, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_file_s_in_float32(folders, kind):
    whole = open_tower(kind, folders / kind).params
    path = folders / kind / "model.safetensors"
    tensors = load_file(path)
    assert sum(x.size for x in whole.values()) == sum(
        x.size for name, x in tensors.items() if "mask_token" not in name
    )
    save_file({name: x.astype(np.float16) for name, x in tensors.items()}, path)
    half = open_tower(kind, folders / kind).params
    for name, x in whole.items():
        assert half[name].dtype == np.float32
        np.testing.assert_array_equal(half[name], x.astype(np.float16))


def test_shards(folders, tmp_path):
    module = towers.dinov2(**towers.TINY_DINOV2)
    module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shutil.copy(folders / "rad-dino" / "preprocessor_config.json", tmp_path / "shards")
    ours = open_tower("rad-dino", tmp_path / "shards").params
    whole = open_tower("rad-dino", folders / "rad-dino").params
    assert ours.keys() == whole.keys()
    assert all(np.array_equal(ours[name], x) for name, x in whole.items())


@pytest.mark.parametrize("kind", KINDS)
def test_one_error_lists_every_misfit(folders, kind):
    path = folders / kind / "model.safetensors"
    tensors = load_file(path)
    first, second, *_ = sorted(name for name in tensors if "norm" in name)
    shape = list(tensors.pop(first).shape)
    tensors[second] = np.zeros(3, np.float32)
    tensors["head.weight"] = np.zeros(2, np.float32)
    save_file(tensors, path)
    assert _line(kind, folders / kind) == (
        f"{folders / kind}: the weights do not fit the config.json beside them ("
        f"1 missing: {first} {shape}; 1 not expected: head.weight [2]; "
        f"1 of the wrong shape: {second} [3] instead of {shape}); take both from the same model"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_the_way_out(folders, kind, name):
    (folders / kind / "model.safetensors").rename(folders / kind / name)
    line = _line(kind, folders / kind)
    assert f"only pickled weights ({name}): opening a pickle can run any code" in line
    assert "with transformers) and write it with its save_pretrained(FOLDER)" in line


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [
        ("clip", "config.json", None, "config.json is missing; copy or download the model again"),
        ("clip", "config.json", "{", "config.json is not valid JSON"),
        ("rad-dino", "preprocessor_config.json", None, "holds no preprocessor_config.json"),
        ("rad-dino", "preprocessor_config.json", "[]", "must hold a JSON object"),
        ("clip", "model.safetensors", None, "no weights; expected model.safetensors"),
        ("clip", "model.safetensors", "version https://git-lfs.github.com", "git-lfs pointer"),
        ("rad-dino", "model.safetensors", "no", "is damaged or cut short"),
    ],
)
def test_files_that_are_absent_or_damaged(folders, kind, name, text, message):
    path = folders / kind / name
    path.unlink() if text is None else path.write_text(text)
    assert message in _line(kind, folders / kind)


def test_folders_of_other_models(folders, tmp_path):
    line = _line("clip", folders / "rad-dino")
    assert line == (
        f"{folders / 'rad-dino' / 'config.json'}: model_type = 'dinov2', but clip=FOLDER reads "
        "'clip' or 'clip_vision_model', such as openai/clip-vit-base-patch32"
    )
    assert "model_type = 'clip_vision_model', but rad-dino=FOLDER" in _line(
        "rad-dino", folders / "clip"
    )
    line = _line("rad-dino", tmp_path / "absent")
    assert "absent: no such folder" in line
    assert "hf download microsoft/rad-dino" in line
    assert "no such folder" in _line("clip", folders / "clip" / "model.safetensors")


def test_an_input_that_clip_does_not_take_is_reported_when_opened(folders):
    path = folders / "clip" / "preprocessor_config.json"
    path.write_text(json.dumps(towers.CLIP_PROCESSOR))
    assert "images of 224x224: this CLIP was trained on 24x24" in _line("clip", folders / "clip")


def test_a_tower_without_projection_is_refused(tmp_path):
    """CLIPVisionModel: its pooled output is another space."""
    import transformers

    module = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**towers.TINY_CLIP))
    towers.save(module, tmp_path, towers.CLIP_PROCESSOR)
    assert "architectures = ('CLIPVisionModel',) is not supported" in _line("clip", tmp_path)
    towers.edit(tmp_path / "config.json", architectures=...)
    towers.edit(tmp_path / "preprocessor_config.json", size=24, crop_size=24)
    assert "1 missing: visual_projection.weight [12, 32]" in _line("clip", tmp_path)
