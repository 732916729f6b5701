"""What every program does before its first JAX computation."""

import os
from pathlib import Path

import jax


def start_devices() -> None:
    """Joins the other hosts if this is a multi-host run, and keeps compiled programs between runs.

    Compiled programs go to JAX_COMPILATION_CACHE_DIR, or ~/.cache/medsd_jax/xla.
    """
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("TPU_WORKER_HOSTNAMES", "").count(","):
        jax.distributed.initialize()
    if not jax.config.jax_compilation_cache_dir:
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "medsd_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
