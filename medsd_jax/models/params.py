"""The only place that knows how NNX splits and merges: modules in, flat named weights out."""

from collections.abc import Callable

import jax
from flax import nnx

from medsd_jax.arrays import Params


class _ConcreteKeys:
    """In the place of nnx.Rngs where only shapes matter; its keys are constants of the trace.

    nnx.Rngs writes a traced counter at every draw, and each write walks back over the whole trace:
    6 s for the U-Net of Stable Diffusion, against 0.7 s.
    """

    def __init__(self):
        self._draws = 0

    def params(self) -> jax.Array:
        self._draws += 1
        with jax.ensure_compile_time_eval():
            return jax.random.key(self._draws)


def flat_params(module: nnx.Module) -> Params:
    """The weights of `module` by their dotted path, e.g. ``mid_block.attentions.0.norm.scale``."""
    tree = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): x for path, x in nnx.traversals.flatten_mapping(tree).items()}


def abstract(
    make_module: Callable[..., nnx.Module],
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Structure and weight shapes of ``make_module(rngs=...)``; allocates nothing.

    Returns:
        The graph definition (hashable, so it may be closed over by a jitted function) and the
        shape and dtype of every weight by name.
    """
    module = nnx.eval_shape(lambda: make_module(rngs=_ConcreteKeys()))
    return nnx.graphdef(module), flat_params(module)


def bind(graphdef: nnx.GraphDef, params: Params) -> nnx.Module:
    """The module with these weights. Free in a traced function: it only rearranges references."""
    paths = {
        tuple(int(k) if k.isdigit() else k for k in name.split(".")): x
        for name, x in params.items()
    }
    return nnx.merge(graphdef, nnx.traversals.unflatten_mapping(paths))


def with_prefix(params: Params, prefix: str) -> Params:
    """``{"conv_in.bias": x}`` -> ``{"unet.conv_in.bias": x}`` for prefix ``unet``."""
    return {f"{prefix}.{name}": x for name, x in params.items()}


def component(params: Params, prefix: str) -> Params:
    """The weights below ``prefix.``, with the prefix taken off."""
    start = prefix + "."
    return {name.removeprefix(start): x for name, x in params.items() if name.startswith(start)}
