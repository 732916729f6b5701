"""Where every weight lives: an ordered table of (regex on the name, PartitionSpec).

The first match wins. Adam moments and the EMA keep the weight's name in their tree path, so the
same table places them.
A mesh axis that does not divide its dimension is dropped for that weight (it stays whole there), so
one table serves every model size.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rule = tuple[str, P]

# Specs speak of the last axes, (in, out), so that one rule serves a linear layer [in, out] and a
# convolution [kH, kW, in, out]: SD 1's proj_in is the latter, SD 2's the former. `tensor` cuts the
# inner width of each attention and feed-forward (Megatron's scheme: split out of the first matmul,
# into the second), `fsdp` the other side. GEGLU's two halves lie one behind the other in
# net.0.proj, so with tensor > 1 they have to be exchanged once a layer.
RULES: tuple[Rule, ...] = (
    (
        r"(to_[qkv]|[qkv]_proj|self\.(query|key|value)|net\.0\.proj|fc1|intermediate\.dense)\.kernel$",
        P("fsdp", "tensor"),
    ),
    (r"(to_out\.0|out_proj|output\.dense|net\.2|fc2)\.kernel$", P("tensor", "fsdp")),
    (r"(token_embedding|word_embeddings)\.embedding$", P("fsdp", None)),
    (r"\.kernel$", P(None, "fsdp")),
    (r"", P()),
)


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Aligns `spec` with the last axes of `shape` and drops the mesh axes that do not divide."""
    spec = tuple(spec)[-len(shape) :] if shape else ()
    axes = (None,) * (len(shape) - len(spec)) + spec
    kept = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    while kept and kept[-1] is None:
        kept.pop()
    return P(*kept)


def leaf_sharding(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule] = RULES
) -> NamedSharding:
    """Sharding of one named array."""
    spec = next(spec for pattern, spec in rules if re.search(pattern, name))
    return NamedSharding(mesh, _fit(spec, shape, mesh))


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Any:
    """A NamedSharding for every leaf of `tree`, matched on the leaf's path.

    Args:
        tree: arrays or ShapeDtypeStructs: params, optimizer state, a whole TrainState.
        mesh: the device mesh.
        rules: ordered (regex, PartitionSpec of the last axes); the last one must match everything.
    """

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf_sharding(name, leaf.shape, mesh, rules)

    return jax.tree.map_with_path(sharding, tree)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes of `tree` that one device holds under `shardings`."""
    sizes = jax.tree.map(
        lambda x, s: x.dtype.itemsize * math.prod(s.shard_shape(x.shape)), tree, shardings
    )
    return sum(jax.tree.leaves(sizes))
