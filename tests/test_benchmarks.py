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
        timing.assert_agreement("x", np.float32(1.001), np.float32(1.0), 1e-4)


def test_frechet_line(capsys):
    pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    from benchmarks import frechet

    words = ["--vectors", "70", "--width", "24", "--block", "32", "--repeats", "1"]
    frechet.main(words)
    record = json.loads(capsys.readouterr().out)
    assert record["fid"]["ours"] > 0 and record["relative_difference"] <= 1e-4
    for key in ("seconds", "peak_mib"):
        assert record[key]["ours"]["median"] > 0
        ratio = record[key]["ours"]["median"] / record[key]["torchmetrics"]["median"]
        assert record[f"{key}_ratio"]["median"] == pytest.approx(ratio, rel=1e-3)
    # torch is no part of our contestant's process, whatever this one has imported.
    assert record["imports_mib"]["ours"]["max"] < record["imports_mib"]["torchmetrics"]["min"]

    flags = frechet.argparse.Namespace(vectors=70, width=24, block=32)
    parts = list(frechet.blocks(flags, True))
    assert [len(part) for part in parts] == [32, 32, 6]
    again = np.concatenate(list(frechet.blocks(flags, True)))
    np.testing.assert_array_equal(np.concatenate(parts), again)
    other = np.concatenate(list(frechet.blocks(flags, False)))
    assert not np.array_equal(again[:32], again[32:64]) and not np.array_equal(again, other)


def test_attention_line(capsys):
    from benchmarks import attention

    attention.main(["--shapes", "tiny", "--batch", "1", "--dtype", "float32", "--repeats", "1"])
    record = json.loads(capsys.readouterr().out)
    assert (record["queries"], record["width"]) == (16, 8)
    for milliseconds in record["milliseconds"].values():
        assert milliseconds.keys() == {"xla", "chunked"}
        assert all(x["median"] > 0 for x in milliseconds.values())
    # There is no GPU where the tests run by default.
    assert record["failed"].keys() == {"cudnn forward", "cudnn both"}
