"""Metrics while training: the same numbers as `evaluate`, the best weights kept, mistakes first."""

import ast
import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.classifier.model import load_classifier, predict
from medsd_jax.cli.main import exit_code
from medsd_jax.config import training_config
from medsd_jax.data.transforms import load_image
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features.extraction import features_of, open_network
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.metrics.fidelity import fidelity
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.models import load
from medsd_jax.workflows.sample import sample
from medsd_jax.workflows.train import preview
from medsd_jax.workflows.train.data import open_data
from medsd_jax.workflows.train.evaluation import check_evaluation
from medsd_jax.workflows.train.evaluators import distances
from medsd_jax.workflows.train.run import train
from tests import commands
from tests.tiny.classifier import write_classifier
from tests.tiny.run import ROOT, quick_compilation, recipe, write_model  # noqa: F401

NUM = 9  # not divisible by the devices


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model, a classifier and a place for the data, shared by all runs here."""
    root = tmp_path_factory.mktemp("evaluation")
    write_model(root / "model")
    write_classifier(root / "classifier", 16)
    write_classifier(root / "large_classifier", 24)
    return root


def config_of(root, **changes):
    asked = {
        "preview__every_steps": 0,
        "validation__every_steps": 0,
        "evaluation__every_steps": 2,
        "evaluation__metrics": ("kid", "fid", "precision", "recall", "prompt_accuracy"),
        "evaluation__features": f"classifier={root / 'classifier'}",
        "evaluation__classifier": str(root / "classifier"),
        "evaluation__num_images": NUM,
        "evaluation__num_steps": 2,
        **changes,
    }
    return recipe(root / "model", root / "data", **asked)


def evaluations(workdir):
    """step -> {metric: value} of metrics.jsonl."""
    return {
        row["step"]: {k.removeprefix("evaluation/"): x for k, x in row.items() if k != "step"}
        for row in read_scalars(workdir)
        if any(key.startswith("evaluation/") for key in row)
    }


def assert_same_weights(one, two):
    one, two = load(one).params, load(two).params
    for name in one.keys() | two.keys():
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """(workdir, config) of a run that keeps the best by validation loss."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    metrics = ("kid", "fid", "precision", "recall", "prompt_accuracy", "validation_loss")
    config = config_of(root, evaluation__metrics=metrics, evaluation__keep_best="validation_loss")
    train(config, workdir)
    return workdir, config


def test_scalars_and_best(trained):
    workdir, config = trained
    result = evaluations(workdir)
    assert list(result) == [2, 4]
    assert all(set(row) == set(config.evaluation.metrics) for row in result.values())
    losses = {r["step"]: r["validation/loss"] for r in read_scalars(workdir) if len(r) == 2}
    assert {step: row["validation_loss"] for step, row in result.items()} == losses
    metadata = json.loads((workdir / "best" / "best.json").read_text())
    best = min(result, key=lambda step: result[step]["validation_loss"])
    assert (metadata["step"], metadata["metric"]) == (best, "validation_loss")
    assert (
        metadata["value"] == result[best]["validation_loss"] and metadata["metrics"] == result[best]
    )
    assert metadata["settings"]["num_images"] == NUM
    assert list((workdir / "tensorboard").glob("events.*"))


