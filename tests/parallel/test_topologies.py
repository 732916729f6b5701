"""Meshes of TPU slices that are not here: who holds which row, and what cannot be arranged."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medsd_jax.config.recipes import load_config
from medsd_jax.data.loader import Source, eval_batches, make_loader
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.record_lists import RecordList
from medsd_jax.errors import UserError
from medsd_jax.parallel import mesh as meshes
from tests.parallel.topologies import slice_devices
from tests.tiny.run import ROOT


def owners(mesh) -> list[tuple[int, ...]]:
    """The processes of each shard of a batch."""
    shards = meshes.batch_shards(mesh)
    processes = sorted({device.process_index for device in mesh.devices.flat})
    rows = {process: meshes.process_rows(mesh, shards, process).tolist() for process in processes}
    return [tuple(p for p in processes if row in rows[p]) for row in range(shards)]


def spelled(text: str) -> list[tuple[int, ...]]:
    return [(int(owner),) for owner in text.split()]


# As libtpu and this module's make_mesh gave them for jax 0.10.2.
HELD = {
    ("v5e:4x4", (4, 4, 1)): "0 0 1 1 0 0 1 1 2 2 3 3 2 2 3 3",
    ("v5e:4x4", (-1, 1, 1)): "0 0 1 1 1 1 0 2 3 3 3 3 2 2 2 0",
    ("v5e:8x8", (16, 4, 1)): "0 0 1 1 0 0 1 1 4 4 5 5 4 4 5 5 8 8 9 9 8 8 9 9 12 12 13 13 12 12 13 "
    "13 2 2 3 3 2 2 3 3 6 6 7 7 6 6 7 7 10 10 11 11 10 10 11 11 14 14 15 15 14 14 15 15",
    ("v6e:4x4", (4, 4, 1)): "0 0 1 1 0 0 1 1 2 2 3 3 2 2 3 3",
    ("v6e:4x4", (2, 8, 1)): "0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3",
    ("v5p:2x2x4", (4, 4, 1)): "0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3",
    ("v5p:2x2x4", (-1, 1, 1)): "0 1 2 3 0 1 2 3 0 1 2 3 0 1 2 3",
    ("v4:2x2x4", (-1, 1, 1)): "0 1 2 3 0 1 2 3 0 1 2 3 0 1 2 3",
}


@pytest.mark.parametrize("topology, sizes", HELD)
def test_the_rows_that_each_process_holds(topology, sizes):
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), slice_devices(topology))
    assert owners(mesh) == spelled(HELD[topology, sizes])


@pytest.mark.parametrize(
    "recipe, topology",
    [
        ("roentgen", "v5e:8x8"),
        ("roentgen", "v6e:8x8"),
        ("roentgen_v2", "v5e:4x4"),
        ("roentgen_v2", "v6e:4x4"),
        ("roentgen_v2", "v5p:2x2x4"),
        *((None, shape) for shape in ("v5e:4x4", "v5e:8x8", "v6e:4x4", "v6e:8x8", "v5p:2x2x4")),
    ],
)
def test_no_image_of_a_slice_is_under_another_caption(recipe, topology):
    """The shards of all devices, in the mesh's order, are the batch of a single process."""
    axes, size = {"data": -1}, 128
    if recipe is not None:
        config = load_config(ROOT / "configs" / f"{recipe}.py")
        axes, size = config.mesh.to_dict(), config.data.batch_size
    mesh = meshes.make_mesh(axes, slice_devices(topology))
    split = RecordList(phantom_records(num_images=size + 5, image_size=16), "train", "x")
    columns = {"caption": np.arange(len(split))}
    settings = {"batch_size": size, "columns": columns, "image_size": 16}
    source = Source(split, size, columns)

    def batches(rows=None):
        """One of training, and the first two of encoding; the last of these is filled up."""
        with contextlib.closing(make_loader([source], image_size=16, seed=3, rows=rows)) as loader:
            trained = next(loader)
        return [trained, *eval_batches(split, num_examples=None, rows=rows, **settings)]

    processes = sorted({device.process_index for device in mesh.devices.flat})
    loaded = {p: batches(meshes.process_rows(mesh, size, p)) for p in processes}
    per_shard = size // meshes.batch_shards(mesh)
    for i, whole in enumerate(batches()):
        used = dict.fromkeys(processes, 0)
        shards = []
        for device in mesh.devices.reshape(-1):  # tensor is 1: a shard is a device
            process = device.process_index
            at = slice(used[process], used[process] + per_shard)
            shards.append({name: x[at] for name, x in loaded[process][i].items()})
            used[process] += per_shard
        assert set(used.values()) == {size // len(processes)}
        for name, rows in whole.items():
            together = np.concatenate([shard[name] for shard in shards])
            np.testing.assert_array_equal(together, rows, name)


def test_hosts_of_one_tensor_group_load_the_same_rows():
    mesh = meshes.make_mesh({"data": 2, "tensor": 8}, slice_devices("v5e:4x4"))
    assert owners(mesh) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    "topology, sizes",
    [
        ("v6e:8x8", (16, 4, 1)),
        ("v6e:4x4", (2, 8, 1)),
        ("v5p:4x4x4", (32, 2, 1)),
        ("v4:4x4x4", (2, 32, 1)),
        ("v4:2x2x4", (2, 2, 4)),
    ],
)
def test_axes_of_the_torus_are_split_on_every_generation(topology, sizes):
    devices = slice_devices(topology)
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)
    assert tuple(mesh.shape.values()) == sizes
    assert set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize(
    "sizes, across",
    [((4, 8, 1), "data"), ((1, 16, 2), "fsdp"), ((-1, 1, 1), "data"), ((2, 4, 4), "data")],
)
def test_several_slices_are_crossed_by_data_before_fsdp(sizes, across):
    devices = slice_devices("v5e:4x4", slices=2)
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)
    assert set(mesh.devices.flat) == set(devices)
    number = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    axis = meshes.AXES.index(across)
    half = mesh.devices.shape[axis] // 2
    assert (np.take(number, range(half), axis) == 0).all()
    assert (np.take(number, range(half, 2 * half), axis) == 1).all()


