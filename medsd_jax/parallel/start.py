"""What every program does before its first JAX computation."""

import contextlib
import ctypes
import importlib.util
import logging
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from medsd_jax.errors import UserError
from medsd_jax.interrupts import starting, take_signals_back
from medsd_jax.parallel.launch import (
    ALONE,
    HostFlags,
    Launch,
    asked_to_be_alone,
    find_launch,
    tpu_hosts,
)
from medsd_jax.parallel.together import watch_others

log = logging.getLogger(__name__)

_TPU_CHIPS = ("/dev/accel0", "/dev/vfio/0")


def start_devices(hosts: HostFlags | None = None, *, alone: str | None = None) -> None:
    """Joins the other processes of this run, and keeps compiled programs between runs.

    Compiled programs go to JAX_COMPILATION_CACHE_DIR, or ~/.cache/medsd_jax/xla.

    Args:
        hosts: what the command line says of the processes.
        alone: the name of a command that does its work in one process.

    Raises:
        UserError: several processes were started and cannot be joined. As runs of their own they
            would overwrite each other's files.
    """
    joined_before = jax.distributed.is_initialized()
    launch = None if joined_before else find_launch(hosts or HostFlags(), os.environ)
    others = 1 if joined_before or asked_to_be_alone(hosts, os.environ) else tpu_hosts(os.environ)
    if alone is not None:
        _check_alone(alone, launch, others)
    elif not joined_before:
        _join(launch, others)
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "medsd_jax" / "xla"))
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    _check_joined(launch)
    take_signals_back()
    watch_others()


def _check_alone(command: str, launch: Launch | None, tpu_hosts: int) -> None:
    """Raises UserError where a command that works in one process was started in several."""
    if launch is not None:
        raise UserError(
            f"{command} runs in one process, but {launch.by} started {launch.num_processes}: start "
            f"it once, in a job of one task, or set {ALONE}"
        )
    if tpu_hosts > 1 and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise UserError(
            f"{command} runs in one process, but this TPU slice has {tpu_hosts} hosts: start it on "
            "one of them with JAX_PLATFORMS=cpu, or on another machine"
        )


def _check_joined(launch: Launch | None) -> None:
    """Raises UserError if processes that belong together did not find each other; logs who is."""
    count, platform = jax.process_count(), jax.default_backend()
    if launch is not None and count not in (launch.num_processes, 1) and platform != "cpu":
        raise UserError(
            f"{launch.by} started {launch.num_processes} processes, but the {platform} devices are "
            f"those of {count}: start one process per host"
        )
    if launch is not None and count == 1:
        raise UserError(
            f"{launch.by} started {launch.num_processes} processes, but each has {platform} "
            f"devices of its own: they cannot share a run; start one, or set {ALONE} and give each "
            "its own folder"
        )
    if count > 1 and not jax.distributed.is_initialized():
        raise UserError(
            f"the {platform} devices are those of {count} processes, which were not joined: say "
            "on each where process 0 is, how many there are and which one it is, as the multi-host "
            "guide shows"
        )
    if count > 1:
        log.info(
            "process %d of %d, %d devices, %d of them here",
            jax.process_index(), count, jax.device_count(), jax.local_device_count(),
        )  # fmt: skip


def _join(launch: Launch | None, tpu_hosts: int) -> None:
    """Joins the processes; on a TPU VM whose variables name no hosts, the metadata server does."""
    if launch is not None:
        who = f"the {launch.num_processes} processes of {launch.by}, with process 0 at "
        with _waiting_for(f"{who}{launch.coordinator},"):
            local = None if os.environ.get("JAX_LOCAL_DEVICE_IDS") else launch.local_devices
            jax.distributed.initialize(
                launch.coordinator, launch.num_processes, launch.process_id,
                local_device_ids=local,
                # All is known. JAX's own search would give each Slurm task a single GPU.
                cluster_detection_method="deactivate",
            )  # fmt: skip
    elif tpu_hosts > 1:
        with _waiting_for("the hosts of this TPU slice"):
            jax.distributed.initialize()
    elif _on_gce_tpu() and not asked_to_be_alone(None, os.environ):
        with _waiting_for("the hosts of this TPU slice"):
            jax.distributed.initialize(cluster_detection_method="gcetpu")


@contextlib.contextmanager
def _waiting_for(who: str) -> Iterator[None]:
    try:
        with starting():  # for minutes, where the others do not come
            yield
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{who} could not be joined: {reason}; say where process 0 is, or run one process "
            f"alone with {ALONE}"
        ) from error
    take_signals_back()


def _on_gce_tpu() -> bool:
    """Whether this is a virtual machine with TPUs whose variables name no hosts.

    A metadata server that does not answer is asked for two seconds and then left alone.
    """
    names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (
        any(name in os.environ for name in names)
        or (platforms and "tpu" not in platforms)
        or importlib.util.find_spec("libtpu") is None
        or not any(Path(place).exists() for place in _TPU_CHIPS)
    ):
        return False
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    try:
        socket.create_connection((server, 80), timeout=2).close()
    except OSError as error:
        log.warning(
            "%s, which names the hosts of a TPU slice, does not answer (%s): this one runs alone",
            server, error,
        )  # fmt: skip
        return False
    return True


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next allocation. Elsewhere than glibc: nothing.

    It otherwise gives large buffers back, so that every run of every operation on the CPU gets new
    pages, zeroed one by one: attention over 1,024 tokens then takes three times as long. The
    process keeps its peak of memory until it ends.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
