"""The best weights of a run: planted metrics in the loop, resuming, kills, damaged folders."""

import json
import logging

import jax
import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.training import best as best_module
from medsd_jax.training.best import KeepBest
from medsd_jax.training.checkpoint import has_checkpoint
from medsd_jax.training.metrics import read_scalars
from tests.tiny.toy_run import ToyRun

SETTINGS = {"num_images": 8, "prompts": ("a", "b")}


def save(params, folder):
    folder.mkdir()
    np.savez(folder / "weights.npz", **params)


def keeper(workdir, **changes):
    asked = {"metric": "kid", "larger_is_better": False, "settings": SETTINGS, "save": save}
    return KeepBest(workdir, **{**asked, "resumed": has_checkpoint(workdir), **changes})


class Planted:
    """An evaluation with these values by step, which keeps the best and remembers all weights."""

    def __init__(self, workdir, values, **changes):
        self.values, self.seen, self.losses = values, {}, {}
        self.best = keeper(workdir, **changes)

    def __call__(self, params, step, validation_loss):
        metrics = {"kid": self.values[step], "fid": 10.0 * step}
        self.seen[step] = {name: np.array(x) for name, x in params.items()}
        self.losses[step] = validation_loss
        self.best(params, step, metrics)
        return metrics


def kept(workdir):
    metadata = json.loads((workdir / "best" / "best.json").read_text())
    with np.load(workdir / "best" / "weights.npz") as weights:
        return metadata, dict(weights)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("larger", [False, True])
def test_best_and_not_last_is_kept(tmp_path, larger):
    run = ToyRun(tmp_path)
    values = {2: 0.5, 4: 0.1, 6: 0.3}
    if larger:
        values = {step: -x for step, x in values.items()}
    planted = Planted(tmp_path, values, larger_is_better=larger)
    result = run(6, evaluation=planted)
    metadata, weights = kept(tmp_path)
    assert metadata == {
        "metric": "kid",
        "value": values[4],
        "step": 4,
        "metrics": {"kid": values[4], "fid": 40.0},
        "settings": {"num_images": 8, "prompts": ["a", "b"]},
    }
    assert_same(weights, planted.seen[4])
    assert not np.array_equal(weights["head.bias"], result["head.bias"])
    assert_same(planted.seen[6], {name: np.asarray(x) for name, x in result.items()})
    rows = {row["step"]: row for row in read_scalars(tmp_path) if "evaluation/kid" in row}
    assert {step: row["evaluation/kid"] for step, row in rows.items()} == values
    assert rows[6]["evaluation/fid"] == 60.0
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert sorted(p.name for p in tmp_path.iterdir() if "best" in p.name) == ["best"]


def test_every_evaluation_has_the_validation_loss_of_its_step(tmp_path):
    """Also at steps that validation alone would skip; and none where there is no validation."""
    run, planted = ToyRun(tmp_path), Planted(tmp_path, {2: 3.0, 4: 2.0, 6: 1.0})
    run(6, evaluation=planted)
    rows = {r["step"]: r["validation/loss"] for r in read_scalars(tmp_path) if len(r) == 2}
    assert list(rows) == [0, 2, 3, 4, 6]
    assert planted.losses == {step: rows[step] for step in (2, 4, 6)}

    run = ToyRun(tmp_path / "other")
    run.validation, planted = None, Planted(tmp_path / "other", {2: 1.0})
    run(2, evaluation=planted)
    assert planted.losses == {2: None}


def test_evaluation_changes_nothing_in_training(tmp_path):
    plain = ToyRun(tmp_path / "plain")(4)
    evaluated = ToyRun(tmp_path / "classified")(
        4, evaluation=Planted(tmp_path / "classified", {2: 1, 4: 0})
    )
    assert_same({k: np.asarray(x) for k, x in evaluated.items()}, plain)


