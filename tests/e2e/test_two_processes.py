"""Two processes with four devices each, or four with two, train and sample as one with eight."""

import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.models import load
from tests.e2e.processes import START, run
from tests.tiny.classifier import write_classifier
from tests.tiny.run import write_model

TRAIN = (
    START
    + """
model, classifier, data, workdir, steps = words
from medsd_jax.workflows.train.run import train
from tests.tiny.run import recipe
config = recipe(
    Path(model),
    Path(data),
    train__steps=int(steps),
    mesh__fsdp=4,
    data__cache_latents=True,
    evaluation__every_steps=2,
    evaluation__metrics=("validation_loss", "kid", "prompt_accuracy"),
    evaluation__keep_best="validation_loss",
    evaluation__features=f"classifier={classifier}",
    evaluation__classifier=classifier,
    evaluation__num_images=9,
    evaluation__num_steps=2,
)
train(config, Path(workdir))
"""
)
SAMPLE = (
    START
    + """
from tests.commands import sample
sample(words)
"""
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_processes_train_and_resume_as_one(tmp_path):
    model, classifier = tmp_path / "model", tmp_path / "classifier"
    write_model(model)
    write_classifier(classifier, 16)
    run(TRAIN, 1, model, classifier, tmp_path / "data_of_one", tmp_path / "one", 4)
    for steps in (2, 4):  # the second call resumes
        run(TRAIN, 2, model, classifier, tmp_path / "data_of_two", tmp_path / "two", steps)
    run(TRAIN, 4, model, classifier, tmp_path / "data_of_four", tmp_path / "four", 4)
    for several in ("two", "four"):
        _check_same_run(tmp_path, several)


def _check_same_run(tmp_path, several):
    runs = ("one", several)
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
            # Images of 8 bits: weights that differ in rounding move some values by one.
            assert two[step, name] == pytest.approx(one[step, name], rel=1e-2, abs=1e-4), name
    bests = [json.loads((tmp_path / run / "best" / "best.json").read_text()) for run in runs]
    assert bests[0]["step"] == bests[1]["step"]
    best, base = (load(folder) for folder in (tmp_path / several / "best", tmp_path / "model"))
    assert best.params.keys() == base.params.keys()
    (cached_by_one,), (cached_by_two,) = (
        list(tmp_path.glob(f"data_of_{count}/*/latents-train-*.npy")) for count in runs
    )
    # Other batch shapes per device make other programs, which round differently.
    np.testing.assert_allclose(np.load(cached_by_two), np.load(cached_by_one), atol=1e-5)
    previews = [np.asarray(Image.open(tmp_path / run / "samples/0000004.png"), int) for run in runs]
    assert np.abs(previews[0] - previews[1]).mean() < 1  # weights differ in rounding, see below
    weights = load(tmp_path / "one").params
    for name, x in load(tmp_path / several).params.items():
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
    assert len(files) == 20 + 10 + 2  # images, texts, manifest and grid
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == files
    for path in (tmp_path / "1").glob("*_*.jpg"):
        one, two = (
            np.asarray(Image.open(folder / path.name), int)
            for folder in (tmp_path / "1", tmp_path / "2")
        )
        # Other batch shapes per device make other programs, and JPEG spreads what rounds apart.
        assert np.abs(one - two).max() <= 2, path.name


PERMUTED = (
    START
    + """
import numpy as np
from jax.sharding import AxisType, Mesh
from medsd_jax.data.latents import Processes, encode_split
from medsd_jax.data.dataset import open_dataset
from medsd_jax.parallel import mesh as meshes
from medsd_jax.parallel.multihost import (
    fetch, is_first_on_disk, is_main_process, true_everywhere
)
folder, order = Path(words[0]), [int(place) for place in words[1].split()]
devices = sorted(jax.devices(), key=lambda device: device.id)
devices = np.array(devices)[order]
def arranged(*shape):
    return Mesh(devices.reshape(shape), meshes.AXES, axis_types=(AxisType.Auto,) * 3)
for shape, size in (((8, 1, 1), 16), ((2, 2, 2), 16), ((2, 1, 4), 8), ((1, 1, 8), 8)):
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
    processes=Processes(is_main_process(), true_everywhere, is_first_on_disk),
)
if is_main_process():
    np.save(folder / f"{count}.npy", moments)
"""
)


@pytest.mark.parametrize(
    "count, order",
    [
        (2, "0 1 4 5 2 3 6 7"),  # of processes 0 0 1 1 0 0 1 1
        (4, "0 2 4 6 1 3 5 7"),  # of processes 0 1 2 3 0 1 2 3
        (4, "6 0 5 3 2 7 1 4"),
    ],
)
def test_permuted_devices_of_processes_hold_the_rows_of_one(count, order, tmp_path):
    """As on a TPU slice, where the shards of a process are no neighbours in the batch."""
    for processes in (1, count):
        run(PERMUTED, processes, tmp_path, order)
    one, several = (np.load(tmp_path / f"{processes}.npy") for processes in (1, count))
    assert len(np.unique(one.reshape(len(one), -1), axis=0)) == len(one)
    np.testing.assert_array_equal(several, one)


ON_DISKS = (
    START
    + """
import json
import numpy as np
from medsd_jax.data import dataset, latents
from medsd_jax.parallel import mesh as meshes
from medsd_jax.parallel.multihost import (
    fetch, is_first_on_disk, is_main_process, true_everywhere
)
folder, written = Path(words[int(number)]), []
def recorded(module, name):
    do = getattr(module, name)
    def call(*args):
        written.append(name)
        return do(*args)
    setattr(module, name, call)
recorded(dataset, "_prepare")
recorded(latents, "_write")
true_everywhere(True)  # all of them reach the empty folder at once
data = dataset.open_dataset(
    "phantom", params={"num_images": 40, "image_size": 16}, cache_dir=folder / "data",
    validation_fraction=0.25, progress=False,
)
mesh = meshes.make_mesh({"data": -1})
moments = latents.encode_split(
    data.train,
    lambda images: fetch(meshes.put_batch({"images": images}, mesh)["images"]),
    batch_size=16, image_size=16, resize_mode="pad", key="k",
    folder=data.info.folder, rows=meshes.process_rows(mesh, 16),
    processes=latents.Processes(is_main_process(), true_everywhere, is_first_on_disk),
)
reports = {"written": written, "sum": float(np.sum(moments)), "shape": moments.shape}
Path(words[-1], number).write_text(json.dumps(reports))
"""
)


@pytest.mark.parametrize("disks", ["aaaa", "aabb", "abab"])
def test_each_disk_is_written_once_and_read_by_all(disks, tmp_path):
    """Four processes of one, two and two hosts, whose folders are not shared between hosts."""
    run(ON_DISKS, 4, *(tmp_path / disk for disk in disks), tmp_path)
    reports = [json.loads((tmp_path / str(process)).read_text()) for process in range(4)]
    assert all(
        (one["sum"], one["shape"]) == (reports[0]["sum"], [30, 16, 16, 3]) for one in reports
    )
    for disk in set(disks):
        names = [reports[process]["written"] for process in range(4) if disks[process] == disk]
        assert sum(written.count("_prepare") for written in names) == 1
        assert ["_write" in written for written in names] == [True] + [False] * (len(names) - 1)
        left = [path.name for path in (tmp_path / disk).rglob(".*")]
        assert left == []
