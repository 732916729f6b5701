"""What both benchmarks share: flags, devices, equal weights, interleaved timing, one JSON line.

Import it before jax: it keeps jax from taking the whole memory of a GPU that torch needs too.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.sizes import SIZES, Size
from medsd_jax.arrays import Params
from medsd_jax.interop.torch_layout import from_torch
from medsd_jax.models.attention import IMPLEMENTATIONS, attention_implementation
from medsd_jax.models.params import abstract
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL

try:
    import diffusers
    import torch
except ImportError as error:
    raise SystemExit(f"{error}: the benchmarks need pip install 'medsd_jax[torch]'") from None

diffusers.utils.logging.set_verbosity_error()

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative difference of the two frameworks' results: beyond it they did other work."""


@dataclass(frozen=True)
class Contestant:
    """One implementation of the work.

    Attributes:
        name: its key in the JSON line.
        run: does the work once and returns when it is done, with a number or array to compare.
    """

    name: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What a run measures, from the command line, and where."""

    name: str
    size: Size
    batch: int
    steps: int
    repeats: int
    dtype: str
    attention: str
    compiled: bool
    channels_last: bool
    torch_device: str

    @property
    def torch_dtype(self) -> Any:
        """The dtype as torch has it."""
        return getattr(torch, self.dtype)


def parse(argv: Sequence[str] | None, about: str, *, steps: int, steps_help: str) -> Setting:
    """Reads the flags, chooses the device and sets both frameworks to the same arithmetic."""
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), help="default: small on a CPU, sd15 on a GPU")
    add("--batch", type=_count, help="default: the size's own")
    add("--steps", type=_count, default=steps, help=f"{steps_help} (default {steps})")
    add("--repeats", type=_count, default=5, help="rounds, each contestant once in each")
    add("--dtype", choices=tuple(TOLERANCE), help="default: bfloat16 on a GPU, else float32")
    add("--attention", choices=tuple(IMPLEMENTATIONS), default="xla", help="ours (default xla)")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    add("--channels-last", action="store_true", help="give torch its channels_last layout")
    flags = parser.parse_args(argv)
    gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    if not gpu and (jax.default_backend() == "gpu" or torch.cuda.is_available()):
        raise SystemExit(
            "only one of jax and torch sees the GPU; install both for it, or set JAX_PLATFORMS=cpu "
            "and CUDA_VISIBLE_DEVICES= (empty) to compare on the CPU"
        )
    # float32 means float32: without this, jax multiplies in TF32 on a GPU and torch convolves so.
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(_cores())
    name = flags.size or ("sd15" if gpu else "small")
    return Setting(
        name=name,
        size=SIZES[name],
        batch=flags.batch or 0,
        steps=flags.steps,
        repeats=flags.repeats,
        dtype=flags.dtype or ("bfloat16" if gpu else "float32"),
        attention=flags.attention,
        compiled=flags.compile,
        channels_last=flags.channels_last,
        torch_device="cuda" if gpu else "cpu",
    )


def with_batch(setting: Setting, default: int) -> Setting:
    """The setting with this batch, where the command line gave none."""
    return replace(setting, batch=setting.batch or default)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def torch_network(config: Any, setting: Setting) -> Any:
    """The config's diffusers module, randomly initialised by a fixed seed, on the device."""
    torch.manual_seed(0)
    module = getattr(diffusers, config._CLASS_NAME).from_config(config.to_dict())
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    return module.to(device=setting.torch_device, memory_format=layout)


def our_network(config: Any, module: Any, setting: Setting) -> tuple[nnx.GraphDef, Params]:
    """Our network of the same config, with the torch module's weights, float32."""
    ours = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}
    graph, like = abstract(
        functools.partial(
            ours[config._CLASS_NAME],
            config,
            dtype=jnp.dtype(setting.dtype),
            attend=attention_implementation(setting.attention),
        )
    )
    # A copy: on a CPU jax may otherwise alias torch's memory, which torch's optimizer writes to.
    state = {name: x.float().cpu().numpy().copy() for name, x in module.state_dict().items()}
    return graph, jax.device_put(from_torch(state, like, "torch's random weights"))


def to_torch_image(x: np.ndarray, setting: Setting) -> Any:
    """[B, H, W, C] numpy -> [B, C, H, W] torch tensor on the device, in the layout asked for."""
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    return tensor.to(setting.torch_device).contiguous(memory_format=layout)


def synchronize(setting: Setting) -> None:
    """Waits until torch's device has done its work."""
    if setting.torch_device == "cuda":
        torch.cuda.synchronize()


def compile_ours(function: Callable, *args: Any, **jit: Any) -> tuple[Callable, float, float]:
    """Returns the compiled function, the seconds it took, and the FLOPs of one call.

    The FLOPs are XLA's count on the program before its optimization: afterwards some operations
    are library calls, which it cannot look into. A loop's body is counted once.
    """
    begin = time.perf_counter()
    lowered = jax.jit(function, **jit).lower(*args)
    compiled = lowered.compile()
    return compiled, time.perf_counter() - begin, flops_of(lowered)


