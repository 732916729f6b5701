r"""Low-rank adaptation (LoRA, arXiv 2106.09685): a small difference beside a frozen weight.

Symbols: W a frozen kernel, A and B the trained matrices of rank r, alpha a constant.

    (1)  W' = W + (alpha / r) A B        LoRA eq. 3 in our order: x W', A [I, r], B [r, O]

A is drawn like torch's linear layers and B is zero, so training starts at the model as it was. A
kernel of a convolution, [kH, kW, I, O], has A [kH, kW, I, r] and B [1, 1, r, O].
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from medsd_jax.adaptation.adaptation import NEVER_TRAINED, Adaptation, compile_patterns
from medsd_jax.arrays import Params
from medsd_jax.errors import UserError

DOWN, UP = "lora_A", "lora_B"
"""PEFT's names for A and B."""


@dataclass(frozen=True)
class LoraSettings:
    """Which weights are adapted, and how far.

    Attributes:
        targets: regular expressions, searched for in the names of kernels.
        rank: r.
        alpha: the difference is multiplied by alpha / rank.
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float


def lora(settings: LoraSettings) -> Adaptation:
    r"""Trains a low-rank difference to every kernel whose name matches.

    Args:
        settings: e.g. targets ``(r"^unet\..*\.to_(q|k|v|out\.0)\.",)``.

    Raises:
        UserError: a value is out of its range; at init, when a pattern matches no kernel, or
            something that is none.
    """
    if settings.rank < 1:
        raise UserError(f"adaptation.lora_rank = {settings.rank} must be at least 1")
    if not 0 < settings.alpha < math.inf:
        raise UserError(f"adaptation.lora_alpha = {settings.alpha} must be above 0")
    compiled = compile_patterns(settings.targets)

    def init(params: Params, rng: jax.Array) -> Params:
        names = _matching(compiled, params)
        trainable = {}
        for name, key in zip(names, jax.random.split(rng, len(names)), strict=True):
            *space, fan_in, fan_out = params[name].shape
            bound = 1.0 / math.sqrt(math.prod(space) * fan_in)
            shape = (*space, fan_in, settings.rank)
            down, up = matrix_names(name)
            trainable[down] = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
            trainable[up] = jnp.zeros((*(1 for _ in space), settings.rank, fan_out))
        return trainable

    def apply(frozen: Params, trainable: Params) -> Params:
        return merge(frozen, trainable, settings.alpha / settings.rank)

    return Adaptation(init, apply)


def merge(params: Params, matrices: Params, scale: float | Mapping[str, float]) -> Params:
    """Adds the differences to the kernels, (1).

    Args:
        params: the frozen weights.
        matrices: A and B of some of their kernels, under the names of `matrix_names`.
        scale: alpha / r; one for all, or kernel's name -> its own.

    Returns:
        All weights, those without matrices unchanged.
    """
    merged = dict(params)
    for name in adapted_kernels(matrices):
        down, up = (matrices[matrix] for matrix in matrix_names(name))
        factor = scale if isinstance(scale, int | float) else scale[name]
        kernel = params[name]
        # The 1x1 convolution B only mixes A's r outputs, at every place alike.
        difference = jnp.einsum(
            "...ir,ro->...io", down, up.reshape(up.shape[-2:]), precision="highest"
        )
        merged[name] = kernel + factor * difference.astype(kernel.dtype)
    return merged


def matrix_names(kernel: str) -> tuple[str, str]:
    """Names of A and B of a kernel: "x.to_q.kernel" -> "x.to_q.lora_A.kernel", "...lora_B..."."""
    module = kernel.removesuffix(".kernel")
    return f"{module}.{DOWN}.kernel", f"{module}.{UP}.kernel"


def adapted_kernels(matrices: Mapping[str, jax.Array]) -> list[str]:
    """The kernels to which these matrices belong, in their order."""
    end = f".{DOWN}.kernel"
    return [f"{name.removesuffix(end)}.kernel" for name in matrices if name.endswith(end)]


def _matching(patterns: Sequence[re.Pattern], params: Params) -> list[str]:
    kernels = [
        name for name in params if name.endswith(".kernel") and not NEVER_TRAINED.search(name)
    ]
    for pattern in patterns:
        if not any(pattern.search(name) for name in kernels):
            raise UserError(
                f"train pattern {pattern.pattern!r} matches none of the {len(kernels)} kernels, "
                "and LoRA adapts nothing else"
            )
    return [name for name in kernels if any(p.search(name) for p in patterns)]
