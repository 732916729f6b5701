"""Schedules and latents that the tests of this folder share."""

import jax
import pytest

from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig

# As published with SD 1.x; v-prediction and zero terminal SNR are set by the tests.
SD_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.fixture
def make_config():
    return lambda **changes: ScheduleConfig.from_dict(SD_SCHEDULER | changes)


@pytest.fixture
def make_schedule(make_config):
    return lambda **changes: NoiseSchedule.from_config(make_config(**changes))


@pytest.fixture
def latents():
    """Three arrays of standard normal latents [4, 3, 5, 2]."""
    return tuple(
        jax.random.normal(key, (4, 3, 5, 2)) for key in jax.random.split(jax.random.key(7), 3)
    )
