from itertools import combinations

import numpy as np
import pytest
from skimage import metrics

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics import similarity
from medsd_jax.evaluation.metrics.similarity import (
    intra_prompt_ms_ssim,
    most_scales,
    ms_ssim,
    psnr,
    rmse,
    ssim,
)


def draw_images(count, height, width, *, noise=0.1, seed=0):
    """Smooth images with bright, dark and flat parts, and the same with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    phase = rng.uniform(0, 6, (count, 4, 1, 1))
    waves = np.sin(9 * x + phase[:, 0]) * np.cos(7 * y + phase[:, 1]) + 0.3 * np.sin(40 * x * y)
    first = np.clip(0.5 + 0.7 * waves, 0.0, 1.0)
    first[:, : height // 4] = 0.97  # flat and bright: where variances cancel
    second = np.clip(first + noise * rng.normal(size=first.shape), 0.0, 1.0)
    return tuple(p.astype(np.float32)[..., None] for p in (first, second))


def skimage_ssim(x, y):
    return metrics.structural_similarity(
        x[..., 0].astype(np.float64),
        y[..., 0].astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50), (11, 12)])
@pytest.mark.parametrize("noise", [0.001, 0.1])
def test_ssim_equals_scikit_image(height, width, noise):
    x, y = draw_images(3, height, width, noise=noise)
    expected = [skimage_ssim(a, b) for a, b in zip(x, y, strict=True)]
    # Variances are right to 1e-7 of 1/4, which is 3e-5 of C2; the errors of positions average out.
    np.testing.assert_allclose(ssim(x, y), expected, rtol=1e-5, atol=1e-6)


def test_psnr_and_rmse_equal_scikit_image():
    x, y = draw_images(3, 20, 30)
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(x, y, strict=True)]
    expected = [metrics.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]
    np.testing.assert_allclose(psnr(x, y), expected, rtol=1e-5)  # float32 means of 600 squares
    expected = [metrics.mean_squared_error(a, b) ** 0.5 for a, b in pairs]
    np.testing.assert_allclose(rmse(x, y), expected, rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), [(176, 192), (181, 163)])
@pytest.mark.parametrize("num_scales", [5, 3])
def test_ms_ssim_equals_pytorch_msssim(height, width, num_scales):
    """Odd sides too, which are padded; noise that makes a scale's mean negative is below."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    x, y = draw_images(2, height, width)
    y[1] = draw_images(1, height, width, seed=5)[0][0]
    weights = similarity._WEIGHTS[:num_scales]
    if num_scales < 5:
        weights = tuple(weight / sum(weights) for weight in weights)
    as_torch = [torch.tensor(p.transpose(0, 3, 1, 2), dtype=torch.float64) for p in (x, y)]
    expected = reference.ms_ssim(
        *as_torch, data_range=1.0, size_average=False, weights=list(weights)
    )
    result = ms_ssim(x, y, num_scales=num_scales)
    # The demand of the project; float32 gives about 1e-6.
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-5)
    assert np.all((result > 0.0) & (result < 1.0))


