"""Two processes with four devices each train and sample as one process with eight."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medsd_jax import api
from medsd_jax.training.metrics import read_scalars
from tests.e2e.tiny_run import ROOT, write_model
from tests.tiny_judge import write_judge

START = """
import sys
from pathlib import Path
import jax
number, count, port, *words = sys.argv[1:]
jax.config.update("jax_disable_most_optimizations", True)
if int(count) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
"""
TRAIN = (
    START
    + """
model, judge, data, workdir, steps = words
from medsd_jax.cli.train import train_by_config
from tests.e2e.tiny_run import recipe
config = recipe(
    Path(model),
    Path(data),
    train__steps=int(steps),
    mesh__fsdp=4,
    data__cache_latents=True,
    evaluation__every_steps=2,
    evaluation__metrics=("validation_loss", "kid", "prompt_accuracy"),
    evaluation__keep_best="validation_loss",
    evaluation__features=f"classifier={judge}",
    evaluation__classifier=judge,
    evaluation__num_images=9,
    evaluation__num_steps=2,
)
train_by_config(config, Path(workdir))
"""
)
SAMPLE = (
    START
    + """
from medsd_jax.cli.sample import run
run(words)
"""
)


def run(code: str, count: int, *words) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, (number, count, port, *words))],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, errors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_and_resume_as_one(tmp_path):
    model, judge = tmp_path / "model", tmp_path / "judge"
    write_model(model)
    write_judge(judge, 16)
    run(TRAIN, 1, model, judge, tmp_path / "data_of_one", tmp_path / "one", 4)
    for steps in (2, 4):  # the second call resumes
        run(TRAIN, 2, model, judge, tmp_path / "data_of_two", tmp_path / "two", steps)
    runs = ("one", "two")
    one, two = (
        {(row["step"], name): x for row in read_scalars(tmp_path / run) for name, x in row.items()}
        for run in runs
    )
    compared = [key for key in one if key[1] in ("train/loss", "validation/loss")]
    assert len(compared) == 7
    for key in compared:
        assert two[key] == pytest.approx(one[key], rel=1e-5), key
    for name in ("evaluation/validation_loss", "evaluation/kid", "evaluation/prompt_accuracy"):
        for step in (2, 4):
            # Pictures of 8 bits: weights that differ in rounding move some values by one.
            assert two[step, name] == pytest.approx(one[step, name], rel=1e-2, abs=1e-4), name
    bests = [json.loads((tmp_path / run / "best" / "best.json").read_text()) for run in runs]
    assert bests[0]["step"] == bests[1]["step"]
    assert api.load(tmp_path / "two" / "best").params.keys() == api.load(model).params.keys()
    (cached_by_one,), (cached_by_two,) = (
        list(tmp_path.glob(f"data_of_{count}/*/latents-train-*.npy")) for count in ("one", "two")
    )
    # Other batch shapes a device make other programs, which round differently.
    np.testing.assert_allclose(np.load(cached_by_two), np.load(cached_by_one), atol=1e-5)
    previews = [np.asarray(Image.open(tmp_path / run / "samples/0000004.png"), int) for run in runs]
    assert np.abs(previews[0] - previews[1]).mean() < 1  # weights differ in rounding, see below
    weights = api.load(tmp_path / "one").params
    for name, x in api.load(tmp_path / "two").params.items():
        # Adam's first steps are the sign of the gradient, which rounding decides where it is 0.
        assert np.abs(x - weights[name]).mean() < 2e-5, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_sample_a_cohort_as_one(tmp_path):
    """A run that was killed goes on; what the dead one wrote is where both processes start."""
    write_model(tmp_path / "model")
    table = tmp_path / "prompts.csv"
    table.write_text("id,prompt\n" + "".join(f"p{i},effusion {i}\n" for i in range(10)))
    words = ["--model", tmp_path / "model", "--prompts_csv", table, "--num_images", "2"]
    words += ["--num_steps", "2", "--batch_size", "8", "--layout", "roentgen", "--output"]
    for count in (1, 2):
        run(SAMPLE, count, *words, tmp_path / str(count))
    manifest = tmp_path / "2" / "samples.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:11]))
    for line in lines[11:]:
        (tmp_path / "2" / json.loads(line)["file"]).unlink()
    run(SAMPLE, 2, *words, tmp_path / "2")
    assert manifest.read_text().splitlines(keepends=True) == lines
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) == 20 + 10 + 2  # pictures, texts, manifest and grid
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == files
    for path in (tmp_path / "1").glob("*_*.jpg"):
        one, two = (
            np.asarray(Image.open(folder / path.name), int)
            for folder in (tmp_path / "1", tmp_path / "2")
        )
        # Other batch shapes a device make other programs, and JPEG spreads what rounds apart.
        assert np.abs(one - two).max() <= 2, path.name


PERMUTED = (
    START
    + """
import numpy as np
from jax.sharding import AxisType, Mesh
from medsd_jax.data.latents import encode_split
from medsd_jax.data.dataset import open_dataset
from medsd_jax.parallel import mesh as meshes
from medsd_jax.parallel.multihost import fetch, is_main_process
folder = Path(words[0])
devices = sorted(jax.devices(), key=lambda device: device.id)
devices = np.array(devices)[[0, 1, 4, 5, 2, 3, 6, 7]]  # of processes 0 0 1 1 0 0 1 1
def arranged(*shape):
    return Mesh(devices.reshape(shape), meshes.AXES, axis_types=(AxisType.Auto,) * 3)
for shape, size in (((8, 1, 1), 16), ((2, 2, 2), 16), ((1, 1, 8), 8)):
    mesh = arranged(*shape)
    rows = meshes.process_rows(mesh, size)
    placed = meshes.put_batch({"x": rows.astype(np.float32)[:, None]}, mesh)["x"]
    assert placed.shape == (size, 1), (shape, placed.shape)
    np.testing.assert_array_equal(fetch(placed)[:, 0], np.arange(size), str(shape))
mesh = arranged(4, 2, 1)
data = open_dataset(
    "phantom", params={"num_images": 40, "image_size": 16}, cache_dir=folder / "data",
    validation_fraction=0.25, progress=False,
)
moments = encode_split(
    data.train,
    lambda images: fetch(meshes.put_batch({"images": images}, mesh)["images"]),
    batch_size=16, image_size=16, resize_mode="pad", key=f"of-{count}",
    folder=folder, rows=meshes.process_rows(mesh, 16),
)
if is_main_process():
    np.save(folder / f"{count}.npy", moments)
"""
)


def test_permuted_devices_of_two_processes_hold_the_rows_of_one(tmp_path):
    """As on a TPU slice, where the shards of a process are no neighbours in the batch."""
    for count in (1, 2):
        run(PERMUTED, count, tmp_path)
    one, two = (np.load(tmp_path / f"{count}.npy") for count in (1, 2))
    assert len(np.unique(one.reshape(len(one), -1), axis=0)) == len(one)
    np.testing.assert_array_equal(two, one)