def flops_of(lowered: Any) -> float:
    """XLA's count of the floating-point operations of a lowered program."""
    return float(lowered.cost_analysis()["flops"])


def first_call(contestant: Contestant) -> tuple[float, float | np.ndarray]:
    """Seconds and result of the first call, which compiles and warms up."""
    begin = time.perf_counter()
    result = contestant.run()
    return time.perf_counter() - begin, result


@dataclass(frozen=True)
class Rounds:
    """What `interleave` measured: seconds per call, one a round, by contestant.

    Attributes:
        wall: elapsed.
        cpu: of all this process's threads. On a machine that others use too it is the steadier one,
            most of all with a single core (taskset), where no thread spins while it waits.
        others: part of the cores that other processes used meanwhile; None where not Linux.
        results: each contestant's last result.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    others: float | None
    results: dict[str, Any]


def interleave(contestants: Sequence[Contestant], *, calls: int, repeats: int) -> Rounds:
    """Times the contestants in turns, so that what else the machine does hits them alike.

    Args:
        contestants: already warmed up.
        calls: of each contestant in each round.
        repeats: rounds; every second one goes through the contestants backwards.
    """
    start, before = time.perf_counter(), cpu_seconds()
    wall: dict[str, list[float]] = {c.name: [] for c in contestants}
    cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
    results: dict[str, Any] = {}
    for round_number in range(repeats):
        for contestant in contestants[:: 1 if round_number % 2 == 0 else -1]:
            begin, cpu_begin = time.perf_counter(), time.process_time()
            for _ in range(calls):
                results[contestant.name] = contestant.run()
            wall[contestant.name].append((time.perf_counter() - begin) / calls)
            cpu[contestant.name].append((time.process_time() - cpu_begin) / calls)
    others = others_share(before, cpu_seconds(), time.perf_counter() - start)
    return Rounds(wall, cpu, others, results)


def cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds used so far by the whole machine and by this process; None where not Linux."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, soft_irq = map(int, file.readline().split()[1:8])
    except OSError:
        return None
    busy = (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
    return busy, time.process_time()


def others_share(
    before: tuple[float, float] | None, after: tuple[float, float] | None, wall: float
) -> float | None:
    """Part of the cores that other processes used in between: near 0, or the times are too long."""
    if before is None or after is None:
        return None
    machine, own = (b - a for a, b in zip(before, after, strict=True))
    return round(max(machine - own, 0.0) / (wall * _cores()), 3)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest, to 5 digits."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: float(f"{value:.5g}") for key, value in numbers.items()}


def timing_report(rounds: Rounds, flops: float) -> dict[str, Any]:
    """The timed part of the JSON line; `flops` of one call."""
    return {
        "other_processes_cpu_share": rounds.others,
        "seconds": {name: spread(values) for name, values in rounds.wall.items()},
        "cpu_seconds": {name: spread(values) for name, values in rounds.cpu.items()},
        "gflop_per_second": {
            name: round(flops / statistics.median(values) / 1e9, 2)
            for name, values in rounds.wall.items()
        },
        # Below 1 ours is the faster.
        "ratio_ours_to": _ratios(rounds.wall),
        "cpu_ratio_ours_to": _ratios(rounds.cpu),
    }


def _ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Ours divided by the other, round by round."""
    return {
        name: spread([a / b for a, b in zip(seconds["ours"], values, strict=True)])
        for name, values in seconds.items()
        if name != "ours"
    }


def relative_difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value of torch's result."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_agreement(what: str, ours: Any, theirs: Any, dtype: str) -> float:
    """The relative difference; AssertionError where the two computed different things."""
    difference = relative_difference(ours, theirs)
    if not difference <= TOLERANCE[dtype]:  # nan fails too
        raise AssertionError(
            f"{what}: ours and torch's differ by {difference:.2e} relative, more than "
            f"{TOLERANCE[dtype]:.0e}: the two do not compute the same, so times mean nothing"
        )
    return difference


def describe(setting: Setting) -> dict[str, Any]:
    """What was run where: the untimed part of the JSON line."""
    device = jax.devices()[0]
    return {
        "size": setting.name,
        "batch": setting.batch,
        "dtype": setting.dtype,
        "attention": setting.attention,
        "torch_channels_last": setting.channels_last,
        "latents": [setting.size.unet.sample_size] * 2 + [setting.size.unet.in_channels],
        "context": [setting.size.tokens, setting.size.unet.cross_attention_dim],
        "rounds": setting.repeats,
        "device": platform.processor() or platform.machine()
        if device.platform == "cpu"
        else device.device_kind,
        "platform": device.platform,
        "cores": _cores(),
        "torch_threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def attempt(
    make: Callable[[], Contestant],
) -> tuple[tuple[Contestant, float, Any] | None, str | None]:
    """A contestant with its first seconds and result, or the first line of what was raised.

    For torch.compile: any error of any of its back ends is a finding, which goes into the JSON.
    """
    try:
        contestant = make()
        return (contestant, *first_call(contestant)), None
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0][:300]}"


def print_json(record: Mapping[str, Any]) -> None:
    """Writes the one line to standard output."""
    print(json.dumps(record), flush=True)
