"""How many processes make this run, which one this is, and where the first one is.

The flags say it, JAX's variables do, or those of whatever started the processes: Slurm, an MPI or
torchrun. JAX finds some of them itself, but gives each Slurm task a single GPU, knows of Open MPI
the releases before 5 only, and reads no variable for the number of a process.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medsd_jax.errors import UserError

ALONE = "JAX_NUM_PROCESSES=1"
"""What a user sets so that a process joins no others."""

_FIRST_PORT, _PORTS = 61440, 4096  # the upper end of the ports that no service is registered for


@dataclass(frozen=True)
class HostFlags:
    """What the command line says of the processes; None is left to the environment."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclass(frozen=True)
class Launch:
    """One process among several.

    Attributes:
        by: who started them, for messages.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        coordinator: HOST:PORT of process 0, which all can reach; None if nobody says.
        local_devices: GPUs that this process takes of those it sees; all of them if None.
    """

    by: str
    num_processes: int | None
    process_id: int | None
    coordinator: str | None
    local_devices: list[int] | None = None


def find_launch(flags: HostFlags, environment: Mapping[str, str]) -> Launch | None:
    """The processes that this one belongs to.

    Args:
        flags: of the command line; they come before JAX's variables, and those before the
            scheduler's.
        environment: the process' variables.

    Returns:
        All that is to be known, or None for a single process.

    Raises:
        UserError: something is said of several processes, but not enough to join them.
    """
    if asked_to_be_alone(flags, environment):
        if flags.process_id:
            raise UserError(
                f"--process_id {flags.process_id} and a single process contradict each other: "
                "leave out one of --process_id and --num_processes"
            )
        return None
    count = _first(flags.num_processes, _number(environment, "JAX_NUM_PROCESSES"))
    coordinator = _first(flags.coordinator, environment.get("JAX_COORDINATOR_ADDRESS") or None)
    index = _first(
        flags.process_id,
        _number(environment, "JAX_PROCESS_ID"),
        _number(environment, "JOB_COMPLETION_INDEX") if coordinator else None,  # Kubernetes
    )
    given = [x is not None for x in (coordinator, count, index)]
    started = None if all(given) else _started_by_scheduler(environment)
    if started is None and not any(given):
        return None
    if started is None and flags == HostFlags() and tpu_hosts(environment) > 1:
        return None  # JAX takes the address from its variable, the rest from those of the slice
    if started is not None and count not in (None, started.num_processes):
        raise UserError(
            f"{count} processes were asked for by --num_processes or JAX_NUM_PROCESSES, but "
            f"{started.by} started {started.num_processes}: leave the number out, or set {ALONE}"
        )
    started = started or Launch("the command line or JAX's variables", None, None, None)
    return _checked(
        Launch(
            started.by,
            _first(count, started.num_processes),
            _first(index, started.process_id),
            _first(coordinator, started.coordinator),
            started.local_devices,
        )
    )


def asked_to_be_alone(flags: HostFlags | None, environment: Mapping[str, str]) -> bool:
    """Whether the flags or the variables say that this process makes a run by itself."""
    given = None if flags is None else flags.num_processes
    return _first(given, _number(environment, "JAX_NUM_PROCESSES")) == 1


