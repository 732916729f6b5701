"""Published weights of the feature networks: torch's files to our parameters.

.safetensors is read without torch. .pth and .pt are pickles and need torch, which opens them in the
mode that builds tensors and runs nothing. A pickle of a whole module (torchxrayvision's own files)
or a TorchScript archive (clean-fid's Inception) is a program: it is refused, with the way out.

Where the names in a file are not the module's:

    features.denseblock1.denselayer1.norm.1.weight   DenseNets from before torchvision 0.3, also
                                                     torchxrayvision's: norm.1 is norm1
    bn.num_batches_tracked                           a counter that only training reads: left out
    AuxLogits.*                                      InceptionV3's second loss in training: left out
    op_threshs                                       torchxrayvision's operating points, which are
                                                     applied after the network: left out
"""

import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.interop.safetensors_io import read_weights_file
from medsd_jax.interop.torch_layout import from_torch

_log = logging.getLogger(__name__)

_OLD_DENSE_LAYER = re.compile(r"(.*\bdenselayer\d+\.(?:norm|conv))\.([12]\..+)")
_LEFT_OUT = (
    (re.compile(r".*\bnum_batches_tracked"), "num_batches_tracked"),
    (re.compile(r"AuxLogits\..*"), "AuxLogits.*"),
    (re.compile(r"op_threshs"), "op_threshs"),
)
_TORCH_SUFFIXES = (".pth", ".pt")


def load_weights(path: Path, like: Mapping[str, Any], network: str) -> dict[str, np.ndarray]:
    """Reads a weight file for a feature network.

    Args:
        path: .safetensors, .pth or .pt of a state dict.
        like: our names -> anything with a `.shape`: the second result of
            `medsd_jax.models.params.abstract`.
        network: the network's name, for errors and the log.

    Returns:
        our names in the order of `like` -> float32 arrays in our layout.

    Raises:
        UserError: the file cannot be read, or does not hold exactly this network's weights, all of
            them finite numbers; see `from_torch`.
    """
    tensors, left_out = modernize(read_state_dict(path))
    if left_out:
        counts = ", ".join(f"{count} {what}" for what, count in left_out.items())
        _log.info("%s: %s does not use: %s", path, network, counts)
    return from_torch(
        tensors, like, str(path), owner=network, advice="take the file that belongs to this network"
    )


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a torch state dict as it stands in the file.

    Args:
        path: .safetensors, .pth or .pt.

    Returns:
        torch names -> arrays in torch's layout; floating ones are cast to float32.

    Raises:
        UserError: no such file, another format, damaged, or no plain state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    if path.suffix == ".safetensors":
        return read_weights_file(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch_file(path)
    raise UserError(
        f"{path}: weights are read from .safetensors, .pth or .pt, not {path.suffix or 'this file'}"
    )


def modernize(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Gives the weights the names of today's torch class and leaves out what is no weight.

    Args:
        state_dict: torch names as they stand in the file -> arrays in torch's layout.

    Returns:
        The same arrays by today's names, and how many of each kind were left out.
    """
    kept: dict[str, np.ndarray] = {}
    left_out: Counter[str] = Counter()
    for name, x in state_dict.items():
        kind = next((what for pattern, what in _LEFT_OUT if pattern.fullmatch(name)), None)
        if kind is not None:
            left_out[kind] += 1
            continue
        match = _OLD_DENSE_LAYER.fullmatch(name)
        kept[match[1] + match[2] if match else name] = x
    return kept, dict(left_out)


def _read_torch_file(path: Path) -> dict[str, np.ndarray]:
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which is a program and is not run; take the same "
            "weights as a state dict (FID's Inception: pt_inception-2015-12-05-6726825d.pth), or "
            "in torch save torch.jit.load(FILE).state_dict() as .safetensors"
        )
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: {path.suffix} files are read with torch, which is not installed; run "
            "pip install '.[torch]' in the folder of medsd_jax, or where torch is, write the state "
            "dict with safetensors.torch.save_file and give that .safetensors file"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} {_why_refused(error)}") from error
    except Exception as error:  # a damaged pickle leads its reader anywhere
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged or cut short ({reason}); download it again") from error
    tensors = loaded if isinstance(loaded, Mapping) else {}
    if not tensors or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        inside = f"a dict of {', '.join(map(str, tensors))}" if tensors else type(loaded).__name__
        raise UserError(
            f"{path} holds {inside}, not a state dict of tensors; "
            "in torch, save the state dict alone and give that file"
        )
    return {
        name: (x.float() if x.is_floating_point() else x).numpy() for name, x in tensors.items()
    }


def _is_torchscript(path: Path) -> bool:
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); download it again") from error


def _why_refused(error: pickle.UnpicklingError) -> str:
    """What torch found in the pickle besides tensors, and what the user can do about it."""
    result = re.search(r"GLOBAL ([\w.]+)", str(error))
    if result is None:
        return f"is damaged or no file of torch ({' '.join(str(error).split())[:200]})"
    if result[1].startswith("torchxrayvision."):
        return (
            f"is a pickle of a whole module ({result[1]}): opening it runs its code, so it is not "
            'read; where torchxrayvision is installed, run python -c "import torchxrayvision as x,'
            " safetensors.torch as s; m = x.models.DenseNet(weights='densenet121-res224-all'); "
            "s.save_file(m.state_dict(), 'xrv.safetensors')\" and give xrv.safetensors"
        )
    return (
        f"is a pickle of more than tensors ({result[1]}): opening it can run any code, so it is "
        "not read; with the package that wrote it, load the module and write its state_dict() with "
        "safetensors.torch.save_file, then give that .safetensors file"
    )
