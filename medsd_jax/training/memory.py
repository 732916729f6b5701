"""What one device must hold for a train step, counted from the traced loss: no weights, no device.

    total = weights + moments + average + gradients + kept + block

`kept` is what the forward pass leaves behind for the backward pass, `block` what the backward pass
computes again of the largest rematerialised block, and the gradient of its largest array.
Gradients count twice where micro-batches are summed: the sum, and the one that is added to it. XLA
fuses some of this away and adds buffers of its own, so it is an estimate, not a bound.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device.

    Attributes:
        weights: all of them, trained and frozen, float32.
        moments: the optimizer's state.
        average: the moving average of the trained weights; 0 if there is none.
        gradients: of the trained weights.
        kept: for the backward pass, of one micro-batch; casts of weights are among them.
        block: of one rematerialised block, while its backward pass runs.
    """

    weights: int
    moments: int
    average: int
    gradients: int
    kept: int
    block: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def num_bytes(tree: Any) -> int:
    """Of all arrays, or their shapes, in a tree."""
    return sum(_size(x) for x in jax.tree.leaves(tree))


def kept_for_backward(loss: Callable[..., jax.Array], trained: Any, *others: Any) -> int:
    """Bytes that the backward pass needs and that are no arguments of the loss.

    Args:
        loss: ``(trained, *others) -> []``, differentiated by its first argument.
        trained: arrays or their shapes, as all others.
        *others: what is not differentiated by.
    """
    return sum(_size(x.aval) for x in _residuals(loss, trained, *others))


def largest_block(loss: Callable[..., jax.Array], *arguments: Any) -> int:
    """Bytes that the backward pass of the largest rematerialised block needs; 0 without any.

    Args:
        loss: as above.
        *arguments: all of them, arrays or their shapes.
    """
    peaks = [0]
    for block in _blocks(jax.make_jaxpr(loss)(*arguments).jaxpr):
        inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in block.invars]
        # Integers, such as timesteps, have no gradient.
        real = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]

        def run(chosen, everything, block=block, real=real):
            everything = list(everything)
            for i, x in zip(real, chosen, strict=True):
                everything[i] = x
            return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(block, ()))(*everything)

        sizes = [_size(x.aval) for x in _residuals(run, [inputs[i] for i in real], inputs)]
        peaks.append(sum(sizes) + max(sizes, default=0))
    return max(peaks)


def _residuals(run: Callable, trained: Any, *others: Any) -> list:
    def backward(trained, *others):
        return jax.tree.leaves(jax.vjp(lambda t: run(t, *others), trained)[1])

    jaxpr = jax.make_jaxpr(backward)(trained, *others).jaxpr
    arguments = set(jaxpr.invars)
    results = {v for v in jaxpr.outvars if isinstance(v, jax.extend.core.Var)}
    return [v for v in results if v not in arguments]


def _blocks(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("checkpoint", "remat2", "remat"):
            yield eqn.params["jaxpr"]
            continue
        for inner in _inner(eqn.params.values()):
            yield from _blocks(inner)


def _inner(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _size(x: Any) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):  # a random key
        return 0
    return int(np.prod(x.shape, dtype=np.int64)) * x.dtype.itemsize
