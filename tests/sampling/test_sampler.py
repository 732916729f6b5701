"""The sampling program: torch's images, one compilation, images that know no neighbours."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

import medsd_jax
from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.sampling.inputs import SamplerShape, make_inputs
from medsd_jax.sampling.sampler import compiled_sampler
from medsd_jax.workflows.models import save
from medsd_jax.workflows.sample import MAX_STEPS, schedule_of
from tests.tiny.pipeline import LENGTH, SIZE, one_torch_thread, tiny_pipeline  # noqa: F401

PROMPTS = ["effusion", "clear lung"]
NEGATIVES = ["", "blur"]
LATENTS = np.random.default_rng(0).standard_normal((2, SIZE // 2, SIZE // 2, 4), np.float32)


def one_device():
    return make_mesh({}, jax.devices()[:1])


def sample(prompts=PROMPTS, *, kind="epsilon", **settings):
    """Two images per batch on one device: most tests share this program."""
    settings = {"mesh": one_device(), "batch_size": 2, "num_steps": 5, "seeds": [3, 4], **settings}
    return medsd_jax.sample(tiny_pipeline(kind), prompts, progress=False, **settings)


def level_difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.fixture(scope="module")
def torch_sample(tmp_path_factory):
    """torch diffusers' StableDiffusionPipeline with its DDIMScheduler, on the same weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipes = {}

    def run(kind, **settings):
        if kind not in pipes:
            folder = tmp_path_factory.mktemp(kind)
            save(tiny_pipeline(kind), folder)
            pipes[kind] = StableDiffusionPipeline.from_pretrained(folder)
            pipes[kind].set_progress_bar_config(disable=True)
            assert isinstance(pipes[kind].scheduler, DDIMScheduler)
            assert pipes[kind].scheduler.config.prediction_type == kind
        images = pipes[kind](**settings, height=SIZE, width=SIZE).images
        return np.stack([np.asarray(image) for image in images])

    return run


@pytest.mark.torch
@pytest.mark.parametrize("num_steps", [5, 20])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_same_image_as_torch(torch_sample, kind, num_steps):
    import torch

    ours = sample(
        kind=kind, latents=LATENTS, num_steps=num_steps, guidance_scale=4.0,
        negative_prompts=NEGATIVES,
    )  # fmt: skip
    theirs = torch_sample(
        kind, prompt=PROMPTS, negative_prompt=NEGATIVES, num_inference_steps=num_steps,
        guidance_scale=4.0, latents=torch.from_numpy(LATENTS.transpose(0, 3, 1, 2).copy()),
    )  # fmt: skip
    # An image of one grey, or one driven to black and white, would agree by itself.
    assert theirs.std() > 30
    assert np.isin(theirs, (0, 255)).mean() < 0.3
    assert level_difference(ours, theirs).mean() <= 0.5


