"""Devices of TPU slices that are not here, numbered as libtpu numbers them."""

import itertools
from dataclasses import dataclass

KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}


@dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int
    coords: tuple[int, int, int]
    device_kind: str
    slice_index: int | None = None
    core_on_chip: int = 0
    platform: str = "tpu"


def slice_devices(topology: str, slices: int = 1) -> list[FakeDevice]:
    """E.g. "v5e:4x4": hosts of 2x2 chips; chips and hosts count along x first."""
    generation, _, shape = topology.partition(":")
    sides = [*map(int, shape.split("x")), 1][:3]
    hosts = [side // by for side, by in zip(sides, (2, 2, 1), strict=True)]

    def number(at, of):
        return at[0] + of[0] * (at[1] + of[1] * at[2])

    devices = []
    for z, y, x in itertools.product(*(range(side) for side in reversed(sides))):
        host = number((x // 2, y // 2, z), hosts)
        devices.append((host, number((x, y, z), sides), (x, y, z)))
    count = hosts[0] * hosts[1] * hosts[2]
    return [
        FakeDevice(
            id=chip if slices == 1 else 100000 * (at + 1) + chip,
            process_index=at * count + host,
            coords=coords,
            device_kind=KINDS[generation],
            slice_index=None if slices == 1 else at,
        )
        for at in range(slices)
        for host, chip, coords in sorted(devices)
    ]
