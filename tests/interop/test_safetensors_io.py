import json
import os
import pickle
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from medsd_jax.errors import UserError
from medsd_jax.interop.safetensors_io import (
    open_safetensors,
    read_weights,
    read_weights_file,
    require_finite,
    write_weights,
)

STEM = "model"


def _tensors():
    rng = np.random.default_rng(0)
    return {f"layer{n}.weight": rng.standard_normal((4, 8), np.float32) for n in range(5)}


def test_one_file(tmp_path, same_bits):
    write_weights(tmp_path, "model.safetensors", _tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    same_bits(load_file(tmp_path / "model.safetensors"), _tensors())
    same_bits(read_weights(tmp_path, STEM), _tensors())


def test_transposed_views_are_written_in_their_own_order(tmp_path, same_bits):
    views = {name: x.T for name, x in _tensors().items()}
    write_weights(tmp_path, "model.safetensors", views)
    same_bits(load_file(tmp_path / "model.safetensors"), views)


def test_shards_and_their_index(tmp_path, same_bits):
    write_weights(tmp_path, "model.safetensors", _tensors(), max_shard_bytes=2 * 4 * 8 * 4)
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *shards, "model.safetensors.index.json",
    ]  # fmt: skip
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 4 * 8 * 4}
    assert index["weight_map"]["layer4.weight"] == shards[2]
    assert sorted(load_file(tmp_path / shards[0])) == ["layer0.weight", "layer1.weight"]
    same_bits(read_weights(tmp_path, STEM), _tensors())


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path, same_bits):
    write_weights(tmp_path, "model.safetensors", _tensors(), max_shard_bytes=1)
    assert len(list(tmp_path.glob("model-*-of-00005.safetensors"))) == 5
    same_bits(read_weights(tmp_path, STEM), _tensors())


@pytest.mark.torch
@pytest.mark.parametrize("max_shard", ["10GB", "60KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_every_file_that_torch_writes(tmp_path, max_shard, variant, dtype, same_bits):
    import torch
    import transformers
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32,)).to(getattr(torch, dtype))
    vae.save_pretrained(tmp_path / "vae", max_shard_size=max_shard, variant=variant)
    config = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=2
    )
    text = transformers.CLIPTextModel(config).to(getattr(torch, dtype))
    text.save_pretrained(tmp_path / "text", max_shard_size=max_shard, variant=variant)
    for folder, stem, module in (
        ("vae", "diffusion_pytorch_model", vae),
        ("text", "model", text),
    ):
        assert (max_shard == "60KB") == bool(list((tmp_path / folder).glob("*-of-*")))
        expected = {name: x.float().numpy() for name, x in module.state_dict().items()}
        got = read_weights(tmp_path / folder, stem)
        same_bits({name.removeprefix("text_model."): x for name, x in got.items()}, expected)


def test_bfloat16_and_whole_numbers(tmp_path, same_bits):
    x = np.asarray([1.5, -3.25, 3e38], ml_dtypes.bfloat16)
    save_file({"x": x, "ids": np.arange(3)}, tmp_path / "model.safetensors")
    as_float = {"x": x.astype(np.float32), "ids": np.arange(3)}
    same_bits(read_weights(tmp_path, STEM), as_float)
    same_bits(read_weights(tmp_path, STEM, dtype=ml_dtypes.bfloat16), {"x": x, "ids": np.arange(3)})