def their_scheduler(sampler, config):
    import diffusers

    name, changes = {
        "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
        "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    }[sampler]
    return getattr(diffusers, name).from_config(config, **changes)


@pytest.mark.torch
# diffusers hands torch tensors to np.array, which numpy 2 has words about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("sampler", ["pndm", "dpmpp_2m_karras", "euler"])
def test_same_image_as_torch_by_other_samplers(tmp_path, sampler):
    """Through the whole pipeline, guidance rescale included; Euler at fractions of a time."""
    import torch
    from diffusers import StableDiffusionPipeline

    model = tiny_pipeline("v_prediction")
    save(model, tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = their_scheduler(sampler, pipe.scheduler.config)
    theirs = pipe(
        prompt=PROMPTS, negative_prompt=NEGATIVES, num_inference_steps=7, guidance_scale=4.0,
        guidance_rescale=0.7, height=SIZE, width=SIZE,
        latents=torch.from_numpy(LATENTS.transpose(0, 3, 1, 2).copy()),
    ).images  # fmt: skip
    theirs = np.stack([np.asarray(image) for image in theirs])
    spacing = pipe.scheduler.config.timestep_spacing
    model = dataclasses.replace(model, scheduler={**model.scheduler, "timestep_spacing": spacing})
    ours = medsd_jax.sample(
        model, PROMPTS, negative_prompts=NEGATIVES, latents=LATENTS, sampler=sampler, num_steps=7,
        guidance_scale=4.0, guidance_rescale=0.7, mesh=one_device(), batch_size=2, progress=False,
    )  # fmt: skip
    assert theirs.std() > 30
    assert level_difference(ours, theirs).mean() <= 0.5


@pytest.mark.torch
def test_same_image_as_torch_without_guidance(torch_sample):
    import torch

    theirs = torch_sample(
        "epsilon", prompt=PROMPTS, num_inference_steps=5, guidance_scale=1.0,
        latents=torch.from_numpy(LATENTS.transpose(0, 3, 1, 2).copy()),
    )  # fmt: skip
    ours = sample(latents=LATENTS, guidance_scale=1.0, negative_prompts=NEGATIVES)
    assert level_difference(ours, theirs).mean() <= 0.5


@pytest.mark.torch
def test_same_image_as_torch_with_fresh_noise_at_every_step(torch_sample, monkeypatch):
    """torch's pipeline at eta 0.7 draws what our keys draw: a new sample per step, by the seed."""
    import torch
    from diffusers.schedulers import scheduling_ddim

    seeds, step = [7, 2**31], iter(range(5))

    def our_noise(shape, **kwargs):
        i = next(step) + 1  # 0 is for the start
        keys = [jax.random.fold_in(jax.random.key(seed), i) for seed in seeds]
        noise = np.stack([jax.random.normal(key, LATENTS.shape[1:]) for key in keys])
        return torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())

    monkeypatch.setattr(scheduling_ddim, "randn_tensor", our_noise)
    theirs = torch_sample(
        "epsilon", prompt=PROMPTS, num_inference_steps=5, guidance_scale=4.0, eta=0.7,
        latents=torch.from_numpy(LATENTS.transpose(0, 3, 1, 2).copy()),
    )  # fmt: skip
    ours = sample(latents=LATENTS, guidance_scale=4.0, eta=0.7, seeds=seeds)
    assert next(step, None) is None, "torch drew no noise at some step"
    assert level_difference(ours, theirs).mean() <= 0.5
    quiet = sample(latents=LATENTS, guidance_scale=4.0, seeds=seeds)
    assert level_difference(ours, quiet).mean() > 5


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler_ancestral"])
def test_nothing_recompiles(backend_compiles, sampler):
    model, mesh = tiny_pipeline(), one_device()
    shape = SamplerShape(
        model.unet, model.vae, model.text_encoder, schedule_of(model), SIZE, SIZE,
        max_steps=MAX_STEPS, sampler=sampler,
    )  # fmt: skip
    program = compiled_sampler(shape, mesh)
    first = sample(sampler=sampler)
    # Other tests may have used the same program for other batch sizes.
    before, programs = len(backend_compiles), program._cache_size()
    assert programs >= 1
    changes = [
        {"prompts": ["a", "b c"]},
        {"negative_prompts": "noise"},
        {"seeds": [2**32 - 1, 0]},
        {"guidance_scale": 1.5},
        {"guidance_rescale": 0.7},
        {"num_steps": 1},
        {"num_steps": 13},
        {"latents": LATENTS},
    ]
    if sampler == "ddim":
        changes.append({"eta": 0.7})
    for change in changes:
        changed = sample(sampler=sampler, **change)
        assert (changed != first).any(), f"{change} changes nothing"
    assert len(backend_compiles) == before
    assert program._cache_size() == programs

    jax.jit(lambda x: x * 3)(1.0)
    assert len(backend_compiles) > before, "the listener hears nothing"


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.8), ("euler_ancestral", 0.0)]
)
def test_an_image_depends_on_its_own_seed_alone(sampler, eta):
    prompts, seeds = ["one", "two", "three"], [11, 2**31, 5]
    settings = {"seeds": seeds, "sampler": sampler, "eta": eta, "guidance_scale": 3.0}
    pairs = sample(prompts, **settings)  # two batches, the last one filled up
    assert pairs.shape == (3, SIZE, SIZE, 3)
    alone = sample(prompts, **settings, batch_size=1)
    spread = sample(prompts, **settings, batch_size=8, mesh=make_mesh({"data": 8}))
    swapped = sample(prompts[::-1], **{**settings, "seeds": seeds[::-1]})[::-1]
    for other in (alone, spread, swapped):
        # XLA may sum a convolution in another order for another batch: the last bit of a float32
        # then moves a value over the rounding edge between two levels, now and then.
        assert level_difference(pairs, other).max() <= 1
        assert (pairs != other).mean() < 0.01
    assert level_difference(pairs[0], pairs[1]).mean() > 5


def test_the_seed_makes_the_noise_of_every_ancestral_step():
    same = np.repeat(LATENTS[:1], 2, axis=0)
    settings = {"latents": same, "sampler": "euler_ancestral"}
    noisy = sample(["lung", "lung"], seeds=[1, 2], **settings)
    assert level_difference(noisy[0], noisy[1]).mean() > 5
    twins = sample(["lung", "lung"], seeds=[2, 2], **settings)
    assert (twins[0] == twins[1]).all() and (twins[1] == noisy[1]).all()


def test_the_seed_alone_makes_the_noise_of_every_step():
    same = np.repeat(LATENTS[:1], 2, axis=0)
    prompts = ["lung", "lung"]
    quiet = sample(prompts, latents=same, seeds=[1, 2], eta=0.0)
    assert (quiet[0] == quiet[1]).all()
    noisy = sample(prompts, latents=same, seeds=[1, 2], eta=1.0)
    assert level_difference(noisy[0], noisy[1]).mean() > 5
    assert level_difference(noisy[0], quiet[0]).mean() > 5
    twins = sample(prompts, latents=same, seeds=[2, 2], eta=1.0)
    assert (twins[0] == twins[1]).all() and (twins[1] == noisy[1]).all()


