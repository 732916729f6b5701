"""Redrawing images: as torch does, what a mask leaves alone, masks and their mistakes."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from medsd_jax.diffusion.samplers import SAMPLERS, make_step_table
from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.sampling.editing import box_mask, polygon_mask, redrawn_cells, soft_weights
from medsd_jax.workflows.models import save
from medsd_jax.workflows.sample import sample, schedule_of
from tests.tiny.pipeline import SIZE, one_torch_thread, tiny_pipeline  # noqa: F401

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
LATENTS = RNG.standard_normal((2, SIZE // 2, SIZE // 2, 4), np.float32)
PROMPTS = ["effusion", "clear lung"]
BOX = box_mask(SIZE, SIZE, (4, 4, 12, 10))


def edit(prompts=PROMPTS, **settings):
    """Two images per batch on one device: most tests share this program."""
    settings = {
        "mesh": make_mesh({}, jax.devices()[:1]), "batch_size": 2, "num_steps": 5,
        "seeds": range(len(prompts)), "init_images": IMAGES, "guidance_scale": 4.0, **settings,
    }  # fmt: skip
    return sample(tiny_pipeline(), prompts, progress=False, **settings)


def level_difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.torch
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "pndm"])
def test_strength_chooses_the_times_of_diffusers(name):
    """PNDM's table repeats a time, see pndm.py and test_samplers.py."""
    pipeline = pytest.importorskip("diffusers").StableDiffusionImg2ImgPipeline
    config = schedule_of(tiny_pipeline())
    for num_steps in (1, 7, 50):
        whole = make_step_table(name, config, num_steps, 50)
        scheduler = SimpleNamespace(timesteps=whole.times[:num_steps], order=1)
        for strength in (0.02, 0.2, 0.35, 0.58, 0.8, 0.99, 1.0):
            theirs, steps = pipeline.get_timesteps(
                SimpleNamespace(scheduler=scheduler), num_steps, strength, None
            )
            if steps == 0:
                with pytest.raises(UserError, match="leaves no step"):
                    make_step_table(name, config, num_steps, 50, strength=strength)
                continue
            table = make_step_table(name, config, num_steps, 50, strength=strength)
            assert table.num_calls == steps
            np.testing.assert_array_equal(table.times[:steps], theirs)


@pytest.mark.torch
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_same_image_as_torchs_image_to_image(tmp_path, monkeypatch, strength):
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as module

    save(tiny_pipeline(), tmp_path / "model")
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(LATENTS.transpose(0, 3, 1, 2).copy())
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
    # Ours starts from the posterior's mean, see sampler.py.
    monkeypatch.setattr(
        module, "retrieve_latents", lambda encoded, **kwargs: encoded.latent_dist.mode()
    )
    theirs = pipe(
        PROMPTS, image=[Image.fromarray(image) for image in IMAGES], strength=strength,
        num_inference_steps=10, guidance_scale=4.0,
    ).images  # fmt: skip
    theirs = np.stack([np.asarray(image) for image in theirs])
    ours = edit(latents=LATENTS, strength=strength, num_steps=10)
    assert theirs.std() > 30
    assert level_difference(ours, theirs).mean() < 0.5
    assert level_difference(ours, IMAGES).mean() > 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pixels_outside_of_the_mask_are_the_given_ones(sampler):
    masks = np.stack([BOX, polygon_mask(SIZE, SIZE, [(0, 0), (9, 0), (0, 9)])])
    drawn = edit(masks=masks, sampler=sampler, strength=1.0)
    np.testing.assert_array_equal(drawn[~masks], IMAGES[~masks])
    assert level_difference(drawn[masks], IMAGES[masks]).mean() > 5


def test_a_mask_of_everything_is_no_mask():
    whole = edit(masks=np.ones((SIZE, SIZE), bool))
    np.testing.assert_array_equal(whole, edit())


def test_latents_outside_of_the_mask_stay_on_the_images_noising_path():
    """Inside, what is drawn depends on what surrounds it: other surroundings, another drawing."""
    other = IMAGES.copy()
    other[:, ~BOX] = 255 - other[:, ~BOX]
    settings = {"masks": BOX, "strength": 1.0, "latents": LATENTS}
    one, two = edit(**settings), edit(**settings, init_images=other)
    assert level_difference(one[:, BOX], two[:, BOX]).mean() > 2


def test_less_strength_stays_closer_to_the_image():
    """Measured from the least of all: the random VAE does not give images back."""
    least, less, most = (edit(strength=s, num_steps=20) for s in (0.05, 0.2, 1.0))
    assert level_difference(less, least).mean() < level_difference(most, least).mean()


