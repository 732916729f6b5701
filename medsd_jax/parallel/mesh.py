"""The device mesh ``(data, fsdp, tensor)`` and how arrays get onto it."""

import logging
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medsd_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# Parameters are sharded over fsdp, so each fsdp shard sees its own images.
BATCH_AXES = ("data", "fsdp")

log = logging.getLogger(__name__)


def make_mesh(axis_sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges the devices as a mesh.

    Args:
        axis_sizes: size of each axis of `AXES`; one may be -1 and takes what the others leave.
            Missing axes have size 1.
        devices: all devices of all processes when None.

    Raises:
        UserError: an axis is unknown, or the sizes do not multiply to the number of devices, or
            they cannot be divided among several TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(axis_sizes) - set(AXES)
    if unknown:
        raise UserError(
            f"mesh axis {sorted(unknown)[0]!r} does not exist (axes: {', '.join(AXES)})"
        )
    sizes = [int(axis_sizes.get(axis, 1)) for axis in AXES]
    others = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and others > 0:
        sizes[sizes.index(-1)] = max(len(devices) // others, 1)
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        given = ", ".join(f"mesh.{axis} = {axis_sizes.get(axis, 1)}" for axis in AXES)
        raise UserError(
            f"{given} do not fit {len(devices)} device(s): the sizes must multiply to "
            f"{len(devices)}, and one of them may be -1"
        )
    # Auto: the partitioner propagates shardings. Explicit refuses convolutions whose batch and
    # channels are both sharded.
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of these sizes, with neighbours on an axis near each other.

    `jax.make_mesh` refuses what splits an axis of the torus of most TPU generations, and all
    clusters of several slices.
    """
    # The attribute numbers the hosts of a GPU cluster, too, whose devices are sorted by id.
    on_tpu = devices[0].platform == "tpu"
    slices = {getattr(device, "slice_index", None) for device in devices} if on_tpu else {None}
    if len(slices) > 1:
        between = _sizes_between_slices(sizes, len(slices))
        within = [size // count for size, count in zip(sizes, between, strict=True)]
        return mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        log.warning(
            "the %d %s devices are taken in their own order, which may make their exchange slower: "
            "no arrangement for mesh %s is known (%s)",
            len(devices), devices[0].device_kind, "x".join(map(str, sizes)), reason,
        )  # fmt: skip
        return np.array(devices, dtype=object).reshape(sizes)


def _sizes_between_slices(sizes: Sequence[int], slices: int) -> list[int]:
    """How many slices each axis crosses: data as many as it can, then fsdp, and tensor none.

    The network between slices is the slowest, and data exchanges least over it.
    """
    data, fsdp, tensor = sizes
    across_data = math.gcd(data, slices)
    across_fsdp = slices // across_data
    if fsdp % across_fsdp:
        raise UserError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp}, mesh.tensor = {tensor} cannot be divided "
            f"among {slices} TPU slices, which mesh.tensor may not cross: make mesh.data a "
            f"multiple of {slices}"
        )
    return [across_data, across_fsdp, 1]


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many pieces `batch_sharding` cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(
    batch_size: int, mesh: Mesh, accumulation_steps: int = 1, name: str = "data.batch_size"
) -> None:
    """Raises UserError unless every device gets as many images in every micro-batch."""
    shards = batch_shards(mesh)
    pieces = shards * accumulation_steps
    if batch_size < 1 or batch_size % pieces:
        nearest = max(round(batch_size / pieces), 1) * pieces
        raise UserError(
            f"{name} = {batch_size} is not divisible by {shards} device shard(s) x "
            f"{accumulation_steps} accumulation step(s); use a multiple of {pieces}, such as "
            f"{nearest}"
        )


def process_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> np.ndarray:
    """Which rows of a global batch a process loads, for any order of the devices.

    The sharding is asked: TPU devices are arranged along the torus, so that the shards of one
    process need not be neighbours in the batch. Where a shard lies on several processes, as with a
    tensor axis across hosts, each of them loads all of its rows.

    Args:
        mesh: the devices.
        batch_size: rows of the global batch; `batch_shards` divides it.
        process_index: this process if None.

    Returns:
        [b] int64, ascending.
    """
    if process_index is None:
        process_index = jax.process_index()
    places = batch_sharding(mesh).devices_indices_map((batch_size,))
    shards = {
        rows.indices(batch_size)[:2]
        for device, (rows,) in places.items()
        if device.process_index == process_index
    }
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(shards)])


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a host batch -> global arrays sharded along their leading axis.

    Args:
        batch: name -> [b, ...], the rows that `process_rows` names, in its order.
        mesh: the devices.

    Returns:
        Name -> [B, ...]; row i of the global batch is at place i.
    """
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    shards_here = len(process_rows(mesh, shards))

    def put(value: np.ndarray) -> jax.Array:
        size = len(value) * shards // shards_here
        if size % shards or len(value) % shards_here:
            raise UserError(
                f"{len(value)} rows cannot be divided among {shards_here} device shard(s)"
            )
        rows = process_rows(mesh, size)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            first = int(np.searchsorted(rows, start))
            return value[first : first + stop - start]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, shard)

    return {key: put(np.asarray(value)) for key, value in batch.items()}
