"""What a scheduler_config.json says about the noise process, whichever sampler wrote it.

The file names the sampler that its author preferred; ours reads from it the noise schedule, what
the network predicts and how sampling times are chosen. A key that is absent has the default of the
class that the file names, because that is what the file means to the library that wrote it.
"""

import dataclasses
import difflib
import functools
import logging
from collections.abc import Mapping
from typing import Any

from medsd_jax.errors import UserError

_LOG = logging.getLogger(__name__)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS_TYPES = ("zero", "sigma_min")
SAMPLER_NAMES = ("ddim", "pndm", "dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_ancestral")
"""The samplers, which `samplers.py` defines; here so that naming them imports no jax."""

_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    # Samplers that do not know the next two keys never clip, and they end at clean data.
    "set_alpha_to_one": True,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
}
_LINSPACE = {"timestep_spacing": "linspace"}
_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_LINSPACE_SD_BETAS = _LINSPACE | _SD_BETAS
_DISTILLED = _SD_BETAS | {"beta_schedule": "scaled_linear"}
_CLASS_DEFAULTS = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "LMSDiscreteScheduler": _LINSPACE,
    "EulerDiscreteScheduler": _LINSPACE,
    "EulerAncestralDiscreteScheduler": _LINSPACE,
    "HeunDiscreteScheduler": _LINSPACE_SD_BETAS,
    "KDPM2DiscreteScheduler": _LINSPACE_SD_BETAS,
    "KDPM2AncestralDiscreteScheduler": _LINSPACE_SD_BETAS,
    "DPMSolverMultistepScheduler": _LINSPACE,
    "DPMSolverSinglestepScheduler": _LINSPACE,
    "DEISMultistepScheduler": _LINSPACE,
    "UniPCMultistepScheduler": _LINSPACE,
    # Their own samplers are not ours; the noise schedule that they hold is an ordinary one.
    "DDIMInverseScheduler": {"clip_sample": True},
    "DDIMParallelScheduler": {"clip_sample": True},
    "DDPMParallelScheduler": {"clip_sample": True},
    "DPMSolverMultistepInverseScheduler": _LINSPACE,
    "DPMSolverSDEScheduler": _LINSPACE_SD_BETAS,
    "LCMScheduler": _DISTILLED,
    "SASolverScheduler": _LINSPACE,
    "TCDScheduler": _DISTILLED,
}
_FEW_STEPS = ("LCMScheduler", "TCDScheduler")

# Keys that steer another sampler and say nothing about the noise process. They are accepted here
# and kept by whoever keeps the file. Which sampler runs, and of which order, is asked for by name.
# A file that was once of another class carries the keys of that class along.
_OTHER_SAMPLERS = frozenset(
    """
    algorithm_type base_image_seq_len base_shift corrector_order disable_corrector
    dynamic_thresholding_ratio euler_at_final flow_shift interpolation_type lambda_min_clipped
    lower_order_final max_image_seq_len max_shift noise_sampler_seed original_inference_steps
    predict_x0 predictor_order rho sample_max_value shift shift_terminal sigma_data sigma_max
    sigma_min sigma_schedule skip_prk_steps solver_order solver_p solver_type tau_func tensor_format
    time_shift_type timestep_scaling timestep_type timestep_values use_beta_sigmas
    use_exponential_sigmas use_karras_sigmas use_lu_lambdas
    """.split()
)
# Keys that would change what a sampler has to do: only these values leave it as it is.
_ONLY_VALUES = {
    "thresholding": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "invert_sigmas": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_PREDICT_EPSILON = "predict_epsilon"
"""What prediction_type was in diffusers 0.3 to 0.10: true for "epsilon", false for "sample"."""
_LIKE_A_KEY = 0.9
"""Keys that are as similar as this to one of the noise process are taken for a slip of the pen."""
_MAX_TIMES = 1_000_000
"""Of training. Published models have 1000; a table of so many is laid out before any work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise process and the choice of sampling times, as named in scheduler_config.json.

    Hashable, so it may be a static argument of a jitted function.

    Attributes:
        num_train_timesteps: T, the number of noise levels in training.
        beta_start: First beta of the linear schedules.
        beta_end: Last beta of the linear schedules.
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2"
            (the cosine schedule).
        trained_betas: T betas that replace the named schedule, or None.
        prediction_type: What the network predicts: "epsilon", "v_prediction" or "sample".
        timestep_spacing: How sampling times cover [0, T): "leading", "trailing" or "linspace".
        steps_offset: Added to every time of "leading" spacing.
        set_alpha_to_one: Whether the last step of DDIM and PNDM ends at clean data (alpha_bar 1) or
            at the noise level of time 0.
        final_sigmas_type: The same for DPM-Solver++ and Euler: "zero" or "sigma_min".
        clip_sample: Whether each step clips its estimate of x0.
        clip_sample_range: Bound of that clip.
        rescale_betas_zero_snr: Whether the schedule is rescaled to pure noise at time T - 1.
    """

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: tuple[float, ...] | None
    prediction_type: str
    timestep_spacing: str
    steps_offset: int
    set_alpha_to_one: bool
    clip_sample: bool
    clip_sample_range: float
    final_sigmas_type: str
    rescale_betas_zero_snr: bool

    def __post_init__(self):
        """Refuse values that no file may hold either."""
        if problem := _problem(vars(self)):
            raise UserError(problem)

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], where: str = "scheduler_config.json"
    ) -> "ScheduleConfig":
        """Read the content of a scheduler_config.json.

        Args:
            config: The parsed file. Keys that start with "_" are comments, but for _class_name.
            where: How error messages call the file.

        Returns:
            The configuration, with the defaults of the class named in _class_name (DDIMScheduler
            where the file names none).

        Raises:
            UserError: For an unknown class, or for a value that is not supported. A key that no
                noise process has is warned of, once, as diffusers does.
        """
        class_name = config.get("_class_name", "DDIMScheduler")
        # The former Flax classes of diffusers had the keys of torch's.
        plain = class_name.removeprefix("Flax") if isinstance(class_name, str) else None
        if plain not in _CLASS_DEFAULTS:
            raise UserError(
                f"{where}: _class_name {class_name!r} is not a scheduler of Stable Diffusion 1 or "
                f"2; use one of {', '.join(_CLASS_DEFAULTS)}"
            )
        if plain in _FEW_STEPS:
            _warn(
                f"{where}: {plain} belongs to a model that was distilled for few steps; its noise "
                "schedule is read, and the sampler is the one that is asked for"
            )
        values = _DEFAULTS | _CLASS_DEFAULTS[plain]
        for key, value in config.items():
            if key in _DEFAULTS:
                values[key] = tuple(value) if isinstance(value, list) else value
            elif key in _ONLY_VALUES:
                if value not in _ONLY_VALUES[key]:
                    raise UserError(
                        f"{where}: {key}={value!r} is not supported; use "
                        f"{' or '.join(map(repr, _ONLY_VALUES[key]))}, or leave the key out"
                    )
            elif key not in _OTHER_SAMPLERS and key != _PREDICT_EPSILON and key[:1] != "_":
                if meant := difflib.get_close_matches(key, _DEFAULTS, 1, _LIKE_A_KEY):
                    raise UserError(
                        f"{where}: unknown key {key!r} (value {value!r}); is {meant[0]} meant? "
                        "Correct or remove it"
                    )
                _warn(f"{where}: the unknown key {key!r} (value {str(value)[:80]!r}) is ignored")
        if config.get(_PREDICT_EPSILON) is not None:
            values["prediction_type"] = _said_prediction(config, where)
        if problem := _problem(values):
            raise UserError(f"{where}: {problem}")
        return cls(**values)

    @property
    def clip_range(self) -> float | None:
        """Bound of the clip of x0 in a sampling step, None where nothing is clipped."""
        return self.clip_sample_range if self.clip_sample else None


