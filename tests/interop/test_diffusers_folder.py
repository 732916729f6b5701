import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.errors import UserError
from medsd_jax.interop import diffusers_folder
from medsd_jax.interop.diffusers_folder import (
    check_writable,
    load_pipeline,
    load_vae,
    save_pipeline,
)
from medsd_jax.interop.weight_names import WEIGHT_STEMS
from medsd_jax.models import params

WEIGHTS = {c: f"{c}/{stem}.safetensors" for c, stem in WEIGHT_STEMS.items()}


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip_is_bit_identical(tiny_model, tiny_folder, tmp_path, same_bits):
    loaded = load_pipeline(tiny_folder)
    same_bits(loaded.params, tiny_model.params)
    for field in ("unet", "vae", "text_encoder", "scheduler"):
        assert getattr(loaded, field) == getattr(tiny_model, field)
    save_pipeline(loaded, tmp_path / "again")
    names = sorted(p.relative_to(tiny_folder) for p in tiny_folder.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for name in names:
        assert (tiny_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_vae_alone(tiny_model, tiny_folder, same_bits):
    """The other weights, the tokenizer and the scheduler may be absent: they are not opened."""
    for name in ("unet", "text_encoder"):
        (tiny_folder / WEIGHTS[name]).unlink()
    for name in ("tokenizer", "scheduler"):
        shutil.rmtree(tiny_folder / name)
    vae = load_vae(tiny_folder)
    assert vae.config == tiny_model.vae
    assert vae.image_size == 8 * 2  # the U-Net's latents, and two pixels a cell
    same_bits(vae.params, params.component(tiny_model.params, "vae"))
    _edit(tiny_folder / "vae" / "config.json", latent_channels=8)
    with pytest.raises(UserError, match="vae: the weights do not fit"):
        load_vae(tiny_folder)
    _edit(tiny_folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(UserError, match="'StableDiffusionXLPipeline'; only"):
        load_vae(tiny_folder)


def test_model_index(tiny_folder):
    assert json.loads((tiny_folder / "model_index.json").read_text()) == {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def test_jax_arrays_are_saved(tiny_model, tiny_folder, tmp_path, same_bits):
    params = {name: jnp.asarray(x) for name, x in tiny_model.params.items()}
    save_pipeline(dataclasses.replace(tiny_model, params=params), tmp_path / "jax")
    for name in WEIGHTS.values():
        same_bits(load_file(tmp_path / "jax" / name), load_file(tiny_folder / name))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_on_request(tiny_model, tmp_path, dtype, same_bits):
    save_pipeline(tiny_model, tmp_path / "half", dtype=dtype)
    halves = {name: np.asarray(x).astype(dtype) for name, x in tiny_model.params.items()}
    loaded = load_pipeline(tmp_path / "half", dtype=dtype)
    same_bits(loaded.params, halves)
    widened = {name: x.astype(np.float32) for name, x in halves.items()}
    same_bits(load_pipeline(tmp_path / "half").params, widened)
    config = json.loads((tmp_path / "half" / "text_encoder" / "config.json").read_text())
    assert config["torch_dtype"] == np.dtype(dtype).name


def test_a_value_that_float16_cannot_hold(tiny_model, tmp_path):
    params = {**tiny_model.params, "vae.decoder.conv_in.bias": np.full(16, 1e5, np.float32)}
    with pytest.raises(UserError, match=r"decoder\.conv_in\.bias has values beyond float16"):
        save_pipeline(
            dataclasses.replace(tiny_model, params=params), tmp_path / "new", dtype="float16"
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["int8", "float12", np.float64])
def test_other_dtypes_are_reported(tiny_model, tiny_folder, tmp_path, dtype):
    with pytest.raises(UserError, match="use one of float32, float16, bfloat16"):
        load_pipeline(tiny_folder, dtype=dtype)
    with pytest.raises(UserError, match="use one of float32, float16, bfloat16"):
        save_pipeline(tiny_model, tmp_path / "new", dtype=dtype)


def test_the_fp16_variant(tiny_model, tiny_folder):
    for component, stem in WEIGHT_STEMS.items():
        path = tiny_folder / component / f"{stem}.safetensors"
        half = {name: x.astype(np.float16) for name, x in load_file(path).items()}
        save_file(half, path.with_name(f"{stem}.fp16.safetensors"))
    name = "unet.conv_in.kernel"
    full, half = tiny_model.params[name], tiny_model.params[name].astype(np.float16)
    assert np.array_equal(load_pipeline(tiny_folder).params[name], full)
    loaded = load_pipeline(tiny_folder, variant="fp16").params[name]
    assert loaded.dtype == np.float32 and np.array_equal(loaded, half)


def test_the_safety_checker_is_left_out_and_said_so(tiny_folder, tmp_path, caplog):
    checker = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],  # of an IP-Adapter
    }
    _edit(tiny_folder / "model_index.json", **checker)
    with caplog.at_level(logging.INFO, "medsd_jax"):
        model = load_pipeline(tiny_folder)
    (message,) = caplog.messages
    assert (
        "safety_checker and feature_extractor and image_encoder" in message
        and "radiographs" in message
    )
    save_pipeline(model, tmp_path / "new")
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "'StableDiffusionXLPipeline'; only"),
        ({"_class_name": None}, "_class_name is None"),
        (
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "text_encoder is a T5EncoderModel; only CLIPTextModel or BertModel",
        ),
        ({"tokenizer": ["transformers", "BertTokenizer"]}, "tokenizer is a BertTokenizer"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "unet is a UNet3DConditionModel"),
        ({"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "vae is a AsymmetricAutoencoderKL"),
        ({"vae": [None, None]}, "names no vae"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2"),
    ],
)
def test_other_kinds_of_model_are_refused(tiny_folder, changes, why):
    _edit(tiny_folder / "model_index.json", **changes)
    with pytest.raises(UserError, match=why) as error:
        load_pipeline(tiny_folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, why", [("{", "is not valid JSON"), ("[]", "must hold a JSON object")]
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_damaged_json(tiny_folder, name, text, why):
    (tiny_folder / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} {why}"):
        load_pipeline(tiny_folder)


def test_missing_components_and_configs(tiny_folder):
    (tiny_folder / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vae/config\.json is missing"):
        load_pipeline(tiny_folder)
    (tiny_folder / "vae").rename(tiny_folder / "vae_")
    (tiny_folder / "scheduler").rename(tiny_folder / "scheduler_")
    with pytest.raises(UserError, match="not whole: vae, scheduler missing"):
        load_pipeline(tiny_folder)


def test_truncated_and_missing_weights(tiny_folder):
    path = tiny_folder / WEIGHTS["unet"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors is damaged"):
        load_pipeline(tiny_folder)
    path.rename(path.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(UserError, match="unet: only pickled weights"):
        load_pipeline(tiny_folder)


def test_every_misfit_of_a_component_is_listed(tiny_folder):
    path = tiny_folder / WEIGHTS["unet"]
    tensors = load_file(path)
    del tensors["conv_in.bias"], tensors["conv_out.bias"]
    tensors["extra.weight"] = np.zeros(2, np.float32)
    tensors["time_embedding.linear_1.bias"] = np.zeros(3, np.float32)
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        load_pipeline(tiny_folder)
    message = str(error.value)
    assert message.startswith(str(tiny_folder / "unet")) and "\n" not in message
    assert "2 missing: conv_in.bias [8], conv_out.bias [4]" in message
    assert "1 not expected: extra.weight [2]" in message
    assert "time_embedding.linear_1.bias [3] instead of [32]" in message


def test_a_tokenizer_of_another_model(tiny_folder, tiny_model):
    loaded = load_pipeline(tiny_folder).tokenizer
    loaded.add_tokens(["<effusion>"])
    diffusers_folder.save_tokenizer(loaded, tiny_folder / "tokenizer")
    with pytest.raises(UserError, match="517 tokens but the text encoder only 516"):
        load_pipeline(tiny_folder)


def test_an_id_beyond_the_text_encoder(tiny_folder):
    """As many tokens as rows, but one of them has a number of its own."""
    for name in ("tokenizer.json", "added_tokens.json"):
        (tiny_folder / "tokenizer" / name).unlink(missing_ok=True)
    path = tiny_folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    token = next(t for t, i in vocabulary.items() if i == 300)
    path.write_text(json.dumps(vocabulary | {token: 10**6}))
    with pytest.raises(
        UserError, match="is number 1000000, but the text encoder's last one is 515"
    ):
        load_pipeline(tiny_folder)


def test_a_tokenizer_without_a_length_takes_the_text_encoder_s(tiny_folder):
    for name in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
        (tiny_folder / "tokenizer" / name).unlink()
    assert load_pipeline(tiny_folder).tokenizer.model_max_length == 12


def test_replaces_a_model_and_keeps_what_is_not_the_model_s(tiny_model, tiny_folder, same_bits):
    (tiny_folder / "README.md").write_text("mine")
    stale = tiny_folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    stale.write_bytes(b"stale")
    params = {name: x + 1 for name, x in tiny_model.params.items()}
    save_pipeline(dataclasses.replace(tiny_model, params=params), tiny_folder)
    same_bits(load_pipeline(tiny_folder).params, params)
    assert (tiny_folder / "README.md").read_text() == "mine" and not stale.exists()
    assert not any(path.name.startswith(".") for path in tiny_folder.iterdir())


def test_saves_over_the_folder_that_it_was_loaded_from(tiny_model, tiny_folder, same_bits):
    save_pipeline(load_pipeline(tiny_folder), tiny_folder)
    same_bits(load_pipeline(tiny_folder).params, tiny_model.params)


def test_a_failed_save_leaves_the_old_model(tiny_model, tiny_folder, monkeypatch, same_bits):
    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(diffusers_folder, "save_tokenizer", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_pipeline(tiny_model, tiny_folder)
    same_bits(load_pipeline(tiny_folder).params, tiny_model.params)
    with pytest.raises(OSError, match="no space"):
        save_pipeline(tiny_model, tiny_folder.parent / "new")
    assert not (tiny_folder.parent / "new").exists()


def test_writes_into_an_empty_or_half_written_folder(tiny_model, tmp_path, same_bits):
    (tmp_path / "out" / ".medsd_jax-unfinished" / "unet").mkdir(parents=True)
    save_pipeline(tiny_model, tmp_path / "out")
    same_bits(load_pipeline(tmp_path / "out").params, tiny_model.params)


def test_never_overwrites_what_is_no_model(tiny_model, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for check in (check_writable, lambda folder: save_pipeline(tiny_model, folder)):
        with pytest.raises(UserError, match="not overwritten"):
            check(tmp_path)
        with pytest.raises(UserError, match="is a file"):
            check(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_runs_without_torch(tiny_folder, tmp_path):
    code = f"""
        import sys
        from medsd_jax.interop.diffusers_folder import load_pipeline, save_pipeline
        from medsd_jax.interop.tokenization import encode_prompts
        model = load_pipeline({str(tiny_folder)!r})
        encode_prompts(model.tokenizer, ["lung"])
        save_pipeline(model, {str(tmp_path / "new")!r})
        found = {{"torch", "diffusers", "tensorflow"}} & sys.modules.keys()
        assert not found, found
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def _state_dicts(pipe):
    return {
        name: {k: x.numpy() for k, x in getattr(pipe, name).state_dict().items()}
        for name in ("unet", "vae", "text_encoder")
    }


@pytest.mark.torch
def test_torch_to_ours_to_torch_is_bit_identical(torch_folder, tmp_path, same_bits):
    from diffusers import StableDiffusionPipeline

    model = load_pipeline(torch_folder)
    save_pipeline(model, tmp_path / "ours")
    before = StableDiffusionPipeline.from_pretrained(torch_folder)
    after = StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    for name, tensors in _state_dicts(before).items():
        same_bits(_state_dicts(after)[name], tensors)
    assert after.scheduler.config == before.scheduler.config
    assert after.safety_checker is None and after.feature_extractor is None
    prompt = ["Left lung!"]
    options = {"padding": "max_length", "truncation": True}
    assert after.tokenizer(prompt, **options) == before.tokenizer(prompt, **options)
    for name in ("unet", "vae"):
        theirs, ours = (dict(getattr(p, name).config) for p in (before, after))
        for values in (theirs, ours):
            values.pop("_name_or_path", None)
            values.pop("_use_default_values", None)
        assert ours == theirs


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_reads_half_precision(torch_folder, tmp_path, dtype):
    import torch
    from diffusers import StableDiffusionPipeline

    model = load_pipeline(torch_folder)
    save_pipeline(model, tmp_path / "half", dtype=dtype)
    wide = StableDiffusionPipeline.from_pretrained(torch_folder)
    half = StableDiffusionPipeline.from_pretrained(tmp_path / "half", dtype=getattr(torch, dtype))
    for name in ("unet", "vae", "text_encoder"):
        states = getattr(half, name).state_dict(), getattr(wide, name).state_dict()
        for key, x in states[0].items():
            assert x.dtype == getattr(torch, dtype)
            assert torch.equal(x, states[1][key].to(x.dtype)), key


def test_a_variant_of_one_part(tiny_model, tiny_folder, caplog):
    """As of the weights before averaging, which published models have for the U-Net alone."""
    plain = tiny_folder / WEIGHTS["unet"]
    other = {name: x + 1 for name, x in load_file(plain).items()}
    save_file(other, plain.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    with caplog.at_level(logging.WARNING, "medsd_jax"):
        loaded = load_pipeline(tiny_folder, variant="non_ema").params
    assert (
        "only unet has the variant 'non_ema'; vae and text_encoder: the usual files" in caplog.text
    )
    for name, x in tiny_model.params.items():
        assert np.array_equal(loaded[name], x + 1 if name.startswith("unet.") else x), name
    plain.unlink()
    assert np.array_equal(
        load_pipeline(tiny_folder, variant="non_ema").params["unet.conv_in.bias"],
        tiny_model.params["unet.conv_in.bias"] + 1,
    )
    with pytest.raises(UserError, match="read it as the variant 'non_ema'"):
        load_pipeline(tiny_folder)
    with pytest.raises(UserError, match=r"no 'fp16' variant of the weights \(there: non_ema\)"):
        load_pipeline(tiny_folder, variant="fp16")


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_config_that_is_no_file_of_json(tiny_folder, name):
    path = tiny_folder / name
    path.write_text('{"a":' * 10**5 + "1" + "}" * 10**5)
    with pytest.raises(UserError, match="nested too deep"):
        load_pipeline(tiny_folder)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_pipeline(tiny_folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_pipeline(tiny_folder)


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("unet", {"block_out_channels": [], "down_block_types": [], "up_block_types": []}, "has 0"),
        ("unet", {"norm_eps": float("nan")}, "norm_eps = nan"),
        ("unet", {"layers_per_block": 10**7}, "layers_per_block = 10000000"),
        ("vae", {"scaling_factor": 0}, "scaling_factor = 0 is not supported .expected a positive"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor = nan"),
        ("text_encoder", {"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000"),
        ("text_encoder", {"hidden_size": 10**7}, "the text encoder gives|of the wrong shape"),
        ("text_encoder", {"vocab_size": 10**7}, r"instead of \[10000000, 16\]"),
    ],
)
def test_numbers_that_no_model_has(tiny_folder, part, changes, message):
    """At once, and before memory of that size is asked for."""
    _edit(tiny_folder / part / "config.json", **changes)
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(tiny_folder)
    assert "\n" not in str(error.value)
