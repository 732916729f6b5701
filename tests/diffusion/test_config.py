"""Reading scheduler_config.json: defaults of each class, published files, bad input."""

import inspect
import json
import warnings

import pytest

from medsd_jax.diffusion.config import _CLASS_DEFAULTS, ScheduleConfig
from medsd_jax.errors import UserError

PNDM_SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
DDIM_SD21 = PNDM_SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


@pytest.mark.torch
@pytest.mark.parametrize("class_name", _CLASS_DEFAULTS)
def test_defaults_are_those_of_the_named_class(class_name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
    scheduler_class = getattr(diffusers, class_name)
    if "torchsde" in getattr(scheduler_class, "_backends", ()):
        pytest.skip("diffusers shows this class only where torchsde is installed")
    parameters = inspect.signature(scheduler_class.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    config = vars(ScheduleConfig.from_dict({"_class_name": class_name}))
    shared = config.keys() & defaults.keys()
    assert {"beta_start", "beta_schedule", "prediction_type"} <= shared
    assert {name: config[name] for name in shared} == {name: defaults[name] for name in shared}
    # What the class writes into its file is accepted.
    written = {k: str(v) if v == float("-inf") else v for k, v in defaults.items()}
    ScheduleConfig.from_dict({"_class_name": class_name, **written})


def test_published_files():
    config = ScheduleConfig.from_dict(PNDM_SD15)
    assert (config.prediction_type, config.timestep_spacing) == ("epsilon", "leading")
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_range) == (1, False, None)
    assert ScheduleConfig.from_dict(DDIM_SD21).prediction_type == "v_prediction"
    # SD 1.4's file says nothing about clipping, and its sampler does not clip.
    sd14 = {key: value for key, value in PNDM_SD15.items() if key != "clip_sample"}
    assert ScheduleConfig.from_dict(sd14) == config
    assert ScheduleConfig.from_dict({"_class_name": "DDIMScheduler"}).clip_range == 1.0


def test_published_files_as_shipped(shared_assets):
    files = sorted((shared_assets / "sd_configs").glob("*scheduler_config.json"))
    assert len(files) >= 4
    for file in files:
        config = ScheduleConfig.from_dict(json.loads(file.read_text()), where=file.name)
        assert config.beta_schedule == "scaled_linear", file.name
        assert config.prediction_type == ("v_prediction" if "sd21_" in file.name else "epsilon")


def test_a_config_may_be_a_static_argument():
    with_betas = {"trained_betas": [0.1, 0.2], "num_train_timesteps": 2}
    assert hash(ScheduleConfig.from_dict(with_betas)) == hash(ScheduleConfig.from_dict(with_betas))


PAST = {
    "original_inference_steps": 50, "timestep_scaling": 10.0, "noise_sampler_seed": None,
    "tensor_format": "pt", "timestep_values": None, "predict_epsilon": True, "sigma_data": 0.5,
    "rho": 7.0, "predictor_order": 2, "tau_func": None, "shift": 1.0,
}  # fmt: skip


def test_keys_of_another_sampler_have_no_say():
    """`from_config` carries the keys of one class into the file of the next."""
    assert ScheduleConfig.from_dict(PNDM_SD15 | PAST) == ScheduleConfig.from_dict(PNDM_SD15)
    other = PNDM_SD15 | {"predict_epsilon": False}
    assert ScheduleConfig.from_dict(other).prediction_type == "sample"


def test_an_unknown_key_is_warned_of_by_name_and_once(caplog):
    strange = PNDM_SD15 | {"colour_of_noise": "pink"}
    for _ in range(2):
        assert ScheduleConfig.from_dict(strange) == ScheduleConfig.from_dict(PNDM_SD15)
    assert [r.message for r in caplog.records] == [
        "scheduler_config.json: the unknown key 'colour_of_noise' (value 'pink') is ignored"
    ]


@pytest.mark.parametrize(
    "name", ["LCMScheduler", "TCDScheduler", "SASolverScheduler", "DPMSolverSDEScheduler"]
)
def test_classes_of_other_samplers_hold_an_ordinary_schedule(name):
    config = PNDM_SD15 | {"timestep_spacing": "leading", "set_alpha_to_one": True}
    ddim = ScheduleConfig.from_dict(config | {"_class_name": "DDIMScheduler"})
    assert ScheduleConfig.from_dict(config | {"_class_name": name}) == ddim
    assert ScheduleConfig.from_dict(config | {"_class_name": "FlaxDDIMScheduler"}) == ddim


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name 'FlowMatchEulerDisc"),
        ({"beta_shedule": "linear"}, "unknown key 'beta_shedule' .*'linear'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' .*squaredcos_cap_v2"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction' .*epsilon"),
        ({"timestep_spacing": "middle"}, "timestep_spacing='middle' .*trailing"),
        ({"thresholding": True}, "thresholding=True is not supported; use False"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"variance_type": "learned_range"}, "variance_type='learned_range'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0 must be a whole number"),
        ({"_class_name": ["DDIMScheduler"]}, r"_class_name \['DDIMScheduler'\] is not"),
        ({"_class_name": "EDMEulerScheduler"}, "_class_name 'EDMEulerScheduler' is not"),
        ({"_class_name": None}, "_class_name None is not"),
        ({"invert_sigmas": True}, "invert_sigmas=True"),
        ({"thresholding": [1]}, r"thresholding=\[1\]"),
        ({"predict_epsilon": "yes"}, "predict_epsilon='yes' must be true or false"),
        (
            {"predict_epsilon": True},
            "predict_epsilon=True says prediction_type='epsilon', but .*v_",
        ),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps=1000000000000 .*at most 1000000"),
        ({"clip_sample_range": 10**400}, "clip_sample_range=1000"),
        ({"beta_start": float("nan")}, "beta_start=nan"),
        ({"trained_betas": [float("nan")] * 1000}, "trained_betas must be"),
        ({"trained_betas": [[0.1]] * 1000}, "trained_betas must be"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps=1000.0"),
        ({"steps_offset": -1}, "steps_offset=-1"),
        ({"beta_start": "0.1"}, "beta_start='0.1'"),
        ({"beta_end": 1.5}, "beta_end=1.5"),
        ({"beta_end": float("nan")}, "beta_end=nan"),
        ({"clip_sample": "no"}, "clip_sample='no' must be true or false"),
        ({"clip_sample_range": 0}, "clip_sample_range=0"),
        ({"trained_betas": [0.1, 2.0]}, "trained_betas must be null or a list"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values; num_train_timesteps=1000"),
    ],
)
def test_bad_values_are_named_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as error:
        ScheduleConfig.from_dict(DDIM_SD21 | change, where="model/scheduler_config.json")
    assert str(error.value).startswith("model/scheduler_config.json: ")
    assert "\n" not in str(error.value)