def _said_prediction(config: Mapping[str, Any], where: str) -> str:
    """The prediction type by `predict_epsilon`; UserError where another key contradicts it."""
    epsilon = config[_PREDICT_EPSILON]
    if type(epsilon) is not bool:
        raise UserError(f"{where}: {_PREDICT_EPSILON}={epsilon!r} must be true or false")
    prediction = "epsilon" if epsilon else "sample"
    if (other := config.get("prediction_type", prediction)) != prediction:
        raise UserError(
            f"{where}: {_PREDICT_EPSILON}={epsilon} says prediction_type={prediction!r}, but it is "
            f"{other!r}; remove {_PREDICT_EPSILON}"
        )
    return prediction


@functools.cache
def _warn(text: str) -> None:
    """Once: the same file is read before every call that samples."""
    _LOG.warning("%s", text)


def _problem(values: Mapping[str, Any]) -> str | None:
    """Say in one line what is wrong with the first bad value, or return None."""
    for key, allowed in (
        ("beta_schedule", BETA_SCHEDULES),
        ("prediction_type", PREDICTION_TYPES),
        ("timestep_spacing", TIMESTEP_SPACINGS),
        ("final_sigmas_type", FINAL_SIGMAS_TYPES),
    ):
        if values[key] not in allowed:
            return f"{key}={values[key]!r} is not supported; use one of {', '.join(allowed)}"
    for key in ("set_alpha_to_one", "clip_sample", "rescale_betas_zero_snr"):
        if type(values[key]) is not bool:
            return f"{key}={values[key]!r} must be true or false"
    for key, low in (("num_train_timesteps", 2), ("steps_offset", 0)):
        if type(values[key]) is not int or not low <= values[key] <= _MAX_TIMES:
            return (
                f"{key}={values[key]!r} must be a whole number of at least {low} and at most "
                f"{_MAX_TIMES}"
            )
    # The last bound is one that float32 holds.
    for key, high in (("beta_start", 1.0), ("beta_end", 1.0), ("clip_sample_range", 1e30)):
        if not _is_number(values[key]) or not 0.0 < values[key] < high:
            return f"{key}={values[key]!r} must be a number between 0 and {high:g}, both excluded"
    return _betas_problem(values["trained_betas"], values["num_train_timesteps"])


def _betas_problem(betas: Any, num_train_timesteps: int) -> str | None:
    if betas is None:
        return None
    if not isinstance(betas, tuple) or not all(_is_number(b) and 0.0 < b <= 1.0 for b in betas):
        return "trained_betas must be null or a list of numbers above 0 and at most 1"
    if len(betas) != num_train_timesteps:
        return (
            f"trained_betas has {len(betas)} values; num_train_timesteps={num_train_timesteps} "
            "needs as many"
        )
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
