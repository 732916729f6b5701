"""AdamW with gradient clipping and a learning-rate schedule, all counted in optimizer steps."""

import re
from collections.abc import Sequence

import optax

from medsd_jax.arrays import Params
from medsd_jax.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")


def make_schedule(
    name: str, learning_rate: float, *, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Learning rate by optimizer step: linear warm-up, then constant, or down to 0 at the end.

    With s steps done, W = `warmup_steps` and N = `total_steps`:

        rate (s + 1) / W                              s < W: unlike in diffusers' scripts, which
                                                      start with s / W, the first step moves
        rate                                          "constant"
        rate (N - s) / (N - W)                        "linear"
        rate (1 + cos(pi (s - W) / (N - W))) / 2      "cosine"

    Raises:
        UserError: unknown name, or a warm-up longer than the training.
    """
    if name not in SCHEDULES:
        raise UserError(f"optim.schedule = {name!r} does not exist (one of {', '.join(SCHEDULES)})")
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(
            f"optim.warmup_steps = {warmup_steps} must lie between 0 and the {total_steps} steps "
            "of the training"
        )
    decay_steps = total_steps - warmup_steps
    if name == "constant" or decay_steps == 0:
        after = optax.constant_schedule(learning_rate)
    elif name == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    else:
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(
        learning_rate / warmup_steps, learning_rate, max(warmup_steps - 1, 1)
    )
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    no_decay: Sequence[str] = (),
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) on the clipped gradient.

    Args:
        schedule: learning rate by optimizer step.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled; multiplied by the learning rate, as in torch.
        clip_norm: largest global gradient norm; 0 switches clipping off.
        no_decay: regular expressions of weights that do not decay. Empty, as in the papers' code:
            all decay.

    Raises:
        UserError: an expression of `no_decay` is none; at the optimizer's init, when it matches no
            weight that is trained.
    """
    try:
        kept = [re.compile(pattern) for pattern in no_decay]
    except re.error as error:
        raise UserError(
            f"optim.no_decay: {error.pattern!r} is not a regular expression: {error}"
        ) from None

    def decays(params: Params) -> dict[str, bool]:
        for pattern in kept:
            if not any(pattern.search(name) for name in params):
                raise UserError(
                    f"optim.no_decay: {pattern.pattern!r} matches none of the {len(params)} weights"
                    " that are trained"
                )
        return {name: not any(pattern.search(name) for pattern in kept) for name in params}

    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw
