"""Adaptations from the config to the files they leave: what they train, and nothing else."""

import dataclasses

import numpy as np
import pytest

from medsd_jax.cli.main import exit_code
from medsd_jax.interop.learned_embeddings import token_table
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.models import add_embedding, add_lora, load, save
from medsd_jax.workflows.train.run import train
from tests import commands
from tests.tiny.run import ROOT, quick_compilation, recipe, write_model  # noqa: F401

LORA = {
    "adaptation__name": "lora",
    "adaptation__train": (r"^unet\..*conv1", r"^text_encoder\..*q_proj"),
    "adaptation__lora_rank": 3,
    "adaptation__lora_alpha": 6.0,
    "train__steps": 2,
}
INVERSION = {
    "adaptation__name": "textual_inversion",
    "adaptation__train": (),
    "adaptation__placeholder_token": "<lung-xray>",
    "adaptation__initializer_token": "l",
    "adaptation__num_vectors": 2,
    "few_shot__images_per_prompt": 4,
    "few_shot__prompt_with": "<lung-xray> effusion",
    "few_shot__prompt_without": "<lung-xray>",
    "preview__prompts": ("<lung-xray>",),
    "validation__num_images": 9,
    "train__steps": 2,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(model folder, data folder). From scratch, the kernels that are 0 would stop gradients."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "scratch")
    model, rng = load(folder / "scratch"), np.random.default_rng(0)
    params = {
        name: x if x.any() or x.ndim < 2 else 0.1 * rng.standard_normal(x.shape, np.float32)
        for name, x in model.params.items()
    }
    save(dataclasses.replace(model, params=params), folder / "tiny")
    return folder / "tiny", tmp_path_factory.mktemp("data")


def losses(workdir):
    return [row["train/loss"] for row in read_scalars(workdir) if "train/loss" in row]


def test_lora_leaves_its_files_and_the_merged_model(places, tmp_path):
    train(recipe(*places, **LORA), tmp_path / "run")
    before, after = load(places[0]), load(tmp_path / "run")
    changed = {k for k in before.params if not np.array_equal(before.params[k], after.params[k])}
    assert {name.split(".")[0] for name in changed} == {"unet", "text_encoder"}
    assert all(name.endswith(("conv1.kernel", "q_proj.kernel")) for name in changed)
    for name in ("pytorch_lora_weights.safetensors", "kohya.safetensors"):
        merged = add_lora(before, tmp_path / "run" / "lora" / name)
        for key, weight in merged.params.items():
            np.testing.assert_allclose(weight, after.params[key], rtol=0, atol=1e-6, err_msg=key)


def test_lora_resumes_to_the_bit(places, tmp_path):
    train(recipe(*places, **LORA), tmp_path / "straight")
    train(recipe(*places, **{**LORA, "train__steps": 1}), tmp_path / "broken")
    train(recipe(*places, **LORA), tmp_path / "broken")
    assert losses(tmp_path / "straight") == losses(tmp_path / "broken")
    one, two = (load(tmp_path / name).params for name in ("straight", "broken"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_textual_inversion_changes_the_new_rows_alone(places, tmp_path):
    train(recipe(*places, **INVERSION), tmp_path / "run")
    before, after = load(places[0]), load(tmp_path / "run")
    table = token_table(before.params)
    size = len(before.params[table])
    (start,) = before.tokenizer("l", add_special_tokens=False)["input_ids"]
    for name, weight in before.params.items():
        np.testing.assert_array_equal(after.params[name][: len(weight)], weight, err_msg=name)
    rows = after.params[table][size:]
    assert rows.shape == (2, before.params[table].shape[1])
    assert (rows != before.params[table][start]).all()
    small = add_embedding(before, tmp_path / "run")
    np.testing.assert_array_equal(small.params[table], after.params[table])
    assert small.tokenizer.get_vocab() == after.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "words, message",
    [
        (["name=lora"], "needs adaptation.lora_rank"),
        (["name=lora", "lora_rank=4"], "needs adaptation.lora_alpha"),
        (["name=lora", "lora_rank=0", "lora_alpha=1.0"], "lora_rank = 0"),
        (["lora_rank=4"], "adaptation.lora_rank = 4 would not be read"),
        (["placeholder_token=<x>"], "adaptation.placeholder_token = '<x>' would not be read"),
        (["name=textual_inversion", "placeholder_token=<x>", "initializer_token=l",
          "num_vectors=1"],
         "adaptation.train = ('^unet"),
        (["name=textual_inversion", "placeholder_token=<x>", "initializer_token=l",
          "num_vectors=1", "train=()"],
         "adaptation.placeholder_token = '<x>' is in no caption"),
        (["name=textual_inversion", "placeholder_token=<x>", "initializer_token=zqj",
          "num_vectors=1", "train=()"],
         "'zqj', which is"),
        (["name=textual_inversion", "placeholder_token=l", "initializer_token=l",
          "num_vectors=1", "train=()"],
         "exists already"),
        (["name=textual_inversion", "placeholder_token=<x>", "initializer_token=l",
          "num_vectors=0", "train=()"],
         "num_vectors = 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_2(places, tmp_path, capsys, words, message):
    base = [f"model.path={places[0]}", f"data.cache_dir={places[1]}", "data.num_images=60",
            "data.image_size=16", "data.validation_fraction=0.3"]  # fmt: skip
    flags = ["--config", str(ROOT / "configs" / "base.py"), "--workdir", str(tmp_path / "run")]
    flags += [f"--config.{word}" for word in base]
    flags += [f"--config.adaptation.{word}" for word in words]
    assert exit_code(lambda: commands.train(flags)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line
