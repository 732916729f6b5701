"""train-projection: what is learnt, what keeps its bits, where it goes on, mistakes in one line."""

import jax
import numpy as np
import pytest

from medsd_jax.cli.main import exit_code, main
from medsd_jax.config import text_projection_config
from medsd_jax.data.patient_split import first_patients
from medsd_jax.data.prompt_batches import read_prompts
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.text_encoder import text_encoder_module
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.models import load
from medsd_jax.workflows.train.projection import train_projection, with_projection
from tests import commands
from tests.tiny.bert import WORDS, write_bert
from tests.tiny.run import ROOT, write_model


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projection")
    write_bert(folder / "bert")
    rng = np.random.default_rng(0)
    words = [word for word in WORDS if word.isalpha()]
    lines = [" ".join(rng.choice(words, 5)) for _ in range(1000)]
    # Merges enough that each word is one token, as it is for the BERT: positions correspond.
    write_model(folder / "base", captions=lines, num_merges=300)
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n\n")
    return folder


def held_out(places):
    """The prompts that validate."""
    prompts = np.array(read_prompts(places / "prompts.txt"))
    texts = prompts[first_patients(prompts.tolist(), 0.1)].tolist()
    assert 50 < len(texts) < 150
    return texts


def contexts(model, texts):
    graph, _ = abstract(text_encoder_module(model.text_encoder))
    ids = encode_prompts(model.tokenizer, texts)
    encode = jax.jit(lambda weights, x: bind(graph, weights)(x))
    return np.asarray(encode(component(model.params, "text_encoder"), ids))


def recipe(places, **changes):
    config = text_projection_config()
    config.model.path = str(places / "base")
    config.encoder.path = str(places / "bert")
    config.data.prompts = str(places / "prompts.txt")
    config.data.batch_size = 64
    config.projection.hidden_features = 128
    config.optim.learning_rate = 1e-2
    config.train.steps = 400
    config.validation.every_steps = 400
    config.log.every_steps = 10
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return config.lock()


@pytest.fixture(scope="module")
def trained(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train_projection(recipe(places), workdir)
    return workdir


def test_it_learns_and_everything_else_keeps_its_bits(places, trained):
    losses = [row["validation/loss"] for row in read_scalars(trained) if "validation/loss" in row]
    assert len(losses) == 2 and losses[1] < 0.5 * losses[0]
    # It is the prompt's own context that is met on held-out prompts, not some mean of all.
    result, expected = (contexts(load(f), held_out(places)) for f in (trained, places / "base"))
    own, other = (np.mean((result - x) ** 2) for x in (expected, np.roll(expected, 1, axis=0)))
    print(f"distance to the own context {own:.3f}, to another prompt's {other:.3f}")
    assert own == pytest.approx(losses[1], rel=1e-4) and own < 0.8 * other
    before = with_projection(load(places / "base"), recipe(places))
    after = load(trained)
    names = {f"text_encoder.projection.{n}.{leaf}" for n in (0, 2) for leaf in ("kernel", "bias")}
    changed = {k for k, x in before.params.items() if not np.array_equal(after.params[k], x)}
    assert before.params.keys() == after.params.keys() and changed == names
    untouched = load(places / "base").params
    assert all(
        np.array_equal(after.params[name], x)
        for name, x in untouched.items()
        if not name.startswith("text_encoder.")
    )
    assert after.text_encoder.projection.hidden_features == 128


@pytest.mark.torch
def test_the_loss_is_torchs_mse_to_clips_last_hidden_state(places, trained):
    """The last validation loss, from the folders that transformers reads."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertModel, CLIPTextModel

    texts = held_out(places)
    base_model, model = load(places / "base"), load(trained)
    ids, wanted_ids = (encode_prompts(m.tokenizer, texts) for m in (model, base_model))
    assert ids.shape == wanted_ids.shape == (len(texts), 16)
    bert = BertModel.from_pretrained(trained / "model" / "text_encoder")
    clip = CLIPTextModel.from_pretrained(places / "base" / "text_encoder")
    weights = load_file(trained / "model" / "text_encoder_projection" / "model.safetensors")
    hidden, width = weights["0.weight"].shape
    projection = torch.nn.Sequential(
        torch.nn.Linear(width, hidden),
        torch.nn.GELU(),
        torch.nn.Linear(hidden, len(weights["2.bias"])),
    )
    projection.load_state_dict(weights)
    with torch.no_grad():
        result = projection(bert(torch.from_numpy(ids).long()).last_hidden_state)
        expected = clip(torch.from_numpy(wanted_ids).long()).last_hidden_state
        theirs = torch.nn.functional.mse_loss(result, expected).item()
    ours = [row["validation/loss"] for row in read_scalars(trained) if "validation/loss" in row]
    assert ours[-1] == pytest.approx(theirs, rel=1e-5)  # float32 sums in another order


def test_a_resumed_run_ends_where_a_whole_one_does(places, trained, tmp_path):
    first = recipe(places, checkpoint__every_steps=100)
    with pytest.MonkeyPatch.context() as patch:
        from medsd_jax.data.prompt_batches import PromptBatches

        plain = PromptBatches.__next__

        def interrupted(self):
            if self._number == 150:
                raise KeyboardInterrupt
            return plain(self)

        patch.setattr(PromptBatches, "__next__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_projection(first, tmp_path / "run")
    train_projection(first, tmp_path / "run")
    assert load(tmp_path / "run").fingerprint() == load(trained).fingerprint()


def test_captions_of_a_data_set_and_the_command(places, tmp_path, capsys):
    flags = {
        "model.path": places / "base",
        "encoder.path": places / "bert",
        "model.dtype": "float32",
        "data.num_images": 40,
        "data.image_size": 16,
        "data.batch_size": 16,
        "data.validation_fraction": 0.3,
        "optim.warmup_steps": 1,
        "train.steps": 2,
        "train.accumulation_steps": 2,
        "projection.hidden_features": 8,
    }
    words = [f"--config.{key}={value}" for key, value in flags.items()]
    command = ["train-projection", "--config", str(ROOT / "configs" / "text_projection.py")]
    assert main([*command, "--workdir", str(tmp_path / "run"), *words]) == 0
    assert load(tmp_path / "run").text_encoder.projection.hidden_features == 8
    # Its result has no CLIP that could be imitated.
    words[0] = f"--config.model.path={tmp_path / 'run'}"
    assert main([*command, "--workdir", str(tmp_path / "again"), *words]) == 2
    assert "has a BERT as its text encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__steps": 0}, "train.steps = 0 must be at least 1"),
        ({"data__prompts": "/absent.txt"}, "/absent.txt cannot be read"),
        ({"data__batch_size": 1024}, "fewer than one batch of 1024"),
        ({"projection__hidden_features": 0}, "projection.hidden_features = 0"),
        ({"model__dtype": "float16"}, "model.dtype = 'float16'"),
    ],
)
def test_mistakes(places, tmp_path, changes, message):
    from medsd_jax.errors import UserError

    with pytest.raises(UserError) as error:
        train_projection(recipe(places, **changes), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_recipes_of_other_kinds_are_refused(tmp_path, capsys):
    command = ["train-projection", "--config", str(ROOT / "configs" / "demo_classifier.py")]
    assert main([*command, "--workdir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "demo_classifier.py has a key" in message and "text_projection_config" in message
    words = ["--config", str(ROOT / "configs" / "text_projection.py"), "--workdir", str(tmp_path)]
    words += ["--config.encoder.path=x"]
    assert exit_code(lambda: commands.train(words)) == 2
    message = capsys.readouterr().err
    assert "text_projection.py has a key" in message and "training_config" in message
