"""What every program does before its first JAX computation."""

import os
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
