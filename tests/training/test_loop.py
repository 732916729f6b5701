"""The loop on a toy model: resuming, interrupts, intervals, and what is written."""

import json
import logging
import os
import signal

import jax
import numpy as np
import pytest

from medsd_jax.errors import DivergedError, UserError
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.training.metrics import read_scalars
from tests.tiny.toy_run import ToyRun, output, toy_params


def rows_of(run, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in read_scalars(run.workdir) if name in row}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps without a break: (run, result, steps of previews)."""
    run, previews = ToyRun(tmp_path_factory.mktemp("straight")), []
    result = run(6, preview=lambda params, step: previews.append((step, sorted(params))))
    return run, result, previews


def test_intervals_and_files(straight):
    run, _, previews = straight
    assert [step for step, _ in previews] == [4, 6]
    assert previews[0][1] == sorted(toy_params())
    assert list(rows_of(run, "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert list(rows_of(run, "validation/loss")) == [0, 3, 6]
    last = read_scalars(run.workdir)[-2]
    assert last.keys() == {"step"} | {
        f"train/{name}"
        for name in "loss grad_norm update_norm learning_rate images_per_second".split()
    }
    assert last["train/learning_rate"] == pytest.approx(1e-2)
    assert list((run.workdir / "tensorboard").glob("events.*"))
    assert json.loads((run.workdir / "config.json").read_text())["patterns"] == [r"^head\."]
    assert [p.name for p in (run.workdir / "checkpoints").iterdir()] == ["6"]
    assert run.batches.position == 6


def test_what_is_frozen_and_the_callers_arrays_stay(straight):
    given = toy_params()
    assert_same({"body.kernel": straight[1]["body.kernel"]}, {"body.kernel": given["body.kernel"]})
    params = toy_params()
    ToyRun(straight[0].workdir.parent / "other")(2, params=params)
    assert_same(params, given)  # donation must not reach the host's weights


def test_validation_is_the_mean_of_the_real_rows(straight):
    run, _, _ = straight
    params, x = toy_params(), np.concatenate([batch["x"] for batch in run.validation])
    losses = np.mean(np.square(np.asarray(output(params, x)) - 1), axis=1) + np.arange(16)
    expected = losses[np.concatenate([batch["mask"] for batch in run.validation]) > 0].mean()
    assert rows_of(run, "validation/loss")[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", [2, 4])
def test_resumed_run_is_the_same_to_the_bit(straight, tmp_path, first):
    run = ToyRun(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        run(6, on_batch=power_cut_at(first + 2), checkpoint_every=first)
    result = run(6)
    assert_same(result, straight[1])
    assert run.batches.position == 6
    for name in ("train/loss", "train/grad_norm", "validation/loss"):
        assert rows_of(run, name) == rows_of(straight[0], name), name


def power_cut_at(position):
    def on_batch(now):
        if now == position:
            raise RuntimeError("power cut")

    return on_batch


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2}, {"data": 1}], ids=str
)
def test_resume_on_other_devices(straight, tmp_path, axes):
    count = int(np.prod(list(axes.values())))
    run = ToyRun(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        run(6, on_batch=power_cut_at(4), checkpoint_every=3)
    mesh = make_mesh(axes, jax.devices()[:count])
    result = run(6, mesh=mesh)
    kernel = result["head.conv.kernel"]
    assert kernel.sharding.device_set == set(jax.devices()[:count])
    assert kernel.addressable_shards[0].data.shape[1] == 8 // axes.get("fsdp", 1)
    for name, x in straight[1].items():
        np.testing.assert_allclose(result[name], x, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_run_saves_and_goes_on(straight, tmp_path, number, caplog):
    run, before = ToyRun(tmp_path), signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        run(6, on_batch=lambda now: now == 2 and os.kill(os.getpid(), number))
    assert "step 2 is saved" in caplog.text
    assert signal.getsignal(number) is before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert_same(run(6), straight[1])
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("checkpoint_every", [100, 0])
def test_interrupt_in_the_last_step_is_not_forgotten(straight, tmp_path, checkpoint_every):
    run = ToyRun(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(
            6,
            on_batch=lambda now: now == 6 and os.kill(os.getpid(), signal.SIGTERM),
            checkpoint_every=checkpoint_every,
        )
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]
    assert rows_of(run, "validation/loss") == rows_of(straight[0], "validation/loss")
    assert_same(run(6, on_batch=power_cut_at(7)), straight[1])


def test_finished_run_does_nothing(straight, tmp_path):
    run = ToyRun(tmp_path)
    run(6)
    lines = (tmp_path / "metrics.jsonl").read_text()
    for steps in (6, 3):
        assert_same(run(steps, on_batch=power_cut_at(7)), straight[1])
        assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert run.batches.position == 6


def test_without_moving_average_the_last_weights_are_kept(straight, tmp_path):
    run = ToyRun(tmp_path)
    result = run(6, ema=0.0)
    assert rows_of(run, "train/loss") == rows_of(straight[0], "train/loss")
    assert not np.array_equal(result["head.bias"], straight[1]["head.bias"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ema": 0.0}, "ema/head.bias is [8] there and absent here"),
        ({"patterns": ("",)}, "body.kernel is absent there and [4, 8] here"),
        (
            {"params": {**toy_params(), "head.bias": np.zeros(1, np.float32)}},
            "head.bias is [8] there and [1] here",
        ),
    ],
    ids=["ema", "patterns", "shape"],
)
def test_checkpoint_of_another_model_is_refused(tmp_path, other, message):
    run = ToyRun(tmp_path)
    run(2)
    config = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as refused:
        run(4, **other)
    assert message in str(refused.value) and "another workdir" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "config.json").read_text() == config


def test_changed_config_is_said(tmp_path, caplog):
    run = ToyRun(tmp_path)
    run(2)
    with caplog.at_level(logging.WARNING):
        run(4, learning_rate=0.5)
    message = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert message == ["resumed with another optim.learning_rate: 0.5, before 0.01"]
    assert rows_of(run, "train/learning_rate")[3] == 0.5
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 0.5


def test_diverged_run_stops_before_it_is_saved(tmp_path):
    run, before = ToyRun(tmp_path), signal.getsignal(signal.SIGINT)
    with pytest.raises(DivergedError, match="at step 4") as diverged:
        run(9, poison=4, log_every=100, checkpoint_every=2)
    assert "\n" not in str(diverged.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert signal.getsignal(signal.SIGINT) is before


def test_oldest_checkpoints_go(tmp_path):
    ToyRun(tmp_path)(6, checkpoint_every=2, keep_checkpoints=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]


def test_run_killed_before_its_first_checkpoint_starts_over(straight, tmp_path):
    run = ToyRun(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        run(6, on_batch=power_cut_at(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')  # the line that it was writing
    run(6)
    for name in ("train/loss", "validation/loss"):
        assert rows_of(run, name) == rows_of(straight[0], name)
    assert [row["step"] for row in read_scalars(tmp_path)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_nothing_to_validate_and_nothing_to_look_at(tmp_path):
    run = ToyRun(tmp_path)
    run.validation = None
    run(2)
    assert not rows_of(run, "validation/loss")


def test_the_state_is_donated(tmp_path):
    """An old state that is kept would be on the devices twice."""
    seen = []
    ToyRun(tmp_path)(6, preview=lambda params, step: seen.append(params))
    before, after = seen
    assert before["head.bias"].is_deleted() and not after["head.bias"].is_deleted()
    assert not before["body.kernel"].is_deleted()  # frozen
