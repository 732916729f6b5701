import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.vision.preprocessing import BICUBIC, BILINEAR, XRV_ROENTGEN, resize
from tests.vision import cases


@pytest.fixture(scope="module")
def golden():
    return cases.golden()


@pytest.mark.parametrize("name", cases.IMAGES)
@pytest.mark.parametrize("chain", cases.CHAINS)
def test_equals_reference(chain, name, golden):
    """Whole chains, against clean-fid and RoentGen's recipe for torchxrayvision."""
    theirs = golden[f"{chain}/{name}"]
    ours = cases.CHAINS[chain](cases.image(name))[:: cases.EVERY, :: cases.EVERY]
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{chain} {name}: {error:.1e}")
    if chain == "clean-fid":
        np.testing.assert_array_equal(ours, theirs)
    else:
        # torch places its windows in float32, Pillow in float64: at column 400 that is 3e-5 of a
        # pixel apart, times the difference of two neighbours. 1e-5 was measured.
        assert error <= 3e-5


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"), [(299, 299), (37, 500), (224, 111), (20, 30), (391, 300)]
)
def test_resize_equals_torch_antialiased(mode, height, width):
    """torch's own implementation, up and down, also with another aspect ratio.

    In float64, where torch places its windows as Pillow does.
    """
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).uniform(0, 255, (391, 300, 2)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(pixels, -1, 0)[None].astype(np.float64)),
        size=(height, width),
        mode=mode,
        antialias=True,
    )[0]
    ours = resize(pixels, height, width, BICUBIC if mode == "bicubic" else BILINEAR)
    assert ours.dtype == np.float32
    # Pillow rounds to float32 after rows and after columns. Without antialiasing it is 200 of 255.
    np.testing.assert_allclose(np.moveaxis(ours, -1, 0), theirs, rtol=0, atol=1e-4)


def test_resize_to_the_same_size_changes_nothing():
    pixels = np.random.default_rng(0).uniform(-5, 300, (17, 23, 3)).astype(np.float32)
    for resampling in (BICUBIC, BILINEAR):
        np.testing.assert_array_equal(resize(pixels, 17, 23, resampling), pixels)


@pytest.mark.parametrize("chain", cases.CHAINS)
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (300, 256, 3)])
def test_black_and_white_become_the_stated_range(chain, shape):
    """The trap of XRV features: a network for [-1024, 1024] that is fed [-1, 1]."""
    chain = cases.CHAINS[chain]
    for value, stated in ((0, chain.low), (255, chain.high)):
        out = chain(np.full(shape, value, np.uint8))
        assert out.shape == (chain.size, chain.size, chain.channels)
        assert out.dtype == np.float32
        # The filter's weights sum to one within float32.
        np.testing.assert_allclose(out[..., 0], stated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chain", cases.CHAINS)
def test_grey_uint8_float_and_rgb_are_one_image(chain):
    grey = cases.image("tall_grey")
    chain = cases.CHAINS[chain]
    expected = chain(grey)
    for same in (grey[:, :, None], grey.astype(np.float64), np.stack([grey] * 3, axis=-1)):
        # The mean of three equal float32 numbers may round.
        np.testing.assert_allclose(chain(same), expected, rtol=1e-6, atol=1e-3 * chain.high / 1024)


def test_batch_takes_images_of_several_sizes():
    chain = XRV_ROENTGEN
    images = [cases.image(name) for name in cases.IMAGES]
    out = chain.batch(images)
    assert out.shape == (len(images), 224, 224, 1)
    np.testing.assert_array_equal(out[1], chain(images[1]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint16), "an image of uint16 has no known white"),
        (np.zeros((4, 4, 4), np.uint8), r"not \[4, 4, 4\]"),
        (np.zeros((0, 4), np.uint8), r"not \[0, 4\]"),
        (np.zeros(4, np.uint8), r"not \[4\]"),
        (np.full((4, 4), 256.0), r"pixels lie in \[256.0, 256.0\]"),
        (np.full((4, 4), -0.5), r"\[-0.5, -0.5\], but must lie in \[0, 255\]"),
        (np.array([[1.0, np.nan]]), r"pixels lie in \[nan, nan\]"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    for chain in cases.CHAINS.values():
        with pytest.raises(UserError, match=message):
            chain(image)
