"""What every program does before its first JAX computation."""

import ctypes
import os
import platform
from pathlib import Path

import jax


def start_devices() -> None:
    """Joins the other hosts if this is a multi-host run, and keeps compiled programs between runs.

    Compiled programs go to JAX_COMPILATION_CACHE_DIR, or ~/.cache/medsd_jax/xla.
    """
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or hosts > 1:
        jax.distributed.initialize()
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "medsd_jax" / "xla"))
    if jax.default_backend() == "cpu":
        keep_freed_memory()


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
