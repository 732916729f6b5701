"""Meshes, batches on them, and the mistakes that can be made."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from medsd_jax.errors import UserError
from medsd_jax.parallel import mesh as meshes
from medsd_jax.parallel.multihost import on_every_host, put_global
from medsd_jax.parallel.sharding import tree_shardings


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"data": -1}, (8, 1, 1)),
        ({"data": -1, "fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 1, "tensor": 8}, (1, 1, 8)),
    ],
)
def test_sizes(sizes, expected):
    mesh = meshes.make_mesh(sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == expected
    assert meshes.batch_shards(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "mesh.data = 3.*8 device"),
        ({"data": -1, "fsdp": 3}, "mesh.fsdp = 3.*8 device"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"data": -1, "fsdp": 0}, "mesh.fsdp = 0"),
        ({"data": -1, "fsdp": 16}, "mesh.fsdp = 16"),
        ({"data": 8, "pipeline": 1}, "'pipeline'"),
    ],
)
def test_wrong_sizes(sizes, message):
    with pytest.raises(UserError, match=message):
        meshes.make_mesh(sizes)


def test_batch_lies_on_data_and_fsdp():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = np.arange(8, dtype=np.float32)[:, None]
    x = meshes.put_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(x, rows)
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 1)}


@pytest.mark.parametrize(("size", "steps", "say"), [(12, 1, "16"), (0, 1, "8"), (24, 2, "32")])
def test_batch_that_the_devices_do_not_divide(size, steps, say):
    mesh = meshes.make_mesh({"data": 4, "fsdp": 2})
    with pytest.raises(UserError, match=f"data.batch_size = {size} .*such as {say}"):
        meshes.check_batch(size, mesh, steps)


def test_batch_that_the_devices_divide():
    mesh = meshes.make_mesh({"data": 2, "tensor": 4})
    meshes.check_batch(2, mesh)
    meshes.check_batch(12, mesh, 3)


def test_params_there_and_back():
    mesh = meshes.make_mesh({"fsdp": 8})
    params = {"a.kernel": np.arange(64, dtype=np.float32).reshape(4, 16)}
    placed = put_global(params, tree_shardings(params, mesh))
    assert placed["a.kernel"].addressable_shards[0].data.shape == (4, 2)
    np.testing.assert_array_equal(on_every_host(placed)["a.kernel"], params["a.kernel"])


def test_params_of_several_processes(monkeypatch):
    """Each process puts its own shards; here one process owns all of them."""
    mesh = meshes.make_mesh({"fsdp": 8})
    params = {"a.kernel": np.arange(64, dtype=np.float32).reshape(4, 16)}
    shardings = tree_shardings(params, mesh)
    plainly = put_global(params, shardings)["a.kernel"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    placed = put_global(params, shardings)["a.kernel"]
    assert placed.sharding == plainly.sharding
    np.testing.assert_array_equal(placed, plainly)


V5E_4X4 = (0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3)
"""Process of each shard of a batch on a v5e 4x4 with data=4, fsdp=4, as libtpu describes it."""


class _Placed:
    """A batch sharding of devices that are not here."""

    def __init__(self, owners, shards):
        self._owners, self._shards = owners, shards

    def devices_indices_map(self, shape):
        size = shape[0] // self._shards
        return {
            _Device(owner, i): (slice(at * size, (at + 1) * size),)
            for i, owner in enumerate(self._owners)
            for at in [i * self._shards // len(self._owners)]
        }


class _Device(NamedTuple):
    process_index: int
    id: int


def test_rows_of_a_process_are_those_that_its_devices_hold(monkeypatch):
    monkeypatch.setattr(meshes, "batch_sharding", lambda mesh: _Placed(V5E_4X4, 16))
    rows = [meshes.process_rows(None, 32, process) for process in range(4)]
    assert rows[0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert rows[1].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert sorted(np.concatenate(rows)) == list(range(32))


def test_processes_that_share_a_shard_load_all_of_it(monkeypatch):
    """A tensor axis of eight devices over two processes: the batch is one shard on both."""
    monkeypatch.setattr(meshes, "batch_sharding", lambda mesh: _Placed((0,) * 4 + (1,) * 4, 1))
    for process in (0, 1):
        assert meshes.process_rows(None, 8, process).tolist() == list(range(8))


def test_a_batch_keeps_its_order_on_permuted_devices():
    """Row i of the global batch is at place i, whatever the order of the devices."""
    devices = [jax.devices()[i] for i in (0, 1, 4, 5, 2, 3, 6, 7)]
    mesh = Mesh(
        np.array(devices).reshape(4, 2, 1),
        meshes.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    rows = meshes.process_rows(mesh, 16)
    placed = meshes.put_batch({"x": 10 * rows[:, None]}, mesh)["x"]
    assert placed.sharding == meshes.batch_sharding(mesh)
    np.testing.assert_array_equal(placed[:, 0], 10 * np.arange(16))