def test_a_tensor_axis_across_slices_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"mesh.tensor = 32 .* 2 TPU slices.*multiple of 2"):
        meshes.make_mesh({"tensor": 32}, slice_devices("v5e:4x4", slices=2))


def test_devices_with_holes_between_them_keep_their_order(caplog):
    devices = [slice_devices("v4:4x4x4")[i] for i in (0, 3)]  # a diagonal
    mesh = meshes.make_mesh({"data": -1}, devices)
    assert list(mesh.devices.flat) == devices
    assert "taken in their own order" in caplog.text


_DESCRIBE = """
import json, sys
from jax.experimental import topologies
keys = ("id", "process_index", "coords", "core_on_chip", "device_kind", "platform")
for name, settings in json.loads(sys.argv[1]):
    result = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    print(json.dumps([[getattr(device, key) for key in keys] for device in result]))
"""


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("generation", ["v4", "v5e", "v5p", "v6e"])
def test_the_fake_devices_are_those_of_libtpu(generation):
    flat = generation in ("v5e", "v6e")
    shapes = ("4x4", "8x8") if flat else ("2x2x4", "4x4x4")
    settings = [{}, {"num_slices": 2}]
    if generation == "v4":
        settings = [{**extra, "chip_config_name": "megacore"} for extra in settings]
    asked = [(f"{generation}:{shape}", extra) for shape in shapes for extra in settings]
    environment = {
        **os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": {"v5e": "v5litepod-16", "v4": "v4-32"}.get(
            generation, f"{generation}-16"
        ),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _DESCRIBE, json.dumps(asked)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for (name, extra), line in zip(asked, done.stdout.splitlines(), strict=True):
        fakes = slice_devices(name, extra.get("num_slices", 1))
        mine = [
            [fake.id, fake.process_index, list(fake.coords), 0, fake.device_kind, "tpu"]
            for fake in fakes
        ]
        assert json.loads(line) == mine, name
