"""What both benchmarks share: flags, devices, equal weights, compilation, one JSON line.

Import it before jax: it keeps jax from taking the whole memory of a GPU that torch needs too.
"""

import argparse
import functools
import json
import os
import platform
import sys
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

from benchmarks import timing
from benchmarks.sizes import SIZES, Size
from medsd_jax.arrays import Params
from medsd_jax.interop.torch_layout import from_torch
from medsd_jax.models.attention import IMPLEMENTATIONS, attention_implementation
from medsd_jax.models.params import abstract
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.parallel.start import keep_freed_memory

try:
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode
except ImportError as error:
    raise SystemExit(f"{error}: the benchmarks need pip install 'medsd_jax[torch]'") from None

diffusers.utils.logging.set_verbosity_error()


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


def parse(argv: Sequence[str] | None, description: str, *, steps: int, steps_help: str) -> Setting:
    """Reads the flags, chooses the device and sets both frameworks to the same arithmetic."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), help="default: small on a CPU, sd15 on a GPU")
    add("--batch", type=_count, help="default: the size's own")
    add("--steps", type=_count, default=steps, help=f"{steps_help} (default {steps})")
    add("--repeats", type=_count, default=5, help="rounds, each contestant once in each")
    add("--dtype", choices=tuple(timing.TOLERANCE), help="default: bfloat16 on a GPU, else float32")
    add("--attention", choices=tuple(IMPLEMENTATIONS), default="auto", help="ours (default auto)")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    add("--channels-last", action="store_true", help="give torch its channels_last layout")
    flags = parser.parse_args(argv)
    gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    if not gpu and (jax.default_backend() == "gpu" or torch.cuda.is_available()):
        raise SystemExit(
            "only one of jax and torch sees the GPU; install both for it, or set JAX_PLATFORMS=cpu "
            "and CUDA_VISIBLE_DEVICES= (empty) to compare on the CPU"
        )
    dtype = flags.dtype or ("bfloat16" if gpu else "float32")
    if dtype == "float32":
        # It means float32: without this, jax multiplies in TF32 on a GPU and torch convolves so.
        jax.config.update("jax_default_matmul_precision", "highest")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(timing.cores())
    if not gpu:
        keep_freed_memory()  # as the commands do; both frameworks allocate in this process
    name = flags.size or ("sd15" if gpu else "small")
    return Setting(
        name=name,
        size=SIZES[name],
        batch=flags.batch or 0,
        steps=flags.steps,
        repeats=flags.repeats,
        dtype=dtype,
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


def torch_network(config: Any, setting: Setting) -> Any:
    """The config's diffusers module, randomly initialised by a fixed seed, on the device."""
    torch.manual_seed(0)
    with torch.device(setting.torch_device):  # a GPU draws the weights in no time
        module = getattr(diffusers, config._CLASS_NAME).from_config(config.to_dict())
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    return module.to(device=setting.torch_device, memory_format=layout)


def our_structure(
    config: Any, setting: Setting, attention: str
) -> tuple[nnx.GraphDef, Mapping[str, jax.ShapeDtypeStruct]]:
    """Our network of a config: graph definition and weight shapes."""
    ours = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}
    return abstract(
        functools.partial(
            ours[config._CLASS_NAME],
            config,
            dtype=jnp.dtype(setting.dtype),
            attend=attention_implementation(attention),
        )
    )


def our_network(config: Any, module: Any, setting: Setting) -> tuple[nnx.GraphDef, Params]:
    """Our network of the same config, with the torch module's weights, float32."""
    graph, like = our_structure(config, setting, setting.attention)
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


def compile_ours(function: Callable, *args: Any, **jit: Any) -> tuple[Callable, float]:
    """Returns the compiled function and the seconds that tracing and compilation took."""
    begin = time.perf_counter()
    compiled = jax.jit(function, **jit).lower(*args).compile()
    return compiled, time.perf_counter() - begin


