"""What every program sets up before its first computation."""

import os
import platform
import socket
import subprocess
import sys

import jax
import pytest

from medsd_jax.errors import UserError
from medsd_jax.parallel import start
from medsd_jax.parallel.launch import HostFlags

COUNT_PAGE_FAULTS = """
import resource
import numpy as np
from medsd_jax.parallel.start import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    def second_time(keep: bool) -> int:
        code = COUNT_PAGE_FAULTS.format(keep=keep)
        return int(subprocess.check_output([sys.executable, "-c", code], text=True))

    # NumPy asks for huge pages, so the number without may be 32 as well as 16,384.
    assert second_time(keep=True) < 8 <= second_time(keep=False)


class Started:
    """Stands for jax.distributed, and for devices of as many processes as were joined."""

    def __init__(self, monkeypatch, processes: int | None = None):
        self.calls = []
        self.joined = False
        monkeypatch.setattr(jax.distributed, "initialize", self.initialize)
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: self.joined)
        self.processes = processes
        monkeypatch.setattr(jax, "process_count", lambda: self.count)
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_", "PMI", "JAX_NUM", "JAX_COORD", "TPU_")):
                monkeypatch.delenv(name)

    @property
    def count(self):
        return self.processes or (self.calls[-1][0][1] if self.calls and self.calls[-1][0] else 1)

    def initialize(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        self.joined = True


@pytest.mark.parametrize(
    "variables, flags, joined",
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
         None, ("a:1", 2, 1)),
        ({}, HostFlags("a:1", 4, 3), ("a:1", 4, 3)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-2]",
          "SLURM_JOB_ID": "5"}, None, ("n1:61445", 2, 1)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, HostFlags("a:1"),
         ("a:1", 2, 1)),
    ],
)  # fmt: skip
def test_processes_are_joined_by_count_and_number(variables, flags, joined, monkeypatch, caplog):
    started = Started(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level("INFO", logger="medsd_jax"):
        start.start_devices(flags)
    (args, kwargs), = started.calls  # fmt: skip
    assert args == joined
    assert kwargs["cluster_detection_method"] == "deactivate"
    assert f"of {joined[1]}, {jax.device_count()} devices" in caplog.text


def test_a_single_process_joins_nobody(monkeypatch):
    started = Started(monkeypatch)
    start.start_devices()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    start.start_devices()
    assert not started.calls


def test_the_hosts_that_gke_names_are_joined_by_jax(monkeypatch):
    started = Started(monkeypatch)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    start.start_devices()
    assert started.calls == [((), {})]


def test_tasks_that_did_not_join_are_refused(monkeypatch):
    Started(monkeypatch, processes=1)
    with pytest.raises(UserError, match=r"started 2 processes, but each has cpu devices of its"):
        start.start_devices(HostFlags("a:1", 2, 1))


def test_devices_of_processes_that_were_not_joined_are_refused(monkeypatch):
    Started(monkeypatch, processes=4)
    with pytest.raises(UserError, match="devices are those of 4 processes, which were not joined"):
        start.start_devices()


def test_a_failing_join_is_one_line(monkeypatch):
    Started(monkeypatch)

    def fail(*args, **kwargs):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier\ntimed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"2 processes.*at a:1, could.*Barrier timed out;.*=1$"):
        start.start_devices(HostFlags("a:1", 2, 1))


def test_a_command_of_one_process_refuses_to_be_several(monkeypatch):
    started = Started(monkeypatch)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "3")
    with pytest.raises(UserError, match="export runs in one process, but Open MPI started 3"):
        start.start_devices(alone="export")
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(UserError, match="this TPU slice has 2 hosts"):
        start.start_devices(alone="export")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    start.start_devices(alone="export")
    assert not started.calls


@pytest.fixture
def tpu_vm(monkeypatch, tmp_path):
    """A virtual machine with a chip, whose metadata server is at 127.0.0.1, port 80."""
    started = Started(monkeypatch)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1")
    monkeypatch.setattr(start, "_TPU_CHIPS", (str(tmp_path),))
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: name)
    return started


def test_a_tpu_vm_asks_the_metadata_server(tpu_vm, monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(start.socket, "create_connection", connect)
    start.start_devices()
    assert asked == [("127.0.0.1", 80)]
    assert tpu_vm.calls == [((), {"cluster_detection_method": "gcetpu"})]


def test_a_machine_without_metadata_server_goes_on_alone(tpu_vm, monkeypatch, caplog):
    def connect(address, timeout):
        assert timeout < 5
        raise TimeoutError("timed out")

    monkeypatch.setattr(start.socket, "create_connection", connect)
    start.start_devices()
    assert not tpu_vm.calls
    assert "127.0.0.1, which names the hosts" in caplog.text


def test_no_metadata_server_is_asked_where_no_tpu_is(monkeypatch):
    started = Started(monkeypatch)

    def connect(*args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(start.socket, "create_connection", connect)
    start.start_devices()
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    start.start_devices()
    assert not started.calls


SHARE_A_MESH = """
import logging
import jax
logging.basicConfig(level=logging.INFO)
from medsd_jax.parallel.start import start_devices
start_devices()
from medsd_jax.parallel import mesh as meshes
from medsd_jax.parallel.multihost import fetch, is_main_process
import numpy as np
mesh = meshes.make_mesh({"data": -1})
rows = meshes.process_rows(mesh, 8)
x = meshes.put_batch({"x": rows.astype(np.float32)}, mesh)["x"]
assert len(rows) == 4 and fetch(x).tolist() == list(range(8))
print(jax.process_index(), is_main_process(), float(jax.jit(jax.numpy.sum)(x)))
"""


@pytest.mark.parametrize("scheduler", [False, True])
def test_two_processes_started_by_variables_alone_share_a_mesh(scheduler):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    if scheduler:
        common = {
            "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "2", "JAX_COORDINATOR_PORT": str(port),
        }  # fmt: skip
        numbered = ("SLURM_PROCID", "SLURM_LOCALID")
    else:
        common = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
        numbered = ("JAX_PROCESS_ID",)
    common |= {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE_A_MESH],
            env={**os.environ, **common, **dict.fromkeys(numbered, str(number))},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in started]
    last = [output.splitlines()[-1:] for output, _ in outputs]  # after lines of the library Gloo
    assert last == [["0 True 28.0"], ["1 False 28.0"]], outputs
    for number, (_, log) in enumerate(outputs):
        assert f"process {number} of 2, 4 devices, 2 of them here" in log
