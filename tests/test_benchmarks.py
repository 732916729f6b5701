"""The benchmarks run, agree with torch and report what failed. Their times are not tested."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.torch

ARGS = ["--size", "tiny", "--steps", "1", "--repeats", "2"]


def test_train_step_line(capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from benchmarks import timing, train_step

    def broken(module):
        raise RuntimeError("no compiler here\nand a second line")

    monkeypatch.setattr(torch, "compile", broken)
    # torch's threads wait for each other by spinning: on a busy machine that takes minutes.
    monkeypatch.setattr(timing, "cores", lambda: 1)
    threads = torch.get_num_threads()
    try:
        train_step.main(ARGS)
    finally:
        torch.set_num_threads(threads)
    record = json.loads(capsys.readouterr().out)
    assert record["failed"] == {"torch_compile": "RuntimeError: no compiler here"}
    assert record["loss_first_relative_difference"]["torch_eager"] <= 1e-4
    assert record["loss_last"]["ours"] < record["loss_first"]["ours"]
    # XLA counts elementwise work too, torch multiplications only.
    assert 1.0 < record["flops"] / record["flops_torch_counter"] < 1.5
    times = record["seconds"]["ours"]
    assert 0 < times["min"] <= times["median"] <= times["max"]
    rate = record["flops"] / times["median"] / 1e9
    assert record["gflop_per_second"]["ours"] == pytest.approx(rate, rel=1e-2)

    with pytest.raises(AssertionError, match="do not compute the same"):
        timing.assert_agreement("x", np.float32(1.001), np.float32(1.0), "float32")
