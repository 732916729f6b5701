"""Plans: mistakes are one line, and a tiny recipe compiles for a slice that is not there."""

import dataclasses
import importlib.util
import json

import pytest

from medsd_jax.cli.main import exit_code
from medsd_jax.cli.plan import run_words
from medsd_jax.evaluation.reports.programs import PlanReport
from medsd_jax.reports.writing import package_versions
from medsd_jax.workflows.plan import in_words
from tests.tiny.run import ROOT, write_model

BASE = ["--config", str(ROOT / "configs" / "base.py")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder without its weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_model(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


@pytest.mark.parametrize(
    "topology, words, message",
    [
        ("v5e", [], "GENERATION:SHAPE"),
        ("v5e:0x2", [], "GENERATION:SHAPE"),
        ("v9:2x2", [], "v4, v5e, v5p, v6e"),
        ("v5e:2x2", ["--config.task=vae"], "task = 'diffusion'"),
        ("v5e:2x2", ["--config.train.steps=0"], "train.steps = 0"),
    ],
)
def test_mistakes_are_one_line_and_2(model, capsys, topology, words, message):
    flags = [*BASE, f"--config.model.path={model}", "--topology", topology, *words]
    assert exit_code(lambda: run_words(flags, "plan")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medsd_jax: error: ") and message in line


def test_words_of_a_plan_that_does_not_fit():
    result = PlanReport(
        versions=package_versions(), topology="v5e:2x2", slices=1, chips=4, mesh={"data": 4},
        batch_size=16, images_per_chip=4.0, arguments=9 * 2**30, temporaries=8 * 2**30,
        memory=16.0 * 2**30, fits=False, operations=12e12, bytes=239e9,
        seconds_by_arithmetic=0.06, seconds_by_memory=0.32,
    )  # fmt: skip
    text = in_words(result)
    assert "does NOT fit" in text and "17.00 of 16 GiB" in text
    assert "12.00 TFLOP on each chip, 0.06 s at its peak" in text
    assert "239 GB, 0.32 s if all of it" in text
    assert in_words(dataclasses.replace(result, slices=2, chips=8)).startswith(
        "2 slices of v5e:2x2: 8 chips"
    )


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    "topology, slices, chips, mesh",
    [
        ("v5e:1x1", 1, 1, "data=-1"),
        ("v5e:2x2", 1, 4, "data=-1"),
        ("v5e:2x2", 2, 8, "fsdp=2"),
        ("v4:2x2x1", 1, 4, "fsdp=-1"),
        ("v5p:2x2x2", 1, 8, "fsdp=4"),
        ("v6e:4x4", 1, 16, "fsdp=8"),
    ],
)
def test_a_tiny_recipe_is_compiled_for_a_slice(
    model, tmp_path, capsys, topology, slices, chips, mesh
):
    words = ["data.image_size=16", f"data.batch_size={2 * chips}", "model.dtype=bfloat16"]
    words += ["mesh.data=1" if mesh == "fsdp=-1" else "mesh.data=-1", f"mesh.{mesh}"]
    flags = [*BASE, f"--config.model.path={model}", "--topology", topology]
    flags += ["--slices", str(slices)]
    flags += [f"--config.{word}" for word in words] + ["--output", str(tmp_path / "plan.json")]
    assert exit_code(lambda: run_words(flags, "plan")) == 0
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["fits"] and result["chips"] == chips and result["images_per_chip"] == 2
    assert result["operations"] > 1e6 and result["arguments"] > 0
    assert "fits" in capsys.readouterr().out


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("topology", ["v5e:3x3", "v4:3x4x4"])
def test_a_slice_that_is_not_sold_is_one_line(model, capsys, topology):
    flags = [*BASE, f"--config.model.path={model}", "--topology", topology]
    assert exit_code(lambda: run_words(flags, "plan")) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"topology {topology} cannot" in last and "x and y are even" in last