@pytest.mark.torch
def test_ms_ssim_of_small_images_is_made_of_the_reference_s_terms():
    """64 x 64 has room for 3 scales; pytorch_msssim itself refuses whatever has no room for 5."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim.ssim")
    x, y = draw_images(4, 64, 64)
    a, b = (torch.tensor(p.transpose(0, 3, 1, 2), dtype=torch.float64) for p in (x, y))
    window = reference._fspecial_gauss_1d(11, 1.5)[None].double()
    weights = np.array(similarity._WEIGHTS[:3]) / sum(similarity._WEIGHTS[:3])
    expected = 1.0
    for scale, weight in enumerate(weights):
        whole, contrast = reference._ssim(a, b, data_range=1.0, win=window, size_average=False)
        expected = expected * (whole if scale == 2 else contrast)[:, 0] ** weight
        a, b = (torch.nn.functional.avg_pool2d(p, 2) for p in (a, b))
    np.testing.assert_allclose(ms_ssim(x, y, num_scales=3), expected.numpy(), atol=1e-5)


def test_equal_and_opposite_images():
    x, _ = draw_images(2, 64, 64)
    np.testing.assert_allclose(ssim(x, x), 1.0, rtol=1e-6)
    np.testing.assert_allclose(ms_ssim(x, x, num_scales=3), 1.0, rtol=1e-6)
    assert np.all(np.asarray(rmse(x, x)) == 0.0) and np.all(np.isposinf(psnr(x, x)))
    noise = np.random.default_rng(0).uniform(size=x.shape).astype(np.float32)
    assert np.all(np.asarray(ssim(noise, 1 - noise)) < 0.0)
    # Negative means count as 0, where a power would be nan.
    np.testing.assert_array_equal(ms_ssim(noise, 1 - noise, num_scales=3), 0.0)


def test_symmetric_and_falling_with_noise():
    x, y = draw_images(2, 64, 64)
    np.testing.assert_allclose(ms_ssim(x, y, num_scales=3), ms_ssim(y, x, num_scales=3), rtol=1e-6)
    levels = [
        [float(f(*draw_images(1, 64, 64, noise=noise))[0]) for noise in (0.02, 0.1, 0.4)]
        for f in (ssim, psnr, lambda a, b: ms_ssim(a, b, num_scales=3), lambda a, b: -rmse(a, b))
    ]
    assert all(low > middle > high for low, middle, high in levels)


@pytest.mark.parametrize(
    ("size", "scales"), [(10, 0), (11, 1), (20, 1), (21, 2), (64, 3), (160, 4), (161, 5), (512, 5)]
)
def test_scales_that_fit(size, scales):
    assert most_scales(size, 600) == most_scales(600, size) == scales


@pytest.mark.torch
def test_intra_prompt_pairs(monkeypatch):
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    images = np.stack([draw_images(4, 161, 161, seed=seed)[0] for seed in range(3)])
    images[1] = draw_images(1, 161, 161)[0]  # one prompt whose images are all the same
    result = intra_prompt_ms_ssim(images)
    for prompt in range(3):
        expected = [
            float(
                reference.ms_ssim(
                    *(torch.tensor(images[prompt, i, None, None, ..., 0]) for i in pair),
                    data_range=1.0,
                )
            )
            for pair in combinations(range(4), 2)
        ]
        np.testing.assert_allclose(result.pairs[prompt], expected, atol=2e-5)  # both float32
    np.testing.assert_allclose(result.pairs[1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(result.mean, np.mean(result.pairs), rtol=1e-6)
    np.testing.assert_allclose(result.std, np.std(result.pairs), rtol=1e-6)
    np.testing.assert_allclose(result.of_prompts, result.pairs.mean(axis=1), rtol=1e-6)
    assert result.of_prompts.argmax() == 1  # mode collapse raises MS-SSIM


def test_intra_prompt_in_blocks():
    """More prompts than a block takes, and other numbers of images."""
    images = np.random.default_rng(0).uniform(size=(5, 3, 11, 11, 1)).astype(np.float32)
    large = np.repeat(images, 100, axis=0)
    result = intra_prompt_ms_ssim(np.tile(large, (1, 1, 6, 6, 1)), num_scales=1)
    assert result.pairs.shape == (500, 3) and result.num_scales == 1
    assert 500 > 2**24 // (3 * 66 * 66) // 4
    np.testing.assert_array_equal(result.pairs, np.repeat(result.pairs[::100], 100, axis=0))


def test_bad_images_are_named():
    x, y = draw_images(4, 64, 64)
    with pytest.raises(UserError, match=r"64 x 64 .* 5 scale.* at least 161; use num_scales=3"):
        ms_ssim(x, y)
    with pytest.raises(UserError, match=r"at least 11; use larger images"):
        ssim(x[:, :10], y[:, :10])
    with pytest.raises(UserError, match=r"num_scales=6"):
        ms_ssim(x, y, num_scales=6)
    with pytest.raises(UserError, match=r"1 images each make no pair"):
        intra_prompt_ms_ssim(x[:, None], num_scales=3)
    with pytest.raises(UserError, match=r"from -1 to "):
        intra_prompt_ms_ssim((2 * x - 1)[None].clip(-1), num_scales=3)
    x[0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"from nan to nan"):
        intra_prompt_ms_ssim(x[None], num_scales=3)