def tpu_hosts(environment: Mapping[str, str]) -> int:
    """How many hosts the variables of a TPU slice on GKE name; 1 if there is none."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = _number(environment, "MEGASCALE_NUM_SLICES") or 1
    return slices * (names.count(",") + 1)


def _checked(launch: Launch) -> Launch:
    ways = {
        "how many there are: --num_processes or JAX_NUM_PROCESSES": launch.num_processes,
        "which one this is: --process_id or JAX_PROCESS_ID": launch.process_id,
        "where process 0 is: --coordinator HOST:PORT or JAX_COORDINATOR_ADDRESS": (
            launch.coordinator
        ),
    }
    count, index, coordinator = launch.num_processes, launch.process_id, launch.coordinator
    if count is not None and count < 1:
        raise UserError(f"--num_processes {count} cannot be: a run has at least one process")
    missing = [way for way, value in ways.items() if value is None]
    if missing or count is None or index is None or coordinator is None:
        raise UserError(
            f"this is one of several processes, says {launch.by}; say, too, {'; '.join(missing)} "
            f"(or {ALONE} to run this one alone)"
        )
    if not 0 <= index < count:
        raise UserError(
            f"process {index} of {count} cannot be: --process_id counts from 0 to "
            "--num_processes - 1"
        )
    port = re.fullmatch(r"[^\s/]+:(\d{1,5})", coordinator)
    if port is None or not 0 < int(port[1]) < 65536:
        raise UserError(f"--coordinator {coordinator} is not of the form HOST:PORT")
    return launch


def _started_by_scheduler(environment: Mapping[str, str]) -> Launch | None:
    for find in (_slurm, _mpi, _torchrun):
        if (result := find(environment)) is not None:
            return result
    return None


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    count = _number(environment, "SLURM_STEP_NUM_TASKS") or _number(environment, "SLURM_NTASKS")
    # A shell that srun gave a terminal is one process, whatever the number of tasks.
    if count is None or count < 2 or "SLURM_PTY_PORT" in environment:
        return None
    index = _number(environment, "SLURM_PROCID")
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes is None and not index:
        raise UserError(
            f"Slurm has {count} tasks (SLURM_NTASKS), but this process was not started by srun: "
            f"start it with srun, or set {ALONE} to run one process alone"
        )
    nodes = nodes or environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    job, step = (_number(environment, f"SLURM_{x}_ID") or 0 for x in ("JOB", "STEP"))
    port = environment.get("JAX_COORDINATOR_PORT") or _FIRST_PORT + (job + step) % _PORTS
    bound = environment.get("SLURM_GPU_BIND", "none") != "none"
    return Launch(
        "Slurm", count, index,
        f"{first_host(nodes)}:{port}" if nodes else None,
        None if bound or "SLURM_GPUS_PER_TASK" in environment else _gpus_of(
            environment, _number(environment, "SLURM_LOCALID"), _tasks_on_node(environment)
        ),
    )  # fmt: skip


def first_host(nodes: str) -> str:
    """The first name of a list as Slurm writes it: "gpu[03-05,9],login" -> "gpu03"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _tasks_on_node(environment: Mapping[str, str]) -> int | None:
    """Of "2(x3),1", by the number of this node."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text or ""):
        counts += [int(count)] * int(times or 1)
    node = _number(environment, "SLURM_NODEID") or 0
    return counts[node] if node < len(counts) else None


# Who, how many processes, which one, and the same two numbers on this host.
_MPI = (
    ("Open MPI", *(f"OMPI_COMM_WORLD_{x}" for x in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"))),
    ("MVAPICH", *(f"MV2_COMM_WORLD_{x}" for x in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"))),
    ("MPI", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)


def _mpi(environment: Mapping[str, str]) -> Launch | None:
    for name, *keys in _MPI:
        count, index, here, index_here = (_number(environment, key) for key in keys)
        if count is None or count < 2:
            continue
        # One name for all processes of a job, of Open MPI 5, 4 and Hydra.
        names = (environment.get(key) for key in ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid",
                                                  "PMI_PORT"))  # fmt: skip
        job = next((value for value in names if value), "")
        port = environment.get("JAX_COORDINATOR_PORT") or (
            _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS
        )
        # Open MPI 4 tells where mpirun runs: beside process 0, by its default.
        address = re.search(
            r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", environment.get("OMPI_MCA_orte_hnp_uri", "")
        )
        host = None
        if here == count:
            host = "localhost"
        elif address is not None:
            host = address[1] or f"[{address[2]}]"
        return Launch(
            name, count, index, f"{host}:{port}" if host else None,
            _gpus_of(environment, index_here, here),
        )  # fmt: skip
    return None


def _torchrun(environment: Mapping[str, str]) -> Launch | None:
    count, index = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
    host, port = environment.get("MASTER_ADDR"), _number(environment, "MASTER_PORT")
    if count is None or count < 2 or index is None:
        return None
    # torchrun itself listens at the port that it names.
    after = 1 if "TORCHELASTIC_RUN_ID" in environment else 0
    here, local = (_number(environment, f"LOCAL_{x}") for x in ("WORLD_SIZE", "RANK"))
    return Launch(
        "torchrun (WORLD_SIZE)", count, index,
        f"{host}:{port + after}" if host and port else None,
        _gpus_of(environment, local, here),
    )  # fmt: skip


def _gpus_of(
    environment: Mapping[str, str], index: int | None, count: int | None
) -> list[int] | None:
    """Which of the GPUs that a process sees it takes, as one of several processes on its host."""
    if index is None or count == 1:
        return None
    seen = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    gpus = len(seen.split(",")) if seen else None
    if gpus == 1:
        return None  # it was given its own
    if gpus is None or count is None or gpus % count:
        return [index]
    each = gpus // count
    return list(range(index * each, (index + 1) * each))


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise UserError(f"the variable {name} is {text}: it must be a whole number")
    return int(text)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
