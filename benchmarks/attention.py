"""The attention implementations at Stable Diffusion's shapes: what `auto` is chosen by.

    python benchmarks/attention.py [--batch 4] [--dtype bfloat16] >> results.jsonl

One line of JSON a shape: milliseconds of the forward pass, and of forward and backward, of each
implementation; what an implementation cannot do stands under `failed`. Calls follow each other
inside one program, so that launching a program is not measured.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from medsd_jax.models.attention import attention_implementation

NAMES = ("xla", "cudnn", "chunked")
CALLS = 20
"""Of the function in one program."""


@dataclass(frozen=True)
class Shape:
    """One kind of attention in a network, and the passes that users run of it."""

    queries: int
    keys: int
    heads: int
    width: int
    is_causal: bool = False
    passes: tuple[str, ...] = ("forward", "both")


_SD1 = {4096: 40, 1024: 80, 256: 160, 64: 160}
_SD2 = {4096: 5, 1024: 10, 256: 20, 64: 20}
SHAPES = {
    **{f"sd1 self {n}": Shape(n, n, 8, width) for n, width in _SD1.items()},
    **{f"sd1 text {n}": Shape(n, 77, 8, width) for n, width in _SD1.items()},
    **{f"sd2 self {n}": Shape(n, n, heads, 64) for n, heads in _SD2.items()},
    **{f"sd2 text {n}": Shape(n, 77, heads, 64) for n, heads in _SD2.items()},
    "vae 4096": Shape(4096, 4096, 1, 512, passes=("forward",)),
    "clip 77": Shape(77, 77, 12, 64, is_causal=True),
    "tiny": Shape(16, 16, 2, 8),
}


def program(shape: Shape, name: str, what: str) -> Callable:
    """(query, key, value) -> the same after `CALLS` calls, each of which needs the one before."""
    attend = attention_implementation(name)

    def forward(_, arrays):
        query, key, value = arrays
        out = attend(query, key, value, is_causal=shape.is_causal)
        return query + 1e-3 * out, key, value

    def both(_, arrays):
        def total(*arrays):
            out = attend(*arrays, is_causal=shape.is_causal).astype(jnp.float32)
            return jnp.sum(jnp.square(out))

        gradients = jax.grad(total, argnums=(0, 1, 2))(*arrays)
        return tuple(x + 1e-3 * dx for x, dx in zip(arrays, gradients, strict=True))

    body = {"forward": forward, "both": both}[what]
    return lambda *arrays: jax.lax.fori_loop(0, CALLS, body, arrays)


def inputs(shape: Shape, batch: int, dtype: str) -> tuple[jax.Array, ...]:
    """Standard normal query, key and value."""
    rng = np.random.default_rng(0)
    lengths = (shape.queries, shape.keys, shape.keys)
    return tuple(
        jnp.asarray(rng.standard_normal((batch, n, shape.heads, shape.width), np.float32), dtype)
        for n in lengths
    )


def measure(compiled: Callable, arrays: tuple[jax.Array, ...], repeats: int) -> dict[str, float]:
    """Milliseconds of one call: median, least, largest."""
    jax.block_until_ready(compiled(*arrays))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        seconds.append(1e3 * (time.perf_counter() - begin) / CALLS)
    return timing.spread(seconds)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark, prints a line a shape and returns them."""
    parser = argparse.ArgumentParser(description="attention at Stable Diffusion's shapes")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=tuple(timing.TOLERANCE), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES)[:-1])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    flags = parser.parse_args(argv)
    chosen = {name: SHAPES[name] for name in flags.shapes}
    arrays = {name: inputs(shape, flags.batch, flags.dtype) for name, shape in chosen.items()}

    def build(task: tuple[str, str, str]) -> Any:
        name, implementation, what = task
        try:
            function = program(chosen[name], implementation, what)
            return jax.jit(function).lower(*arrays[name]).compile()
        except Exception as error:  # whatever it is, it is what this implementation cannot do
            return error

    tasks = [
        (name, implementation, what)
        for name, shape in chosen.items()
        for implementation in flags.names
        for what in shape.passes
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        programs = dict(zip(tasks, pool.map(build, tasks), strict=True))
    device = jax.devices()[0]
    records = []
    for name, shape in chosen.items():
        record: dict[str, Any] = {
            "benchmark": "attention", "shape": name, "batch": flags.batch, "dtype": flags.dtype,
            "queries": shape.queries, "keys": shape.keys, "heads": shape.heads,
            "width": shape.width, "device": device.device_kind, "jax": jax.__version__,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "milliseconds": {what: {} for what in shape.passes}, "failed": {},
        }  # fmt: skip
        for task in (t for t in tasks if t[0] == name):
            _, implementation, what = task
            result = programs.pop(task)
            if not isinstance(result, Exception):
                try:
                    measured = measure(result, arrays[name], flags.repeats)
                    record["milliseconds"][what][implementation] = measured
                    continue
                except Exception as error:
                    result = error
            line = (str(result).strip().splitlines() or [""])[0]
            record["failed"][f"{implementation} {what}"] = f"{type(result).__name__}: {line[:200]}"
        print(json.dumps(record), flush=True)
        records.append(record)
    return records


if __name__ == "__main__":
    main()