def test_numbers_are_those_of_evaluate(root, trained, tmp_path):
    """The last step's, from WORKDIR/model, by files on disk and the functions of `evaluate`."""
    workdir, config = trained
    split = open_data(config, workdir).validation
    texts = [split.texts[i * len(split) // NUM] for i in range(NUM)]
    sampled = {"num_steps": 2, "guidance_scale": 4.0, "height": 16, "width": 16}
    model = load(workdir)
    images_of = {
        "real": [load_image(split[i].read_bytes(), 16, "pad") for i in range(len(split))],
        "synthetic": sample(model, texts, seeds=range(NUM), **sampled),
    }
    for name, images in images_of.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03d}.png")
    network, mesh = open_network(f"classifier={root / 'classifier'}"), make_mesh({"data": -1})
    real, synthetic = (
        features_of(network, open_images(tmp_path / name), tmp_path / "cache", mesh)
        for name in ("real", "synthetic")
    )
    report = fidelity(real, synthetic, real_patients=split.patient_ids)
    result = evaluations(workdir)[4]
    expected = {name: getattr(report, name).value for name in ("fid", "kid", "precision", "recall")}
    # Programs for other shapes round differently, and the mesh is another.
    assert result["fid"] == pytest.approx(expected["fid"], rel=1e-3)
    assert result["kid"] == pytest.approx(expected["kid"], rel=1e-3, abs=1e-7)
    assert (result["precision"], result["recall"]) == (expected["precision"], expected["recall"])

    half = NUM // 2
    classifier, right = load_classifier(root / "classifier"), []
    for asks, side in ((1, config.evaluation.prompts_with), (0, config.evaluation.prompts_without)):
        images = sample(model, [side[0]] * half, seeds=range(half), **sampled)
        seen = predict(classifier, images)[:, classifier.labels.index("pleural_effusion")] > 0.5
        right += list(seen == asks)
    assert result["prompt_accuracy"] == pytest.approx(np.mean(right), abs=1e-12)


def test_planted_best_comes_early_and_survives_a_resume(root, tmp_path, monkeypatch):
    """KID 0.4, 0.1, 0.3 | 0.2, the bar being a resume: what is kept is the model of step 4."""
    values = iter([0.4, 0.1, 0.3, 0.2])
    monkeypatch.setattr(distances, "distances", lambda *_: {"kid": next(values)})
    asked = {"evaluation__metrics": ("kid",), "evaluation__keep_best": "kid"}
    for steps in (6, 8):
        train(config_of(root, train__steps=steps, **asked), tmp_path / "run")
    assert {s: row["kid"] for s, row in evaluations(tmp_path / "run").items()} == {
        2: 0.4, 4: 0.1, 6: 0.3, 8: 0.2,
    }  # fmt: skip
    metadata = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert (metadata["step"], metadata["value"]) == (4, 0.1)
    train(config_of(root, evaluation__every_steps=0), tmp_path / "four")
    assert not (tmp_path / "four" / "best").exists()
    assert_same_weights(tmp_path / "run" / "best", tmp_path / "four")
    last, best = (load(tmp_path / "run" / name).params for name in ("model", "best"))
    assert any(not np.array_equal(last[name], best[name]) for name in best)


OWN = """
from medsd_jax.workflows.train.evaluators.evaluator import Evaluator

class Brightness(Evaluator):
    scalars = {"brightness": True}

    def __call__(self, params, step):
        yield "brightness", self.run.sample(params, self.run.captions()).mean()
"""


def test_a_metric_of_your_own(root, tmp_path, monkeypatch):
    """A class in a file and an entry in the recipe: its scalar is logged and keeps the best."""
    (tmp_path / "own.py").write_text(OWN)
    calls = []
    draw = preview.sample_images
    monkeypatch.setattr(
        preview, "sample_images", lambda *args, **kw: calls.append(args[1]) or draw(*args, **kw)
    )
    config = config_of(
        root,
        evaluation__metrics=("precision", f"{tmp_path / 'own.py'}:Brightness"),
        evaluation__keep_best="brightness",
    )
    workdir = tmp_path / "run"
    train(config, workdir)
    result = evaluations(workdir)
    assert {tuple(row) for row in result.values()} == {("precision", "brightness")}
    assert len(calls) == len(result) == 2  # both metrics look at the same images

    texts = open_data(config, workdir).validation.texts
    prompts = [texts[i * len(texts) // NUM] for i in range(NUM)]
    sampled = {"num_steps": 2, "guidance_scale": 4.0, "height": 16, "width": 16}
    images = sample(load(workdir), prompts, seeds=range(NUM), **sampled)
    assert result[4]["brightness"] == pytest.approx(images.mean(), abs=0.01)

    metadata = json.loads((workdir / "best" / "best.json").read_text())
    best = max(result, key=lambda step: result[step]["brightness"])
    assert (metadata["step"], metadata["metric"], metadata["metrics"]) == (
        best,
        "brightness",
        result[best],
    )


@pytest.mark.parametrize(
    ("change", "entries", "message"),
    [
        (("", ""), "('{file}:Brigthness',)", "no class Brigthness .*did you mean Brightness"),
        (("", ""), "('{file}:Evaluator',)", "does not name its scalars"),
        (("", ""), "('{file}',)", "does not exist .* FILE.py:CLASS"),
        (("", ""), "('absent_module:Brightness',)", "cannot be imported .*absent_module"),
        (("import", "imptor"), "('{file}:Brightness',)", "cannot be imported .*SyntaxError"),
        (('"brightness": True', '"kid": True'), "('kid', '{file}:Brightness')", "'kid' a second"),
    ],
)
def test_mistakes_in_a_metric_of_your_own(tmp_path, change, entries, message):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace(*change))
    config = training_config()
    config.evaluation.every_steps = 1
    config.evaluation.metrics = ast.literal_eval(entries.format(file=file))
    with pytest.raises(UserError, match=message):
        check_evaluation(config)


def test_a_metric_that_yields_what_it_does_not_name(root, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace('yield "brightness"', 'yield "darkness"'))
    config = config_of(root, evaluation__metrics=(f"{file}:Brightness",))
    with pytest.raises(UserError, match=r"gave darkness at step 2, .* the scalars brightness"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metrics=('fdi',)"], "'fdi' does not exist"),
        (["metrics=()"], "evaluation.metrics is empty"),
        (["keep_best=kid"], "keep_best = 'kid' is not among"),
        (["metrics=('kid',)"], "'kid' needs evaluation.features"),
        (["metrics=('kid',)", "features=classifier=absent"], "classifier.json"),
        (["metrics=('kid',)", "features=vgg=x"], "'vgg=x'"),
        (
            ["metrics=('fid',)", "features=classifier={root}/classifier", "num_images=5"],
            "at least 6",
        ),
        (["metrics=('prompt_accuracy',)"], "needs evaluation.classifier"),
        (["metrics=('prompt_accuracy',)", "classifier=absent"], "classifier.json"),
        (
            ["metrics=('prompt_accuracy',)", "classifier={root}/classifier", "label=edema"],
            "'edema'",
        ),
        (["metrics=('prompt_accuracy',)", "classifier={root}/large_classifier"], "24 pixels"),
        (["metrics=('prompt_accuracy',)", "classifier=x", "prompts_with=()"], "prompts_with"),
        (["num_steps=1001"], "evaluation.num_steps = 1001"),
        (["num_steps=1000"], "steps_offset"),
        (["seed=4294967295"], "evaluation.seed"),
        (["guidance_scale=inf"], "evaluation.guidance_scale"),
        (["every_steps=-1"], "evaluation.every_steps = -1"),
    ],
)
def test_mistakes_are_reported_before_the_first_step(root, tmp_path, capsys, words, message):
    argv = [
        f"--config={ROOT / 'configs' / 'base.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={root / 'model'}",
        f"--config.data.cache_dir={root / 'data'}",
        "--config.data.num_images=60",
        "--config.data.image_size=16",
        "--config.data.validation_fraction=0.3",
        "--config.train.steps=1",
        "--config.evaluation.every_steps=1",
        *(f"--config.evaluation.{word.format(root=root)}" for word in words),
    ]
    assert exit_code(lambda: commands.train(argv)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_vae_runs_have_no_such_metrics(root, tmp_path, capsys):
    config = config_of(root, task="vae")
    assert exit_code(lambda: train(config, tmp_path)) == 2
    assert "evaluation.every_steps = 2 needs task = 'diffusion'" in capsys.readouterr().err


def test_too_few_images_to_compare_with(root, tmp_path, capsys):
    config = config_of(root, data__num_images=40, data__validation_fraction=0.05)
    assert exit_code(lambda: train(config, tmp_path)) == 2
    assert "validation split has" in capsys.readouterr().err.splitlines()[-1]