def test_a_seed_starts_from_unit_noise_of_its_own():
    """Giving the start noise that the seed stands for changes nothing."""
    model = tiny_pipeline()
    shape = SamplerShape(model.unet, model.vae, model.text_encoder, schedule_of(model), SIZE, SIZE)
    key = jax.random.fold_in(jax.random.key(3), 0)
    start = np.asarray(jax.random.normal(key, shape.latents))
    given = sample(latents=np.stack([start, start]), seeds=[100, 3])
    drawn = sample(seeds=[100, 3])
    assert (drawn[1] == given[1]).all()
    assert (drawn[0] != given[0]).any()


def test_defaults():
    mesh = one_device()
    prompts = ["x", "y"]
    plain = medsd_jax.sample(tiny_pipeline(), prompts, mesh=mesh, num_steps=3, progress=False)
    spelled = sample(prompts, seeds=[0, 1], num_steps=3, negative_prompts=["", ""])
    assert plain.dtype == np.uint8 and plain.shape == (2, SIZE, SIZE, 3)
    assert (plain == spelled).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0 must be a whole number between 1 and 1000"),
        ({"num_steps": -3}, "num_steps = -3"),
        ({"num_steps": 1001}, "num_steps = 1001"),
        ({"seeds": [0, -1]}, "seed -1 must be a whole number between 0 and 4294967295"),
        ({"seeds": [0, 2**32]}, "seed 4294967296"),
        ({"seeds": [0, 2**70]}, "seed 1180591620717411303424"),
        ({"seeds": [0, 1.5]}, "seed 1.5"),
        ({"seeds": [1, 2, 3]}, "2 prompts need as many seeds"),
        ({"seeds": 7}, "2 prompts need as many seeds"),
        ({"negative_prompts": ["a"]}, "2 prompts need as many seeds and negative prompts"),
        ({"eta": 2.0}, "eta = 2.0 must lie between 0"),
        ({"eta": -0.1}, "eta = -0.1"),
        ({"eta": 0.5, "sampler": "euler"}, "eta = 0.5 is a setting of sampler ddim"),
        ({"sampler": "plms"}, "sampler 'plms' is not one of ddim, pndm"),
        ({"guidance_rescale": 1.5}, "guidance_rescale = 1.5 must lie between 0"),
        ({"guidance_rescale": float("nan")}, "guidance_rescale = nan"),
        ({"eta": float("nan")}, "eta = nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf must be a finite number"),
        ({"guidance_scale": 1e38}, "at most 1000"),
        ({"height": 15}, "height = 15 must be a positive multiple of 2 pixels"),
        ({"width": -2}, "width = -2"),
        ({"height": 0}, "height = 0"),
        ({"latents": LATENTS[:1]}, "2 prompts need start latents"),
        ({"latents": LATENTS[:, :4]}, r"shape \(2, 4, 8, 4\)"),
        ({"latents": LATENTS[0, 0, 0, 0]}, "2 prompts need start latents"),
        ({"latents": LATENTS * np.inf}, "start latents .* finite"),
        ({"batch_size": 0}, "batch_size = 0 must be a multiple of 1"),
        ({"batch_size": 3, "mesh": "eight"}, "batch_size = 3 must be a multiple of 8"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of float32, bfloat16"),
        ({"attention": "flush"}, "attention implementation 'flush'"),
        ({"prompts": []}, "no prompt given"),
        ({"prompts": ["a", None]}, "prompt 1 is None"),
    ],
)
def test_bad_values_name_themselves(settings, message):
    if settings.get("mesh") == "eight":
        settings = {**settings, "mesh": make_mesh({"data": 8})}
    with pytest.raises(UserError, match=message) as raised:
        sample(**settings)
    assert "\n" not in str(raised.value)


def test_an_inpainting_model_is_refused():
    model = tiny_pipeline()
    unet = dataclasses.replace(model.unet, in_channels=9)
    with pytest.raises(UserError, match="9 -> 4 channels"):
        medsd_jax.sample(dataclasses.replace(model, unet=unet), ["x"], progress=False)


def test_a_long_prompt_is_cut_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        sample(["x" * 30, "y"])
    assert f"prompt 0 is longer than {LENGTH} tokens" in caplog.text


def test_inputs_are_padded_to_the_largest_number_of_steps():
    """Every number of steps has arrays of one shape: what keeps the program the same."""
    model = tiny_pipeline()
    shape = SamplerShape(
        model.unet, model.vae, model.text_encoder, schedule_of(model), SIZE, SIZE, max_steps=50
    )
    ids = np.zeros((2, LENGTH), np.int32)
    made = [
        make_inputs(
            shape, ids, ids, np.arange(2), num_steps=steps, guidance_scale=1.0, eta=0.0
        )
        for steps in (1, 7, 50)
    ]  # fmt: skip
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), inputs) for inputs in made]
    assert shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(UserError, match="between 1 and 50"):
        make_inputs(shape, ids, ids, np.arange(2), num_steps=51, guidance_scale=1.0, eta=0.0)
