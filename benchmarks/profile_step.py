"""Where the time of one train step goes, by kind of operation, in both frameworks.

    python benchmarks/profile_step.py [--size small] [--steps 3]

Prints two tables, seconds per step. Ours are the events of jax's profiler, with an instruction of
the compiled program mapped to its operation and to forward or backward by the program's metadata;
torch's are its profiler's own operations. Events of parallel threads add up, so that a column may
sum to more than the step took.
"""

import collections
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks import harness, train_step  # before jax, see harness

# isort: split
import jax
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import timing

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?[)\]}] ([\w\-]+)\(.*?op_name=\"([^\"]*)\"", re.MULTILINE
)
_NUMBER = re.compile(r"_?\d+")
_LAST_NUMBER = re.compile(r"_(\d+)$")
_LAST = re.compile(r"[\w\-]+$")


def operations(program: str) -> dict[str, str]:
    """Instruction name -> "opcode / jax operation, pass" of a compiled program's text."""
    return {
        name: f"{opcode} / {_operation(op_name)}"
        for name, opcode, op_name in _INSTRUCTION.findall(program)
    }


def _operation(op_name: str) -> str:
    result = _LAST.search(op_name)
    operation = result.group() if result else "?"
    return f"{operation}, {'backward' if 'transpose(jvp' in op_name else 'forward'}"


def our_seconds(run, program: str, steps: int) -> dict[str, float]:
    """Seconds of one step by kind of operation."""
    kinds = operations(program)
    totals: dict[str, float] = collections.defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            on_gpu = plane.name.startswith("/device:GPU")
            if jax.default_backend() == "gpu" and not on_gpu:
                continue
            for line in plane.lines:
                for event in line.events:
                    kind = kinds.get(event.name)
                    if on_gpu:
                        # XLA names a kernel after its instruction; a library's keeps its own name.
                        instruction = _LAST_NUMBER.sub(r".\1", event.name)
                        kind = kinds.get(instruction, _NUMBER.sub("", event.name)[:60])
                    if kind:
                        totals[kind] += event.duration_ns / 1e9 / steps
    return totals


def torch_seconds(run, steps: int) -> dict[str, float]:
    """Seconds of one step by torch operation, without what each calls."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            run()
    gpu = torch.cuda.is_available()
    return {
        row.key: (row.self_device_time_total if gpu else row.self_cpu_time_total) / 1e6 / steps
        for row in profiler.key_averages()
    }


def waiting(contestant: timing.Contestant) -> Callable[[], None]:
    """One step of it, done when the call returns."""
    return lambda: contestant.finish(contestant.run())


def print_table(title: str, seconds: Mapping[str, float], rows: int = 20) -> None:
    """The largest entries, in milliseconds and in percent of all."""
    total = sum(seconds.values())
    print(f"{title}: {1e3 * total:.0f} ms in all operations of a step")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1])[:rows]:
        print(f"{1e3 * value:10.1f} ms {100 * value / total:5.1f} %  {name}")


def main(argv: Sequence[str] | None = None) -> None:
    """Profiles both and prints the tables."""
    setting = harness.parse(argv, "profile of the train step", steps=3, steps_help="steps each")
    setting = harness.with_batch(setting, setting.size.train_batch)
    batch = train_step.make_batch(setting)
    module = harness.torch_network(setting.size.unet, setting).train()
    contestant, _, program = train_step.ours(setting, module, batch)
    step = waiting(contestant)
    step()
    print_table("ours", our_seconds(step, program.as_text(), setting.steps))
    contestant = train_step.torchs("torch_eager", setting, module, batch)
    step = waiting(contestant)
    step()
    print_table("torch eager", torch_seconds(step, setting.steps))


if __name__ == "__main__":
    main()
