"""The stored outputs are the references' own; runs where those of references.py are installed."""

import importlib.util

import numpy as np
import pytest

pytest.importorskip("torch")
MISSING = [
    name
    for name in ("torchvision", "torchxrayvision", "pytorch_fid", "cleanfid")
    if importlib.util.find_spec(name) is None
]
if MISSING:
    pytest.skip(
        f"needs {', '.join(MISSING)}: see references.py for how to install them aside",
        allow_module_level=True,
    )

from tests.vision import cases, references  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("case", cases.CASES)
def test_stored_outputs(case):
    golden = cases.golden()
    assert references.shapes(references.network(case)) == cases.golden_shapes()[case]
    for name, theirs in references.outputs(case).items():
        stored = golden[f"{case}/{name}"]
        # Threads and versions of torch sum in other orders.
        assert np.abs(theirs - stored).max() <= 5e-6 * np.abs(stored).max(), name


@pytest.mark.parametrize("name", cases.IMAGES)
@pytest.mark.parametrize("chain", cases.CHAINS)
def test_stored_inputs(chain, name):
    theirs = references.preprocessed(chain, name)
    stored = cases.golden()[f"{chain}/{name}"]
    assert (
        np.abs(theirs[:: cases.EVERY, :: cases.EVERY] - stored).max() <= 1e-6 * np.abs(stored).max()
    )
    ours = cases.CHAINS[chain](cases.image(name))  # every pixel of it
    assert np.abs(ours - theirs).max() <= 3e-5 * np.abs(theirs).max()
