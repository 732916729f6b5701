"""The papers' phantom recipes by their own commands, two steps each, and what they leave alone.

`reproduce`, a slow test, runs them whole; E1 to E3, which train nothing, are in tests/cli.
"""

import numpy as np
import pytest

from medsd_jax.cli.main import exit_code, main
from medsd_jax.workflows.models import load
from tests.commands import train
from tests.tiny.bert import write_bert
from tests.tiny.run import ROOT, quick_compilation, write_model  # noqa: F401

SHORT = ("data.num_images=200", "train.steps=2", "optim.warmup_steps=1", "validation.every_steps=0")
# Eight devices share a batch: ten images cannot be dealt out to them.
FEW = (
    *SHORT, "few_shot.images_per_prompt=4", "data.batch_size=8", "prior.batch_size=8",
    "prior.num_images=8", "prior.num_steps=2", "preview.every_steps=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(model folder, BERT folder, data folder)."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "tiny")
    return folder / "tiny", write_bert(folder / "bert"), tmp_path_factory.mktemp("data")


def flags(name, model, data, workdir, changes):
    words = [f"model.path={model}", f"data.cache_dir={data}", *changes]
    return ["--config", str(ROOT / "configs" / f"{name}.py"), "--workdir", str(workdir),
            *(f"--config.{word}" for word in words)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "trained", "more"),
    [
        ("phantom_few_shot", {"unet"}, ()),
        # The tiny tokenizer knows no longer word.
        ("phantom_textual_inversion", {"text_encoder"}, ("adaptation.initializer_token=l",)),
    ],
)
def test_few_shot_recipes(places, tmp_path, name, trained, more):
    """E6 trains the U-Net alone, E5 one row that it adds to the token embeddings."""
    model, _, data = places
    assert exit_code(lambda: train(flags(name, model, data, tmp_path / "run", (*FEW, *more)))) == 0
    before, after = load(model).params, load(tmp_path / "run").params
    known = {k: x[: len(before[k])] if x.ndim else x for k, x in after.items()}
    changed = {k for k, x in known.items() if not np.array_equal(x, before[k])}
    longer = {k for k, x in after.items() if x.shape != before[k].shape}
    assert {key.split(".")[0] for key in changed | longer} == trained
    if trained == {"text_encoder"}:
        assert not changed and (tmp_path / "run" / "learned_embeds.safetensors").exists()


def test_projection_recipe(places, tmp_path):
    """E4 leaves the U-Net, the VAE and the BERT as they were."""
    model, bert, data = places
    words = flags("phantom_text_projection", model, data, tmp_path / "run",
                  (*SHORT, "data.batch_size=16", f"encoder.path={bert}"))  # fmt: skip
    assert main(["train-projection", *words]) == 0
    before, after = load(model).params, load(tmp_path / "run").params
    for name, weight in before.items():
        if not name.startswith("text_encoder."):
            np.testing.assert_array_equal(after[name], weight, err_msg=name)
    assert any(name.startswith("text_encoder") and name not in before for name in after)
