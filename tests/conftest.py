"""Settings of all tests: virtual devices, strict numerics, no network."""

import importlib.util
import os
import tempfile
from pathlib import Path

# Before jax or torch is imported. For the GPU tests: JAX_PLATFORMS=cuda,cpu pytest -m gpu
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share a GPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch spins on busy cores; jax runs beside it
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
_DEVICES = "--xla_force_host_platform_device_count=8"
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).parent.parent

# Shapes and dtypes in signatures are checked at every call; under jit, at trace time only.
install_import_hook(
    ["medsd_jax.diffusion", "medsd_jax.evaluation", "medsd_jax.sampling"], "beartype.beartype"
)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
_CACHE = ROOT / ".jax_cache"
if not os.access(ROOT, os.W_OK):
    _CACHE = Path(tempfile.gettempdir()) / "medsd_jax_tests"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run, each with its reason."""
    reasons = {
        "torch": None if _TORCH else "needs torch and diffusers: pip install 'medsd_jax[torch]'",
        "gpu": None if jax.default_backend() == "gpu" else "needs a GPU and JAX_PLATFORMS=cuda,cpu",
        "tpu_compile": None if importlib.util.find_spec("libtpu") else "needs libtpu: jax[tpu]",
    }
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file_at_a_time():
    """Compiled programs are dropped after each file: over all files they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_assets() -> Path:
    """Folder of the real data, which lies outside the repository: $MEDSD_ASSETS sets it."""
    folder = Path(os.environ.get("MEDSD_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDSD_ASSETS to its folder")
    return folder


@pytest.fixture(scope="session")
def classifier():
    """One that has learnt nothing, of two findings and images of 24 x 24."""
    from medsd_jax.classifier.model import Classifier
    from medsd_jax.vision.densenet import random_params
    from tests.tiny.classifier import tiny_network

    network = tiny_network()
    params = random_params(network, np.random.default_rng(0))
    slope, intercept = np.float32([2.0, 1.0]), np.float32([-0.5, 0.0])
    return Classifier(network, ("effusion", "nodule"), 24, "pad", params, slope, intercept)
