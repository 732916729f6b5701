"""The comparison with torch: what it measures, and that torch needs nothing of JAX."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from medsd_jax.diffusion.schedule import sampling_timesteps
from medsd_jax.errors import UserError
from medsd_jax.interop import torch_verify
from medsd_jax.interop.diffusers_folder import load_pipeline, save_pipeline
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.workflows.sample import schedule_of
from tests.tiny.pipeline import LENGTH, SIZE, one_torch_thread, tiny_pipeline  # noqa: F401


@pytest.fixture
def folder(tmp_path):
    save_pipeline(tiny_pipeline(), tmp_path / "model")
    return tmp_path / "model"


def write_scheduler(folder, **config):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(config))
    index = folder / "model_index.json"
    entries = json.loads(index.read_text())
    entries["scheduler"] = ["diffusers", config["_class_name"]]
    index.write_text(json.dumps(entries))


def inputs_of(model):
    ids = encode_prompts(model.tokenizer, ["effusion", ""])
    return torch_verify.make_component_inputs(model, ids, SIZE, SIZE, seed=0)


@pytest.mark.parametrize("absent", [["torch"], ["diffusers"], ["torch", "diffusers"]])
def test_torch_is_asked_for_by_its_extra(monkeypatch, absent):
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install '\.\[torch\]'") as raised:
        torch_verify.require_torch()
    assert " and ".join(absent) in str(raised.value)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_as_stored_is_what_the_file_gives_back(tmp_path, dtype, stored):
    model = tiny_pipeline()
    save_pipeline(model, tmp_path / "half", dtype=stored)
    read = load_pipeline(tmp_path / "half")
    rounded = torch_verify.as_stored(model, dtype)
    assert rounded.params.keys() == read.params.keys()
    for name, x in rounded.params.items():
        assert x.dtype == np.float32 and np.array_equal(x, read.params[name]), name


def test_compare_by_hand():
    numbers = torch_verify.compare(np.float32([[1.0, 2.0]]), np.float32([[1.5, -4.0]]))
    assert numbers == {
        "max_abs_difference": 6.0, "mean_abs_difference": 3.25, "output_max_abs": 4.0
    }  # fmt: skip


def test_compare_passes_nan_on():
    numbers = torch_verify.compare(np.float32([1.0, np.nan]), np.float32([1.0, 1.0]))
    assert np.isnan(numbers["max_abs_difference"]) and np.isnan(numbers["mean_abs_difference"])


def test_inputs_are_the_same_everywhere_and_of_the_models_shapes():
    model = tiny_pipeline()
    first, again = inputs_of(model), inputs_of(model)
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    assert first.prompt_ids.shape == (2, LENGTH)
    assert first.latents.shape == (2, SIZE // 2, SIZE // 2, 4)
    assert first.context.shape == (2, LENGTH, 32)
    assert first.images.shape == (2, SIZE, SIZE, 3) and np.abs(first.images).max() <= 1
    assert first.timesteps.tolist() == [999, 99]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_components_agree(tmp_path, kind):
    model = tiny_pipeline(kind)
    save_pipeline(model, tmp_path / "model")
    inputs = inputs_of(model)
    ours = torch_verify.our_components(model, inputs)
    theirs = torch_verify.TorchPipeline(tmp_path / "model").components(inputs)
    assert tuple(ours) == tuple(theirs) == torch_verify.COMPONENTS
    for name in ours:
        assert ours[name].shape == theirs[name].shape and ours[name].std() > 0.05, name
        # float32 sums in another order; 1e-4 is the certificate's threshold.
        assert np.abs(ours[name] - theirs[name]).max() <= 1e-5 * np.abs(theirs[name]).max(), name


@pytest.mark.torch
def test_torch_computes_in_float32_whatever_is_stored(tmp_path):
    import torch

    save_pipeline(tiny_pipeline(), tmp_path / "half", dtype="bfloat16")
    pipe = torch_verify.TorchPipeline(tmp_path / "half")._pipe
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {x.dtype for x in part.parameters()} == {torch.float32}


@pytest.mark.torch
def test_the_folders_tokenizer_is_asked(folder):
    model = tiny_pipeline()
    prompts = ["effusion", "", "Clear LUNG"]
    ids = torch_verify.TorchPipeline(folder).prompt_ids(prompts)
    assert np.array_equal(ids, encode_prompts(model.tokenizer, prompts))


@pytest.mark.torch
def test_absent_scheduler_keys_have_the_defaults_of_the_named_class(folder):
    write_scheduler(folder, _class_name="PNDMScheduler", steps_offset=1, skip_prk_steps=True)
    config = torch_verify.TorchPipeline(folder)._pipe.scheduler.config
    assert config.set_alpha_to_one is False  # DDIMScheduler's own default is True
    assert config.steps_offset == 1 and config.clip_sample is False


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers says what it puts over the file
def test_the_certificates_scheduler_is_the_one_that_a_user_of_the_folder_gets(folder):
    """StableDiffusionPipeline puts steps_offset=1 over the file's value."""
    write_scheduler(
        folder, _class_name="DDIMScheduler", steps_offset=0, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=True,
    )  # fmt: skip
    config = torch_verify.TorchPipeline(folder)._pipe.scheduler.config
    assert config.steps_offset == 1 and config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr and config.timestep_spacing == "trailing"
    assert config.clip_sample is False


SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers says what it puts over the file
@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "DDIMScheduler", "steps_offset": 0},
        {"_class_name": "DDIMScheduler", "steps_offset": 2},
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "tensor_format": "pt"},
        {"_class_name": "LCMScheduler", "original_inference_steps": 50},
        {"_class_name": "DPMSolverMultistepScheduler", "noise_sampler_seed": None},
    ],
)
def test_times_are_those_of_the_pipeline(folder, scheduler):
    """Whatever steps_offset the file has, the pipeline object walks with its own."""
    import diffusers

    write_scheduler(folder, **scheduler, **SD_BETAS)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(folder))
    known = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    ddim = diffusers.DDIMScheduler.from_config(known)
    for steps in (5, 10, 50):
        ddim.set_timesteps(steps)
        ours = sampling_timesteps(schedule_of(load_pipeline(folder)), steps)
        assert ours.tolist() == ddim.timesteps.tolist()
    assert ours[-1] == (0 if ddim.config.timestep_spacing == "linspace" else 1)


def test_a_scheduler_file_without_a_class_is_of_the_class_of_the_index(folder, tmp_path):
    write_scheduler(folder, _class_name="PNDMScheduler", **SD_BETAS)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_BETAS))
    model = load_pipeline(folder)
    assert schedule_of(model).set_alpha_to_one is False  # PNDM's default; DDIM's is True
    save_pipeline(model, tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "PNDMScheduler"]


@pytest.mark.torch
def test_the_folder_opens_where_there_is_no_jax(folder):
    """A user's environment of torch and diffusers alone: any import of JAX's world fails."""
    code = f"""
        import sys
        for absent in ("jax", "jaxlib", "flax", "optax", "medsd_jax"):
            sys.modules[absent] = None
        import numpy as np
        import torch
        from diffusers import StableDiffusionPipeline
        pipe = StableDiffusionPipeline.from_pretrained({str(folder)!r})
        generator = torch.Generator().manual_seed(0)
        image = pipe("effusion", num_inference_steps=2, generator=generator).images[0]
        assert image.size == ({SIZE}, {SIZE}), image.size
        assert np.asarray(image).std() > 10
        assert sys.modules["jax"] is None and sys.modules["flax"] is None
        print("sampled")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=folder,  # away from the checkout
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("sampled\n")
    assert "newly initialized" not in done.stderr and "not used" not in done.stderr