def torch_contestants(
    make: Callable[[str], timing.Contestant], setting: Setting, record: dict[str, Any]
) -> tuple[list[timing.Contestant], dict[str, Any]]:
    """The contestants of torch, each called once: torch_eager, and torch_compile where it works.

    Writes `first_call_seconds`, `flops_torch_counter` and `failed` into the record.

    Args:
        make: by name.
        setting: says whether to try torch.compile.
        record: of the run.

    Returns:
        The contestants that work, and each one's first result by its name.
    """
    record["failed"] = {}
    eager = make("torch_eager")
    with FlopCounterMode(display=False) as counter:
        seconds, result = timing.first_call(eager)
    record["flops_torch_counter"] = counter.get_total_flops()
    record["first_call_seconds"]["torch_eager"] = seconds
    if setting.torch_device == "cuda":
        record["matmul_gflop_per_second"] = matmul_gflops(setting)
    contestants, results = [eager], {"torch_eager": result}
    if setting.compiled:
        # Any error of any of its back ends is a finding, not the end of the run.
        try:
            compiled = make("torch_compile")
            seconds, result = timing.first_call(compiled)
        except Exception as error:
            note_failure(record, "torch_compile", error)
        else:
            record["first_call_seconds"]["torch_compile"] = seconds
            contestants.append(compiled)
            results["torch_compile"] = result
    return contestants, results


def matmul_gflops(setting: Setting, size: int = 8192, calls: int = 20) -> float:
    """What torch reaches in a product of two large random matrices: the ceiling of the card."""
    a, b = torch.randn(2, size, size, device="cuda").to(setting.torch_dtype)
    torch.matmul(a, b)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        torch.matmul(a, b)
    torch.cuda.synchronize()
    return round(calls * 2 * size**3 / (time.perf_counter() - begin) / 1e9, 0)


def torch_temporaries(contestant: timing.Contestant) -> float | None:
    """GiB that a call of it takes beside what is there before; None on a CPU."""
    if not torch.cuda.is_initialized():
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contestant.finish(contestant.run())
    return round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)


def our_temporaries(compiled: jax.stages.Compiled) -> float:
    """GiB that the program takes beside its arguments."""
    return round(compiled.memory_analysis().temp_size_in_bytes / 2**30, 2)


def compare(
    record: dict[str, Any], key: str, ours: Any, theirs: Mapping[str, Any], tolerance: float
) -> None:
    """Writes torch's relative differences from ours into ``record[key]``.

    Raises:
        AssertionError: torch_eager computed something else. If torch_compile did, that goes under
            `failed`, as it should equal torch_eager.
    """
    record[key] = {}
    for name, result in theirs.items():
        record[key][name] = timing.relative_difference(ours, result)
        try:
            timing.assert_agreement(f"{key} of {name}", ours, result, tolerance)
        except AssertionError as error:
            if name != "torch_compile":
                raise
            note_failure(record, name, error)


def note_failure(record: dict[str, Any], name: str, error: Exception) -> None:
    """Puts the first line of an error under `failed`, and onto the screen."""
    lines = str(error).strip().splitlines() or [""]
    record["failed"][name] = f"{type(error).__name__}: {lines[0][:300]}"
    print(f"{name} failed: {record['failed'][name]}", file=sys.stderr)


def count_flops(function: Callable, *args: Any) -> float:
    """XLA's count of the floating-point operations of one call.

    It is made on the program before its optimization: afterwards some operations are library calls,
    which XLA cannot look into. It counts a loop's body once, so let the function have none: see
    `our_structure` with attention "xla". The CPU's backend counts; a GPU's cannot.
    """
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return float(jax.jit(function).lower(*like).cost_analysis()["flops"])


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
        "cores": timing.cores(),
        "torch_threads": torch.get_num_threads(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def print_json(record: Mapping[str, Any]) -> None:
    """Writes the one line to standard output."""
    print(json.dumps(record), flush=True)
