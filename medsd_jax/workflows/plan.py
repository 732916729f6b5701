"""``medsd-jax plan``: compiles a recipe's train step for a TPU slice that is not here.

libtpu compiles for a topology that it is told; what the compiled program says of its memory and
its operations is what the slice will need. No weights are read, and nothing is run.
"""

import functools
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.evaluation.reports.programs import PlanReport


@dataclass(frozen=True)
class Chip:
    """What one chip of a TPU generation has.

    Attributes:
        accelerator: the name that libtpu wants in its environment, with the number of chips.
        memory: bytes of high-bandwidth memory.
        peak: bfloat16 operations a second.
        bandwidth: bytes a second of that memory.
    """

    accelerator: str
    memory: float
    peak: float
    bandwidth: float


CHIPS = {
    "v4": Chip("v4", 32 * 2**30, 275e12, 1228e9),
    "v5e": Chip("v5litepod", 16 * 2**30, 197e12, 819e9),
    "v5p": Chip("v5p", 95 * 2**30, 459e12, 2765e9),
    "v6e": Chip("v6e", 32 * 2**30, 918e12, 1640e9),
}
"""Google's published numbers."""


def plan(config: ConfigDict, topology: str, slices: int = 1) -> "PlanReport":
    """Compiles one step of the recipe.

    Args:
        config: of `train`, task "diffusion".
        topology: such as "v5e:2x2".
        slices: how many of them.

    Returns:
        What the compiled step needs of each chip.

    Raises:
        UserError: the topology is not known, libtpu is not installed, or the recipe cannot be used.
    """
    chip, axes = _describe(topology)
    chips = math.prod(axes) * slices

    import jax
    import numpy as np

    from medsd_jax.adaptation.adaptation import frozen_params
    from medsd_jax.evaluation.reports.programs import PlanReport
    from medsd_jax.interop.diffusers_folder import load_structure
    from medsd_jax.parallel.mesh import check_batch, make_mesh
    from medsd_jax.reports.writing import package_versions
    from medsd_jax.training.sharded_step import shard_step
    from medsd_jax.training.state import init_state
    from medsd_jax.workflows.train.adaptation import make_adaptation
    from medsd_jax.workflows.train.checks import check_config
    from medsd_jax.workflows.train.data import batch_shapes, optimizer_batch
    from medsd_jax.workflows.train.steps import diffusion_steps, optimizer_of

    check_config(config)
    if config.task != "diffusion":
        raise UserError(f"task = {config.task!r}: plans are made for task = 'diffusion'")
    mesh = make_mesh(config.mesh.to_dict(), _devices(topology, slices))
    check_batch(optimizer_batch(config), mesh, config.train.accumulation_steps)
    model = load_structure(config.model.path)
    if config.model.attention == "auto":
        config = ConfigDict(config).unlock()
        config.model.attention = "xla"  # what "auto" is on a TPU
    _, optimizer = optimizer_of(config)
    adaptation = make_adaptation(config, model)
    tokens = min(77, model.text_encoder.max_position_embeddings)
    empty = np.zeros(tokens, np.int32)
    train_step, _ = diffusion_steps(config, model, adaptation, optimizer, empty)
    trainable = jax.eval_shape(lambda p: adaptation.init(p, jax.random.key(0)), model.params)
    frozen = frozen_params(model.params, trainable)
    make_state = functools.partial(init_state, tx=optimizer, ema=config.train.ema_decay > 0)
    state = jax.eval_shape(make_state, trainable)
    batch = batch_shapes(config, model, optimizer_batch(config), tokens)
    step = shard_step(train_step, state, frozen, mesh).step
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = step.trace(state, frozen, batch, key).lower(lowering_platforms=("tpu",)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return PlanReport(
        versions=package_versions(),
        topology=topology,
        slices=slices,
        chips=chips,
        mesh=dict(mesh.shape),
        batch_size=optimizer_batch(config),
        images_per_chip=optimizer_batch(config) / chips / config.train.accumulation_steps,
        arguments=arguments,
        temporaries=temporaries,
        memory=float(chip.memory),
        fits=arguments + temporaries < chip.memory,
        operations=cost["flops"],
        bytes=cost["bytes accessed"],
        seconds_by_arithmetic=cost["flops"] / chip.peak,
        seconds_by_memory=cost["bytes accessed"] / chip.bandwidth,
    )


def in_words(plan: "PlanReport") -> str:
    """The plan in a few lines."""
    gib = 2**30
    used = (plan.arguments + plan.temporaries) / gib
    result = "fits" if plan.fits else "does NOT fit"
    return "\n".join(
        (
            f"{_topology_of(plan)}: {plan.chips} chips, mesh {plan.mesh}, "
            f"{plan.batch_size} images per step, {plan.images_per_chip:g} on a chip at once",
            f"a chip holds {plan.arguments / gib:.2f} GiB of arguments and "
            f"{plan.temporaries / gib:.2f} GiB of temporaries, {used:.2f} of "
            f"{plan.memory / gib:.0f} GiB: {result}",
            f"a step takes {plan.operations / 1e12:.2f} TFLOP on each chip, "
            f"{plan.seconds_by_arithmetic:.2f} s at its peak, and reads and writes "
            f"{plan.bytes / 1e9:.0f} GB, {plan.seconds_by_memory:.2f} s if all of it goes "
            "through the chip's memory",
        )
    )


def _topology_of(plan: "PlanReport") -> str:
    slices = plan.slices
    return plan.topology if slices == 1 else f"{slices} slices of {plan.topology}"


def _describe(topology: str) -> tuple[Chip, list[int]]:
    """The kind of chip, and how many there are along x, y and z."""
    match = re.fullmatch(r"(\w+):([1-9]\d{0,3}(?:x[1-9]\d{0,3}){1,2})", topology)
    if match is None or match[1] not in CHIPS:
        raise UserError(
            f"topology {topology} is not understood: GENERATION:SHAPE such as v5e:8x8, with one "
            f"of {', '.join(CHIPS)}"
        )
    return CHIPS[match[1]], [*map(int, match[2].split("x")), 1][:3]


def _devices(topology: str, slices: int) -> list:
    """The devices of the slices, as libtpu describes them."""
    chip, axes = _describe(topology)
    count = math.prod(axes)
    # libtpu would ask the cloud's metadata server what it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.accelerator}-{count}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    settings: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
    if chip is CHIPS["v4"]:
        settings["chip_config_name"] = "megacore"  # a chip is one device, as JAX runs it
    if count <= 4:
        settings["chips_per_host_bounds"] = axes  # of the one host; else 2x2, which 1x1 is not
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **settings
        ).devices
    except Exception as error:  # libtpu's own kinds
        reason = " ".join(str(error).split())[:200]
        advice = "hosts have 2x2 chips, so x and y are even"
        if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
            advice = "libtpu comes with pip install '.[tpu]'"
        raise UserError(
            f"topology {topology} cannot be compiled for ({reason}); {advice}"
        ) from error
