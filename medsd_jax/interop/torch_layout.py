"""Weights between torch's layout and ours: one rule a leaf, and a check that nothing is lost.

    ours                         torch
    kernel    [I, O]             weight [O, I]            linear
    kernel    [kH, kW, I, O]     weight [O, I, kH, kW]    convolution
    scale     [C]                weight [C]               norm
    embedding [V, D]             weight [V, D]
    bias      [O]                bias   [O]
    mean      [C]                running_mean [C]         frozen batch norm
    var       [C]                running_var [C]

A weight that torch keeps outside of any layer has its own name on both sides, and the same axes:
the tokens and positions of vision transformers, and their factors lambda1.

The path before the leaf is the same on both sides, so there is no table of names. Transposed arrays
are views: a file that was read and is written again costs no second copy of the model.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.interop.safetensors_io import require_finite

_TO_TORCH_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}
_SHOWN = 3  # names a message lists of each kind of misfit; a U-Net has 686
_LONGEST = 120  # characters of a name in a message
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Words that torch's wrappers put into the names of a model's weights, and which do."""
_TORCH_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    **{name: name for name in ("class_embedding", "cls_token", "position_embeddings", "lambda1")},
}


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Gives weights torch's names and axis order.

    Args:
        params: our names (no component prefix) -> jax or numpy arrays of any dtype.

    Returns:
        torch names -> numpy arrays of the same dtype; kernels are transposed views.
    """
    tensors = {_torch_name(name): _to_torch_array(name, x) for name, x in params.items()}
    assert len(tensors) == len(params), "two weights share a torch name"
    return tensors


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    where: str,
    *,
    owner: str = "the config.json beside them",
    advice: str = "take both from the same model",
) -> dict[str, np.ndarray]:
    """Gives a torch state dict our names and axis order; it must match `like` one to one.

    Args:
        state_dict: torch names -> numpy arrays of any dtype.
        like: our names -> anything with a `.shape`, what the module needs.
        where: the file or folder that the state dict came from, for the error.
        owner: what `like` was made from, for the error.
        advice: what to do where the two do not fit, for the error.

    Returns:
        our names in the order of `like` -> numpy arrays; kernels are transposed views.

    Raises:
        UserError: weights are missing, not expected or of the wrong shape, of which it names the
            first few and how many there are; or one is not finite.
    """
    expected = {_torch_name(name): _torch_shape(name, x.shape) for name, x in like.items()}
    _check_bijection({k: x.shape for k, x in state_dict.items()}, expected, where, owner, advice)
    for name in expected:
        require_finite(name, state_dict[name], where)
    return {name: _from_torch_array(name, state_dict[_torch_name(name)]) for name in like}


def _torch_name(name: str) -> str:
    head, _, leaf = name.rpartition(".")
    assert head and leaf in _TORCH_LEAF, f"{name!r} does not end in one of {sorted(_TORCH_LEAF)}"
    return f"{head}.{_TORCH_LEAF[leaf]}"


def _torch_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if not name.endswith(".kernel"):
        return tuple(shape)
    return tuple(shape[axis] for axis in _TO_TORCH_AXES[len(shape)])


def _to_torch_array(name: str, x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.transpose(_TO_TORCH_AXES[x.ndim]) if name.endswith(".kernel") else x


def _from_torch_array(name: str, x: np.ndarray) -> np.ndarray:
    return x.transpose(_FROM_TORCH_AXES[x.ndim]) if name.endswith(".kernel") else x


def _check_bijection(
    got: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
    where: str,
    owner: str,
    advice: str,
) -> None:
    if why := _wrapper(got, expected):
        raise UserError(f"{where}: {why}")
    missing = sorted(expected.keys() - got.keys())
    extra = sorted(got.keys() - expected.keys())
    reshaped = sorted(
        name for name in expected.keys() & got.keys() if tuple(got[name]) != tuple(expected[name])
    )
    parts = []
    if missing:
        listed = _few([f"{name} {list(expected[name])}" for name in missing])
        parts.append(f"{len(missing)} missing: {listed}")
    if extra:
        listed = _few([f"{name} {list(got[name])}" for name in extra])
        parts.append(f"{len(extra)} not expected: {listed}")
    if reshaped:
        listed = _few(
            [f"{name} {list(got[name])} instead of {list(expected[name])}" for name in reshaped]
        )
        parts.append(f"{len(reshaped)} of the wrong shape: {listed}")
    if parts:
        raise UserError(f"{where}: the weights do not fit {owner} ({'; '.join(parts)}); {advice}")


def _wrapper(got: Collection[str], expected: Collection[str]) -> str:
    """Says what most names carry beside those that are expected; nothing where they do not.

    Such a file was saved from within a wrapper. torch loads it without an error, as random weights.
    """
    expected = set(expected)
    odd = [name for name in got if name not in expected]
    counts: Counter[str] = Counter()
    for name in odd:
        words = name.split(".")
        bare = ".".join(word for word in words if word not in _WRAPPERS)
        if bare in expected:  # wrappers of single layers stand within the name
            counts["".join(f"{word}." for word in words if word in _WRAPPERS)] += 1
        else:
            rests = ((".".join(words[:i]) + ".", ".".join(words[i:])) for i in range(1, len(words)))
            counts.update(head for head, rest in rests if rest in expected)
    if not counts:
        return ""
    carried, count = counts.most_common(1)[0]
    if 2 * count < len(expected):
        return ""
    made_by = next((_WRAPPERS[w] for w in carried.split(".") if w in _WRAPPERS), "")
    by = f", as {made_by} leaves it" if made_by else ""
    return (
        f"{count} of {len(got)} names carry {carried!r}{by}, such as {_short(min(odd, key=len))}; "
        "save the model that is wrapped, or take the prefix off the names and write the file again"
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _few(names: list[str]) -> str:
    return ", ".join(map(_short, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