@pytest.mark.parametrize("later", [0.3, 0.05])
def test_resumed_run_knows_the_best(tmp_path, later, caplog):
    run = ToyRun(tmp_path)
    first = Planted(tmp_path, {2: 0.5, 4: 0.1})
    run(4, evaluation=first)
    with caplog.at_level(logging.INFO):
        second = Planted(tmp_path, {6: later})
    assert "kid = 0.1 at step 4" in caplog.text
    run(6, evaluation=second)
    metadata, weights = kept(tmp_path)
    if later < 0.1:
        assert (metadata["step"], metadata["value"]) == (6, later)
        assert_same(weights, second.seen[6])
    else:
        assert (metadata["step"], metadata["value"]) == (4, 0.1)
        assert_same(weights, first.seen[4])


@pytest.mark.parametrize(
    "changes",
    [
        {"resumed": False},
        {"settings": {**SETTINGS, "num_images": 9}},
        {"metric": "fid"},
    ],
    ids=str,
)
def test_values_that_do_not_compare_count_no_more(tmp_path, changes, caplog):
    """Of a run that starts anew, or measured otherwise: kept until the next evaluation."""
    keeper(tmp_path)({"w": jax.numpy.ones(2)}, 2, {"kid": 0.1, "fid": 0.1})
    again = keeper(tmp_path, **{"resumed": True, **changes})
    assert again.value is None
    assert "step 2 with kid = 0.1" in caplog.text and kept(tmp_path)[0]["step"] == 2
    again({"w": jax.numpy.zeros(2)}, 4, {"kid": 0.9, "fid": 0.9})
    metadata, weights = kept(tmp_path)
    assert (metadata["step"], metadata["value"]) == (4, 0.9) and not weights["w"].any()


def test_has_checkpoint(tmp_path):
    assert not has_checkpoint(tmp_path)
    ToyRun(tmp_path)(2)
    assert has_checkpoint(tmp_path)
    (tmp_path / "other" / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_checkpoint(tmp_path / "other")


def test_values_that_are_no_number_are_never_the_best(tmp_path):
    best = keeper(tmp_path)
    for value in (float("nan"), float("inf"), float("-inf")):
        best({"w": jax.numpy.ones(2)}, 2, {"kid": value})
    assert not (tmp_path / "best").exists()
    best({"w": jax.numpy.ones(2)}, 4, {"kid": 7.0})
    best({"w": jax.numpy.zeros(2)}, 6, {"kid": 7.0})  # as good is not better
    assert kept(tmp_path)[0]["step"] == 4 and kept(tmp_path)[1]["w"].all()


@pytest.mark.parametrize("dies_in", ["save", "json", "swap"])
def test_killed_while_replacing(tmp_path, monkeypatch, dies_in):
    """Whatever a run was at, the next one finds one whole best folder: the earlier one."""
    best = keeper(tmp_path)
    best({"w": jax.numpy.ones(2)}, 2, {"kid": 0.5})

    def die(*args, **kwargs):
        raise RuntimeError("power cut")

    def half_a_save(params, folder):
        save(params, folder)
        die()

    if dies_in == "save":
        best = keeper(tmp_path, resumed=True, save=half_a_save)
    elif dies_in == "json":
        monkeypatch.setattr(best_module, "write_json", die)
    else:
        best._new = tmp_path / "best" / "not there"  # the second rename of the two fails
        monkeypatch.setattr(best, "_save", lambda params, folder: None)
        monkeypatch.setattr(best_module, "write_json", lambda path, metadata: None)
    with pytest.raises((RuntimeError, OSError)):
        best({"w": jax.numpy.zeros(2)}, 4, {"kid": 0.1})
    monkeypatch.undo()
    again = keeper(tmp_path, resumed=True)
    assert again.value == 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    assert kept(tmp_path)[1]["w"].all()


@pytest.mark.parametrize("content", [None, "{", '{"metric": "kid"}', '"text"'])
def test_a_folder_that_is_no_best_is_refused(tmp_path, content):
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "precious.txt").write_text("x")
    if content is not None:
        (folder / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json cannot be read .* not overwritten"):
        keeper(tmp_path)
    assert (folder / "precious.txt").exists()