def test_fp16_only_where_asked_or_alone(tmp_path):
    half = tmp_path / "model.fp16.safetensors"
    save_file({"x": np.ones(1, np.float16)}, half)
    assert read_weights(tmp_path, STEM)["x"] == 1
    save_file({"x": np.full(1, 2, np.float32)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path, STEM)["x"] == 2
    assert read_weights(tmp_path, STEM, variant="fp16")["x"] == 1
    half.unlink()
    assert read_weights(tmp_path, STEM, variant="fp16")["x"] == 2  # another part may have it


@pytest.mark.parametrize(
    "name, why",
    [
        ("pytorch_model.bin", "a pickle can run any code"),
        ("v1-5-pruned.ckpt", "a pickle can run any code"),
        ("model.pt", "a pickle can run any code"),
        ("flax_model.msgpack", "former Flax models"),
        ("other.safetensors", r"no model\.safetensors, but other\.safetensors"),
        ("model.non_ema.safetensors", "read it as the variant 'non_ema'"),
        ("config.json", r"expected model\.safetensors, found config\.json"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=why) as error:
        read_weights(tmp_path, STEM)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_beside_safetensors_does_not_matter(tmp_path):
    write_weights(tmp_path, "model.safetensors", _tensors())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert len(read_weights(tmp_path, STEM)) == 5


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_reported(tmp_path, kept):
    write_weights(tmp_path, "model.safetensors", _tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged or cut short") as error:
        read_weights(tmp_path, STEM)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_git_lfs_pointer_is_reported(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n")
    with pytest.raises(UserError, match="git-lfs pointer"):
        read_weights(tmp_path, STEM)


def test_a_number_format_that_is_not_read(tmp_path):
    save_file({"x": np.ones(2, np.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="x is stored as C64"):
        read_weights(tmp_path, STEM)


def test_a_missing_shard_is_named(tmp_path):
    write_weights(tmp_path, "model.safetensors", _tensors(), max_shard_bytes=300)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"not there: model-00002-of-00003\.safetensors"):
        read_weights(tmp_path, STEM)


@pytest.mark.parametrize(
    "weight_map, why",
    [
        ({"layer0.weight": "../../secret.safetensors"}, "not the name of a safetensors file"),
        ({"layer0.weight": "model.bin"}, "not the name of a safetensors file"),
        ({"layer0.weight": 3}, "not the name of a safetensors file"),
        (
            {"layer0.weight": "a.safetensors", "gone": "a.safetensors"},
            "disagree about gone, layer1",
        ),
        ([], "not an index"),
    ],
)
def test_an_index_is_not_trusted(tmp_path, weight_map, why):
    two = {name: x for name, x in _tensors().items() if name < "layer2"}
    save_file(two, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=re.compile(why)):
        read_weights(tmp_path, STEM)


def test_a_tensor_in_two_shards_is_reported(tmp_path):
    for name in ("a", "b"):
        save_file({"x": np.ones(1)}, tmp_path / f"{name}.safetensors")
    weight_map = {"x": "a.safetensors", "y": "b.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="x is in another shard too"):
        read_weights(tmp_path, STEM)


def _pickle(path):
    path.write_bytes(pickle.dumps({"x": np.ones(2, np.float32)}))


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")


@pytest.mark.parametrize(
    "name, write, why",
    [
        ("a.pt", _pickle, "is a pickle of torch"),
        ("a.bin", _zip, "is a pickle of torch"),
        ("a.safetensors", _zip, "is a pickle of torch"),
        ("a.ckpt", lambda path: path.write_bytes(b"128 bytes of an old tar" * 9), "is a pickle"),
        ("a.safetensors", lambda path: None, "is missing"),
        ("a.safetensors", lambda path: path.mkdir(), "is a folder"),
        ("a.safetensors", lambda path: path.symlink_to(path), "cannot be read"),
        ("a.safetensors", lambda path: path.write_text("<!DOCTYPE html><p>404"), "page of the web"),
        ("a.safetensors", lambda path: path.write_bytes(b"GGUF" + bytes(99)), "GGUF"),
        ("a.safetensors", lambda path: path.touch(), "damaged or cut short"),
    ],
)
def test_a_file_is_named_as_what_it_is(tmp_path, name, write, why):
    write(tmp_path / name)
    with pytest.raises(UserError, match=why) as error:
        read_weights_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_closed_file_is_named_as_such(tmp_path):
    write_weights(tmp_path, "model.safetensors", _tensors())
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(UserError, match="may not be read by this user"):
        read_weights_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("length", [600, 640, 700, 768, 900, 1024, 1200, 1280, 1500])
def test_no_length_of_a_header_looks_like_a_pickle(tmp_path, length):
    """A header begins with its length, whose low bytes may be those of a pickle or of a zip."""
    path = tmp_path / "weights.pt"  # the suffix alone makes no pickle
    save_file({"x": np.ones(1, np.float32)}, path, metadata={"format": "m" * length})
    assert read_weights_file(path)["x"] == 1
    with open_safetensors(path) as file:
        assert len(file.metadata()["format"]) == length


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_reported(dtype, value):
    x = np.ones(5, dtype)
    require_finite("x", x, "unet")
    require_finite("ids", np.arange(3), "unet")
    x[3] = value
    with pytest.raises(UserError, match="unet: x holds 1 of 5 values that are not finite"):
        require_finite("x", x, "unet")


def test_a_value_beyond_the_dtype_asked_for(tmp_path):
    save_file({"x": np.full(2, 1e5, np.float32)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path, STEM, dtype=ml_dtypes.bfloat16)["x"].size == 2
    with pytest.raises(UserError, match="x has values beyond float16's range"):
        read_weights(tmp_path, STEM, dtype=np.float16)
