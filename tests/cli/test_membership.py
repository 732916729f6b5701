"""membership: from the workdir of a run to a report, and mistakes in one line."""

import json

import jax
import jsonschema
import pytest

from medsd_jax.cli.main import main
from medsd_jax.errors import UserError
from medsd_jax.evaluation.reports.membership import MembershipReport
from medsd_jax.reports.schema_files import schema_of
from medsd_jax.workflows.train.run import train
from tests.tiny.run import recipe, write_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """One step of the tiny recipe."""
    root = tmp_path_factory.mktemp("run")
    write_model(root / "model")
    config = recipe(
        root / "model", root / "data", train__steps=1, preview__every_steps=0,
        validation__every_steps=0,
    )  # fmt: skip
    jax.config.update("jax_disable_most_optimizations", True)
    train(config, root / "run")
    yield root / "run"
    jax.config.update("jax_disable_most_optimizations", False)


def attack(workdir, *words):
    words = ["--num_timesteps", "2", "--num_draws", "1", "--batch_size", "2", *words]
    return main(["membership", "--workdir", str(workdir), *words])


def test_report(workdir, tmp_path, capsys):
    assert attack(workdir) == 0
    report = json.loads((workdir / "membership.json").read_text())
    assert "AUROC" in capsys.readouterr().out
    (index,) = workdir.parent.glob("data/*/info.json")
    info = json.loads(index.read_text())
    assert report["data"] == info["fingerprint"]
    for side, split in (("trained", "train"), ("held_out", "validation")):
        assert report["attack"][side]["num_images"] == info["num_images"][split]
        assert report["attack"][side]["num_patients"] == info["num_patients"][split]
    # One step teaches nothing by heart; 60 images.
    low, high = report["attack"]["auroc"]["ci95"]
    assert low < 0.5 < high
    assert [row["timestep"] for row in report["attack"]["timesteps"]] == [250, 750]

    assert attack(workdir, "--num_images", "7", "--output", str(tmp_path / "out")) == 0
    fewer = json.loads((tmp_path / "out" / "membership.json").read_text())
    assert [fewer["attack"][k]["num_images"] for k in ("trained", "held_out")] == [7, 7]
    assert fewer["model_hash"] == report["model_hash"]

    untrained = str(workdir.parent / "model")
    assert attack(workdir, "--model", untrained, "--output", str(tmp_path / "before")) == 0
    before = json.loads((tmp_path / "before" / "membership.json").read_text())
    assert before["model_hash"] != report["model_hash"]
    assert before["attack"]["trained"] != report["attack"]["trained"]


def test_schema_refuses_what_it_does_not_say(workdir, tmp_path):
    assert attack(workdir, "--num_images", "7", "--output", str(tmp_path)) == 0
    report = json.loads((tmp_path / "membership.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema_of(MembershipReport))
    jsonschema.validate(report, schema_of(MembershipReport))
    for key, value in (
        ("new", 1),
        ("data", "x"),
        ("attack", {**report["attack"], "timesteps": []}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**report, key: value}, schema_of(MembershipReport))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "absent"], "absent/config.json"),
        (["--num_images", "0"], "num_images"),
        (["--seed", "-1"], "--seed -1"),
        (["--model", "absent"], "absent"),
        (["--shadow", "1"], "--shadow"),
    ],
)
def test_mistakes_are_one_line(workdir, tmp_path, capsys, words, message):
    assert attack(workdir, "--output", str(tmp_path / "out"), *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("medsd_jax: error:") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("source"), "config.json has no data.source"),
        (lambda data: data.update(image_size="large"), "data.image_size = 'large' must be of type"),
        (lambda data: data.update(image_size=10**9), "data.image_size = 1000000000 must be"),
        (lambda data: data.update(validation_fraction=float("nan")), "a finite number"),
    ],
)
def test_a_config_that_no_run_wrote(workdir, tmp_path, capsys, change, message):
    config = json.loads((workdir / "config.json").read_text())
    change(config["data"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert attack(tmp_path) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_more_timesteps_than_the_model_has(workdir, tmp_path, capsys):
    words = ["--output", str(tmp_path / "out"), "--num_timesteps"]
    assert attack(workdir, *words, "1001") == 2
    assert "the model has 1000 timesteps" in capsys.readouterr().err.splitlines()[-1]
    assert attack(workdir, *words, "1000", "--num_draws", "1000") == 2
    assert "more than 100000 draws" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_output_that_may_not_be_written_is_reported_before_the_work(
    workdir, capsys, monkeypatch
):
    def refuse(folder):
        raise UserError(f"{folder} may not be written")

    monkeypatch.setattr("medsd_jax.workflows.membership.check_permission", refuse)
    monkeypatch.setattr(
        "medsd_jax.workflows.membership.load", lambda where: pytest.fail("the work began")
    )
    assert attack(workdir) == 2
    assert "may not be written" in capsys.readouterr().err.splitlines()[-1]


def test_vae_run_has_no_denoising_loss(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"task": "vae", "data": {}}')
    assert attack(tmp_path) == 2
    assert "task = 'diffusion'" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"task": "diffusion", "data": {}}')
    assert main(["membership", "--workdir", str(tmp_path)]) == 2
    assert "written by an older version" in capsys.readouterr().err