def test_one_image_and_mask_for_all_prompts():
    spread = edit(init_images=np.stack([IMAGES[0]] * 2), masks=np.stack([BOX, BOX]))
    np.testing.assert_array_equal(edit(init_images=IMAGES[0], masks=BOX), spread)


def test_an_image_depends_on_its_own_row_alone():
    three = np.concatenate([IMAGES, IMAGES[:1]])
    prompts, settings = ["one", "two", "one"], {"seeds": [5, 6, 5], "masks": BOX}
    pairs = edit(prompts, init_images=three, sampler="euler_ancestral", **settings)
    np.testing.assert_array_equal(pairs[0], pairs[2])
    spread = edit(
        prompts, init_images=three, sampler="euler_ancestral", **settings, batch_size=8,
        mesh=make_mesh({"data": 8}),
    )  # fmt: skip
    assert level_difference(pairs, spread).max() <= 1  # sums in another order, see test_sampler.py


def test_nothing_recompiles(backend_compiles):
    first = edit()
    before = len(backend_compiles)
    for change in (
        {"masks": BOX}, {"strength": 0.3}, {"num_steps": 9}, {"init_images": IMAGES[::-1]},
        {"seeds": [7, 8]},
    ):  # fmt: skip
        assert (edit(**change) != first).any(), change
    assert len(backend_compiles) == before
    edit(height=2 * SIZE, width=2 * SIZE, init_images=np.repeat(np.repeat(IMAGES, 2, 1), 2, 2))
    assert len(backend_compiles) > before, "the listener hears nothing"


def test_the_rim_is_soft_inside_and_the_edge_of_the_image_is_no_rim():
    mask = box_mask(32, 32, (0, 8, 20, 24))
    weights = soft_weights(mask, 8)
    assert (weights[~mask] == 0).all() and (weights[mask] > 0).all()
    np.testing.assert_allclose(weights[16, 13:22], [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-6)
    assert (weights[13:18, 0] == 1).all()


def test_a_cell_is_redrawn_when_one_of_its_pixels_is():
    weights = np.zeros((1, 8, 8), np.float32)
    weights[0, 3, 4] = 0.1
    cells = np.asarray(redrawn_cells(jax.numpy.asarray(weights), 4))[0, :, :, 0]
    assert cells.tolist() == [[False, True], [False, False]]


def test_box_and_polygon_agree_on_pixels():
    box = box_mask(10, 12, (2, 3, 7, 9))
    assert box.sum() == 5 * 6 and box[3, 2] and not box[9, 2] and not box[3, 7]
    # Pillow draws the outline's pixels too: the corners are the last pixels inside.
    np.testing.assert_array_equal(polygon_mask(10, 12, [(2, 3), (6, 3), (6, 8), (2, 8)]), box)


@pytest.mark.parametrize("box", [(0, 0, 11, 5), (-1, 0, 5, 5), (5, 0, 5, 5), (6, 0, 5, 5),
                                 (0, 0, float("nan"), 5)])  # fmt: skip
def test_a_box_outside_of_the_image(box):
    with pytest.raises(UserError, match="must lie within the image of 10 x 5 pixels"):
        box_mask(5, 10, box)


def test_a_polygon_that_is_none():
    with pytest.raises(UserError, match="at least 3 corners, not 2"):
        polygon_mask(5, 10, [(0, 0), (4, 4)])
    with pytest.raises(UserError, match=r"corner 11,2 .* outside of the image of 10 x 5"):
        polygon_mask(5, 10, [(0, 0), (4, 4), (11, 2)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength = 0.0 must be above 0"),
        ({"strength": 1.5}, "strength = 1.5 must be above 0 and at most 1"),
        ({"init_images": None, "masks": BOX}, "masks without init_images"),
        ({"init_images": None, "strength": 0.5}, "strength without init_images"),
        ({"init_images": IMAGES / 255}, "init_images must be uint8"),
        ({"init_images": IMAGES[..., 0]}, "init_images must be uint8"),
        ({"init_images": np.concatenate([IMAGES] * 2)}, "2 prompts need 1 or 2 init_images"),
        ({"init_images": IMAGES[:, 1:]}, "height = 15 must be a positive multiple of 2"),
        ({"masks": BOX[1:]}, "a mask of 16 x 15 pixels does not fit an image of 16 x 16"),
        ({"masks": BOX.astype(np.uint8)}, "masks must be bool"),
        ({"masks": np.zeros_like(BOX)}, "mask 0 covers no pixel"),
        ({"height": 32}, "height = 32, but the init images have 16 pixels"),
    ],
)
def test_bad_values_name_themselves(settings, message):
    with pytest.raises(UserError, match=message) as raised:
        edit(**settings)
    assert "\n" not in str(raised.value)
