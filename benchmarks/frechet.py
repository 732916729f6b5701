"""FID of two large feature sets: ours beside torchmetrics, on the same features.

    python benchmarks/frechet.py [--vectors 50000] [--width 2048] [--block 1000] >> results.jsonl

Each contestant runs in a process of its own, so that its peak of memory is its own. Features come
block by block from seeds and are dropped after use; making them is not timed. torchmetrics'
FrechetInceptionDistance gets a network that hands its input on, and so sees the same features.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

import numpy as np

from benchmarks import timing

# What a contestant needs is imported by itself alone: torch's memory is not ours.
CONTESTANTS = ("ours", "torchmetrics")
_FACTORS = 64  # the features' large directions, as networks have
Update = Callable[[np.ndarray, bool], None]


def blocks(flags: argparse.Namespace, real: bool) -> Iterator[np.ndarray]:
    """Feature vectors [block, width] float32: correlated and never negative, as after a ReLU."""
    mixing = np.random.default_rng(0).standard_normal((_FACTORS, flags.width), np.float32)
    scale, shift = (1.0, 0.0) if real else (1.1, 0.2)
    for number, start in enumerate(range(0, flags.vectors, flags.block)):
        rng = np.random.default_rng([number, int(real)])
        count = min(flags.block, flags.vectors - start)
        hidden = rng.standard_normal((count, _FACTORS), np.float32)
        x = rng.standard_normal((count, flags.width), np.float32)
        x += hidden @ mixing * np.float32(scale / 8) + np.float32(shift)
        yield np.maximum(x, 0.0, out=x)


def ours(width: int) -> tuple[Update, Callable[[], float]]:
    """medsd_jax.evaluation.metrics.frechet."""
    from medsd_jax.evaluation.metrics.frechet import MomentsAccumulator, frechet_distance

    sets = {True: MomentsAccumulator(width, "real"), False: MomentsAccumulator(width, "synthetic")}
    return (
        lambda features, real: sets[real].update(features),
        lambda: frechet_distance(sets[True].result(), sets[False].result()),
    )


def torchmetrics(width: int) -> tuple[Update, Callable[[], float]]:
    """torchmetrics.image.fid, which accumulates in float64."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.set_num_threads(timing.cores())
    network = torch.nn.Identity()
    network.num_features = width
    metric = FrechetInceptionDistance(feature=network)
    return (
        lambda features, real: metric.update(torch.from_numpy(features), real=real),
        lambda: float(metric.compute()),
    )


def contest(flags: argparse.Namespace) -> dict[str, Any]:
    """One contestant's numbers, in this process."""
    update, compute = {"ours": ours, "torchmetrics": torchmetrics}[flags.contestant](flags.width)
    imported, begin, before = _peak_mib(), time.perf_counter(), timing.cpu_seconds()
    spent = {"update": [0.0, 0.0], "compute": [0.0, 0.0]}

    def timed(part: str, call: Callable[..., Any], *args: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call(*args)
        spent[part][0] += time.perf_counter() - wall
        spent[part][1] += time.process_time() - cpu
        return result

    for real in (True, False):
        for features in blocks(flags, real):
            timed("update", update, features, real)
    value = timed("compute", compute)
    return {
        "value": value,
        **{f"{part}_seconds": wall for part, (wall, _) in spent.items()},
        "seconds": sum(wall for wall, _ in spent.values()),
        "cpu_seconds": sum(cpu for _, cpu in spent.values()),
        "peak_mib": _peak_mib(),
        "imports_mib": imported,
        "others": timing.others_share(before, timing.cpu_seconds(), time.perf_counter() - begin),
    }


def _peak_mib() -> float:
    """Largest resident memory of this process so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError):  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
    # ru_maxrss would not do here: it also counts the process that started this one.
    return round(int(kib) / 2**10, 1)


def in_own_process(name: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Runs one contestant in a new process."""
    words = [f"--{key}={getattr(flags, key)}" for key in ("vectors", "width", "block")]
    done = subprocess.run(
        [sys.executable, __file__, f"--contestant={name}", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark, prints its line and returns it."""
    parser = argparse.ArgumentParser(description="FID, ours beside torchmetrics")
    add = parser.add_argument
    add("--vectors", type=int, default=50_000, help="of each of the two sets (default 50000)")
    add("--width", type=int, default=2048, help="of a vector (default 2048)")
    add("--block", type=int, default=1000, help="vectors at a time (default 1000)")
    add("--repeats", type=int, default=3, help="rounds, each contestant once in each")
    add("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.contestant:
        many = contest(flags)
        print(json.dumps(many), flush=True)
        return many
    if importlib.util.find_spec("torchmetrics") is None:
        raise SystemExit("no torchmetrics: this benchmark needs pip install 'medsd_jax[test]'")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for number in range(flags.repeats):
        for name in CONTESTANTS[:: 1 if number % 2 == 0 else -1]:
            runs[name].append(in_own_process(name, flags))
    values = {name: many[0]["value"] for name, many in runs.items()}
    shares = [run["others"] for many in runs.values() for run in many]
    record = {
        "benchmark": "frechet",
        "vectors": flags.vectors,
        "width": flags.width,
        "block": flags.block,
        "rounds": flags.repeats,
        "device": platform.processor() or platform.machine(),
        "cores": timing.cores(),
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("numpy", "scipy", "torch")},
            "torchmetrics": importlib.metadata.version("torchmetrics"),
        },
        "fid": values,
        "relative_difference": timing.assert_agreement(
            "fid", values["ours"], values["torchmetrics"], timing.TOLERANCE["float32"]
        ),
        "other_processes_cpu_share": None if None in shares else max(shares),
        **{
            key: {name: timing.spread([run[key] for run in many]) for name, many in runs.items()}
            for key in (
                "seconds", "update_seconds", "compute_seconds", "cpu_seconds", "peak_mib",
                "imports_mib",
            )
        },
        # Below 1 ours is the faster, or the smaller.
        **{
            f"{key}_ratio": timing.spread(
                [a[key] / b[key] for a, b in zip(runs["ours"], runs["torchmetrics"], strict=True)]
            )
            for key in ("seconds", "cpu_seconds", "peak_mib")
        },
    }  # fmt: skip
    print(json.dumps(record), flush=True)
    return record


if __name__ == "__main__":
    main()
