"""train-classifier: a folder that classifies, and mistakes told in one line."""

import json

import numpy as np
import pytest

from medsd_jax.classifier.init import from_published
from medsd_jax.classifier.model import load_classifier, predict
from medsd_jax.cli.main import main
from medsd_jax.workflows import classifier_recipe
from tests.classifier.test_init import write_weights
from tests.tiny.run import ROOT

TINY = {
    "data.num_images": 160,
    "data.image_size": 32,
    "data.num_workers": 0,
    "data.batch_size": 16,
    "data.validation_fraction": 0.3,
    "network.growth_rate": 8,
    "network.block_config": "(1,1)",
    "network.num_init_features": 8,
    "labels": "('pleural_effusion','cardiomegaly')",
    "optim.warmup_steps": 1,
    "train.steps": 3,
    "log.every_steps": 1,
}


def run(workdir, **changes):
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    config = str(ROOT / "configs" / "demo_classifier.py")
    return main(["train-classifier", "--config", config, "--workdir", str(workdir), *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier")
    assert run(workdir) == 0
    return workdir


def test_report_and_classifier_are_there(trained):
    report = json.loads((trained / "classifier_report.json").read_text())
    counts = report["num_images"]
    assert sum(counts.values()) == 160 and all(counts.values())
    effusion = report["labels"]["pleural_effusion"]
    assert effusion["num_images"] == counts["validation"]
    assert 0 <= effusion["accuracy"]["ci95"][0] <= effusion["accuracy"]["value"] <= 1
    classifier = load_classifier(trained)
    assert classifier.labels == ("pleural_effusion", "cardiomegaly")
    probabilities = predict(classifier, np.zeros((3, 32, 32, 3), np.uint8))
    assert probabilities.shape == (3, 2)
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_same_run_gives_the_same_classifier(trained, tmp_path):
    assert run(tmp_path) == 0
    first, again = (load_classifier(folder).params for folder in (trained, tmp_path))
    for name, x in first.items():
        np.testing.assert_array_equal(again[name], x)


def test_published_weights_are_the_start(tmp_path):
    """A torch file of torchvision's kind: three channels, batch norm, a thousand other classes."""
    write_weights(tmp_path / "published.safetensors", channels=3)
    weights = {
        "network__block_config": "(2,3)",
        "network__num_init_features": 16,
        "network__weights": tmp_path / "published.safetensors",
        "optim__learning_rate": 1e-4,
    }
    assert run(tmp_path / "classifier", **weights) == 0
    report = json.loads((tmp_path / "classifier" / "classifier_report.json").read_text())
    assert report["started_from"] == str(tmp_path / "published.safetensors")
    classifier = load_classifier(tmp_path / "classifier")
    network = classifier.network
    assert (network.norm, network.in_channels, network.input_range) == ("batch", 3, "imagenet")
    published = from_published(tmp_path / "published.safetensors", network).published
    for name, x in published.items():
        moved = np.abs(classifier.params[name] - x).max()
        # Adam's steps are at most the learning rate each, and weight decay far less.
        assert moved <= 3.1e-4 and (moved == 0) == name.endswith((".mean", ".var")), name
    probabilities = predict(classifier, np.zeros((3, 32, 32), np.uint8))
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("recipe", ["demo", "demo_downstream_utility"])
def test_other_recipes_are_refused(tmp_path, capsys, recipe):
    words = ["--config", str(ROOT / "configs" / f"{recipe}.py"), "--workdir", str(tmp_path)]
    words += [
        "--config.model.path=x" if recipe == "demo" else "--config.synthetic.path=x"
    ]  # what they require
    assert main(["train-classifier", *words]) == 2
    message = capsys.readouterr().err
    assert f"{recipe}.py has a key" in message and "medsd_jax.config.classifier_config" in message


def test_a_training_that_diverges_leaves_no_classifier(tmp_path, capsys, monkeypatch):
    rate = lambda *settings, **more: lambda step: 1e30  # noqa: E731
    monkeypatch.setattr(classifier_recipe, "make_schedule", rate)
    assert run(tmp_path, train__steps="9") == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("medsd_jax: error: train/") and "training has diverged" in line
    assert not (tmp_path / "classifier_report.json").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", "('pleural_efusion',)", "'pleural_efusion'"),
        ("labels", "()", "labels is empty"),
        ("labels", "('view',)", "'view'"),
        ("train__steps", "0", "train.steps = 0"),
        ("calibration_fraction", "1.5", "calibration_fraction = 1.5"),
        ("data__batch_size", "5", "5"),
        ("network__depth", "3", "depth"),
        ("network__weights", "absent.pth", "absent.pth"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, key, value, message):
    assert run(tmp_path, **{key: value}) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("medsd_jax: error:") and message in line
