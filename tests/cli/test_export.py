"""``python -m medsd_jax export``: the folder, the certificate, and faults that it must find."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import medsd_jax
from medsd_jax.cli.main import main
from medsd_jax.workflows import verify_export
from medsd_jax.workflows.models import load
from tests.tiny.pipeline import SIZE, one_torch_thread, tiny_pipeline  # noqa: F401


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "source"
    medsd_jax.save(tiny_pipeline(), folder)
    return folder


def run(source, output, *flags):
    return main(["export", "--model", str(source), "--output", str(output), *flags])


def certificate_of(folder):
    return json.loads((folder / "certificate.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_folder_holds_the_model(source, tmp_path, dtype, capsys):
    assert run(source, tmp_path / "out", "--dtype", dtype) == 0
    assert f"the model is in {tmp_path / 'out'} ({dtype} weights)" in capsys.readouterr().out
    tensors = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype.name for x in tensors.values()} == {dtype}
    exported = load(tmp_path / "out")
    for name, x in tiny_pipeline().params.items():
        error = np.abs(exported.params[name] - x)
        assert (error <= {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype] * (
            np.abs(x) + 1e-3
        )).all(), name  # fmt: skip
    assert not (tmp_path / "out" / "certificate.json").exists()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify_passes_and_says_by_how_much(source, tmp_path, capsys, dtype):
    out = tmp_path / "out"
    assert run(source, out, "--verify", "--dtype", dtype) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("PASS: ")
    certificate = certificate_of(out)
    assert certificate["passed"] is True and certificate["same_prompt_ids"] is True
    assert list(certificate["components"]) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    for name, result in certificate["components"].items():
        assert 0 < result["mean_abs_difference"] <= result["max_abs_difference"]
        assert result["max_abs_difference"] <= 1e-4 * result["output_max_abs"]
        assert any(name in line and f"{result['ratio']:.3g}" in line for line in printed)
    assert certificate["image"]["mean_abs_difference_in_255ths"] <= 0.5
    assert certificate["settings"]["num_steps"] == 10
    assert certificate["settings"]["weights_dtype"] == dtype
    assert (certificate["settings"]["height"], certificate["settings"]["width"]) == (SIZE, SIZE)
    assert certificate["thresholds"] == {
        "component_max_abs_difference_over_output_max_abs": 1e-4,
        "image_mean_abs_difference_in_255ths": 0.5,
    }
    assert certificate["versions"].keys() == {
        "medsd_jax", "jax", "flax", "torch", "diffusers", "transformers", "python",
        "optax", "numpy", "scipy", "grain",
    }  # fmt: skip
    images = [np.asarray(Image.open(out / name)) for name in verify_export.IMAGES]
    assert all(image.shape == (SIZE, SIZE, 3) for image in images)
    assert images[0].std() > 30
    difference = np.abs(images[0].astype(int) - images[1])
    assert difference.mean() == certificate["image"]["mean_abs_difference_in_255ths"]
    assert (images[2] == np.minimum(difference * verify_export.AMPLIFICATION, 255)).all()


def change_one_weight(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0, 1, 1] += 0.5
    save_file(tensors, path)


def transpose_a_square_kernel(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = "decoder.mid_block.attentions.0.to_q.weight"
    save_file({**tensors, name: np.ascontiguousarray(tensors[name].T)}, path)


def drop_a_weight(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, path)


def put_a_nan(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv_in.bias"][0] = np.nan
    save_file(tensors, path)


def change(file, **values):
    def fault(folder):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return fault


def swap_two_tokens(folder):
    """Both shapes of the vocabulary, and both forms of a letter."""
    names = {"l": "n", "n": "l", "l</w>": "n</w>", "n</w>": "l</w>"}
    vocab = folder / "tokenizer" / "vocab.json"
    words = json.loads(vocab.read_text())
    vocab.write_text(json.dumps({names.get(word, word): i for word, i in words.items()}))
    whole = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(whole.read_text())
    words = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(word, word): i for word, i in words.items()}
    whole.write_text(json.dumps(content))


def truncate(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = {
    "a weight": (change_one_weight, {"unet", "image"}),
    "a transposed kernel": (transpose_a_square_kernel, {"vae_decoder"}),
    # An image is made without the encoder: only its own check can see these two.
    "a lost bias": (drop_a_weight, {"vae_encoder"}),
    "a nan": (put_a_nan, {"vae_encoder"}),
    "activation": (
        change("text_encoder/config.json", hidden_act="gelu"),
        {"text_encoder"},
    ),
    "number of heads": (change("unet/config.json", attention_head_dim=8), {"unet", "image"}),
    "prediction type": (
        change("scheduler/scheduler_config.json", prediction_type="v_prediction"),
        {"image"},
    ),
    "noise schedule": (change("scheduler/scheduler_config.json", beta_end=0.02), {"image"}),
    "scaling factor": (change("vae/config.json", scaling_factor=1.0), {"vae_decoder", "image"}),
    "tokens": (swap_two_tokens, {"tokenizer", "image"}),
    "a cut file": (truncate, {"error"}),
}


@pytest.mark.torch
@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds_a_planted_fault(source, tmp_path, monkeypatch, capsys, fault):
    """The folder is damaged between writing and checking, as a bug of the writer would."""
    plant, differences = FAULTS[fault]
    save = medsd_jax.save

    def save_with_fault(model, folder, **settings):
        save(model, folder, **settings)
        plant(folder)

    monkeypatch.setattr("medsd_jax.workflows.verify_export.save", save_with_fault)
    assert run(source, tmp_path / "out", "--verify") == 1
    printed = capsys.readouterr().out
    certificate = certificate_of(tmp_path / "out")
    assert certificate["passed"] is False
    assert "\nFAIL: " in printed and "PASS" not in printed
    if certificate["error"] is not None:
        assert differences == {"error"} and certificate["error"] in printed
        return
    failed = {name for name, result in certificate["components"].items() if not result["passed"]}
    failed |= set() if certificate["image"]["passed"] else {"image"}
    failed |= set() if certificate["same_prompt_ids"] else {"tokenizer"}
    # A small fault of one network may move the finished image less than its threshold.
    assert differences <= failed <= differences | {"image"}


def test_an_old_certificate_does_not_outlive_its_weights(source, tmp_path):
    out = tmp_path / "out"
    assert run(source, out) == 0
    for name in ("certificate.json", *verify_export.IMAGES):
        (out / name).write_text("of other weights")
    (out / "README.md").write_text("mine")
    assert run(source, out) == 0
    assert not any((out / name).exists() for name in ("certificate.json", *verify_export.IMAGES))
    assert (out / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "int8"], "'int8'"),
        (["--verfiy"], "--verfiy (did you mean --verify?)"),
        (["--num_steps", "0"], "at least 1"),
    ],
)
def test_wrong_flags(source, tmp_path, capsys, flags, message):
    assert run(source, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_folders(source, tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert run(source, tmp_path) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert run(source, tmp_path / "notes.txt") == 2
    assert "is a file" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}


def test_verify_without_torch_says_so_before_it_writes(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(source, tmp_path / "out", "--verify") == 2
    error = capsys.readouterr().err
    assert "pip install '.[torch]'" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_verify_torch_is_not_needed(source, tmp_path, monkeypatch):
    for absent in ("torch", "diffusers"):
        monkeypatch.setitem(sys.modules, absent, None)
    assert run(source, tmp_path / "out") == 0
