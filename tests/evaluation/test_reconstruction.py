"""Numbers of a round trip against scikit-image and numpy, planted faults, and the verdict."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import metrics

from medsd_jax.errors import UserError
from medsd_jax.evaluation.autoencoder import Autoencoder, open_autoencoder
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.reconstruction import (
    BANDS,
    COLOUR_CAST,
    SIMILARITY,
    compare_with_thresholds,
    measure,
    summarise,
)
from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.parallel.mesh import make_mesh
from tests.tiny.pipeline import SIZE, tiny_pipeline

NUM = 11
MARKED = 4
"""The image whose first pixel is white: `destroys` knows it by that."""


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    """Grey images with all bands in them, and two in colour."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(NUM):
        ramp = np.linspace(0, 250, SIZE)[:, None] + rng.normal(0, 40, (SIZE, SIZE))
        pixels = np.clip(ramp, 0, 250)
        if i >= NUM - 2:
            pixels = np.clip(pixels[..., None] + rng.normal(0, 30, (SIZE, SIZE, 3)), 0, 250)
        pixels[0, 0] = 255 if i == MARKED else 0
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return open_images(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The autoencoder of random weights, from its folder, and the folder."""
    folder = tmp_path_factory.mktemp("sd") / "model"
    save_pipeline(tiny_pipeline(), folder)
    return open_autoencoder(str(folder)), folder


def fake(reconstruct) -> Autoencoder:
    return Autoencoder(lambda params, x: reconstruct(x), {}, SIZE, "pad", "0" * 16)


def measured_of(reconstruct, image_set, **settings):
    settings = {"batch_size": 1, "mesh": make_mesh({"data": -1}), **settings}
    rows = settings.pop("rows", range(len(image_set)))
    return measure(fake(reconstruct), image_set, list(rows), **settings)


def noise(x):
    return jax.random.uniform(jax.random.key(0), x.shape, minval=-1.0)


def measure_by_hand(originals_u8, images) -> dict[str, np.ndarray]:
    """(1) to (4) in float64, by scikit-image where it has them."""
    x = originals_u8.astype(np.float64) / 255
    y = np.clip((np.asarray(images, np.float64) + 1) / 2, 0, 1)
    rows = []
    for a, b in zip(x, y, strict=True):
        grey = a.mean(axis=-1), b.mean(axis=-1)
        error = grey[1] - grey[0]
        apart = [p - np.roll(p, -1, axis=-1) for p in (b, a)]
        cast = np.sqrt(((apart[0] - apart[1]) ** 2).mean(axis=(0, 1)))
        inside = [
            (grey[0] >= k / 4) & ((grey[0] < (k + 1) / 4) | (k == 3)) for k in range(len(BANDS))
        ]
        rows.append(
            {
                "rmse": metrics.mean_squared_error(*grey) ** 0.5,
                "psnr": metrics.peak_signal_noise_ratio(*grey, data_range=1.0),
                "ssim": metrics.structural_similarity(
                    *grey, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                    data_range=1.0,
                ),
                **dict(zip(COLOUR_CAST, cast, strict=True)),
                "count": [m.sum() for m in inside],
                "error": [error[m].sum() for m in inside],
                "squared": [(error[m] ** 2).sum() for m in inside],
            }
        )  # fmt: skip
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def originals_of(image_set):
    shown = [image_set.read(i) for i in range(len(image_set))]
    return np.stack([np.stack([p] * 3, -1) if p.ndim == 2 else p for p in shown])


def test_numbers_equal_scikit_image(tiny, image_set):
    autoencoder, _ = tiny
    result = measure(
        autoencoder, image_set, list(range(NUM)), batch_size=1, mesh=make_mesh({"data": -1})
    )
    originals = originals_of(image_set)
    images = jax.jit(autoencoder.reconstruct)(autoencoder.params, originals / np.float32(127.5) - 1)
    expected = measure_by_hand(originals, images)
    for name in ("rmse", "psnr", "ssim", *COLOUR_CAST):
        # float32 sums over 256 pixels, and other shapes on 8 devices than on one
        np.testing.assert_allclose(result.values[name], expected[name], rtol=3e-5, err_msg=name)
    np.testing.assert_array_equal(result.bands["count"], expected["count"])
    assert expected["count"].sum(axis=0).all()
    for name in ("error", "squared"):
        np.testing.assert_allclose(result.bands[name], expected[name], rtol=3e-5, atol=3e-5)
    # 16 pixels have room for one scale, and MS-SSIM of one scale is SSIM.
    np.testing.assert_allclose(result.values["ms_ssim"], np.maximum(expected["ssim"], 0), rtol=3e-5)
    assert result.num_scales == 1


@pytest.mark.torch
def test_reconstruction_equals_diffusers(tiny, image_set):
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderKL

    autoencoder, folder = tiny
    images = originals_of(image_set)[:3] / np.float32(127.5) - 1
    module = AutoencoderKL.from_pretrained(folder / "vae").eval()
    with torch.inference_mode():
        mean = module.encode(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).latent_dist.mean
        theirs = module.decode(mean).sample.permute(0, 2, 3, 1).numpy()
    ours = jax.jit(autoencoder.reconstruct)(autoencoder.params, images)
    # Float32 sums in another order, through encoder and decoder.
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_summary_is_of_the_images_and_pools_bands(image_set):
    result = measured_of(lambda x: 0.8 * x, image_set)
    expected = measure_by_hand(originals_of(image_set), 0.8 * (originals_of(image_set) / 127.5 - 1))
    patients = ["a", "b", "c", "d"] * 3
    similarity, _, bands = summarise(result, patients[:NUM], seed=0)
    for name in ("rmse", "psnr", "ssim"):
        entry, values = getattr(similarity, name), expected[name]
        np.testing.assert_allclose(entry.mean.value, values.mean(), rtol=1e-4)
        np.testing.assert_allclose(entry.std, values.std(ddof=1), rtol=1e-3)
        np.testing.assert_allclose(entry.quantiles["0.05"], np.quantile(values, 0.05), rtol=1e-4)
        assert entry.mean.n == 4
        low, high = entry.mean.ci95
        assert low < entry.mean.value < high
    count = expected["count"].sum(axis=0)
    for k, band in enumerate(bands):
        assert (band.low, band.high) == (k / 4, (k + 1) / 4)
        np.testing.assert_allclose(band.share.value, count[k] / count.sum(), rtol=1e-6)
        bias, squares = (expected[name].sum(axis=0)[k] / count[k] for name in ("error", "squared"))
        np.testing.assert_allclose(band.bias.value, bias, rtol=1e-4)
        np.testing.assert_allclose(band.rmse.value, squares**0.5, rtol=1e-4)
    # Less contrast: dark parts come out too bright and bright ones too dark.
    assert bands[0].bias.ci95[0] > 0 > bands[3].bias.ci95[1]
    assert sum(band.share.value for band in bands) == pytest.approx(1.0, abs=1e-9)


def test_one_patient_has_no_interval_and_an_empty_band_no_number(tmp_path):
    for i in range(2):
        Image.fromarray(np.full((SIZE, SIZE), 10 + i, np.uint8)).save(tmp_path / f"{i}.png")
    similarity, _, bands = summarise(
        measured_of(lambda x: x, open_images(tmp_path)), ["a", "a"], seed=0
    )
    assert dataclasses.astuple(similarity.ssim.mean) == (pytest.approx(1.0), 1, None)
    assert [band.share.value for band in bands] == [1, 0, 0, 0]
    assert bands[3].bias is None and bands[3].rmse is None


def test_a_colour_cast_is_seen(image_set):
    result = measured_of(lambda x: 0.5 * x + jnp.array([0.2, 0, 0])[None, None, None], image_set)
    grey = slice(0, NUM - 2)  # 0.2 on [-1, 1] is 0.1 on [0, 1]
    for name, cast in zip(COLOUR_CAST, (0.1, 0.0, 0.1), strict=True):
        np.testing.assert_allclose(result.values[name][grey], cast, atol=1e-6)
    same = measured_of(lambda x: x, image_set)
    for name in COLOUR_CAST:  # the colours of the original are no cast
        np.testing.assert_allclose(same.values[name], 0.0, atol=1e-6)


def destroys(x):
    """Slightly flat, but of the marked image a quarter is black."""
    flat = 0.9 * x
    return jnp.where(x[:, :1, :1] > 0.999, flat.at[:, :8, :8].set(-1.0), flat)


def test_a_destroyed_region_is_the_first_worst_case(image_set):
    result = measured_of(destroys, image_set)
    assert result.worst[0].row == MARKED
    assert result.worst[0].values["rmse"] > 1.1 * result.worst[1].values["rmse"]
    rmse = [case.values["rmse"] for case in result.worst]
    assert rmse == sorted(result.values["rmse"].tolist(), reverse=True)[: len(rmse)]
    case = result.worst[0]
    np.testing.assert_array_equal(case.original, originals_of(image_set)[MARKED])
    assert (case.reconstruction[:8, :8] == 0).all() and (case.reconstruction[8:] > 0).all()


def test_reconstructions_that_are_not_finite_are_not_measured(image_set):
    """As 8 bits they would be black, or white: a number like any other."""
    for value in (jnp.nan, jnp.inf):
        fails = lambda x, value=value: x.at[:, 3, 3, 0].set(  # noqa: E731
            jnp.where(x[:, 0, 0, 0] > 0.999, value, x[:, 3, 3, 0])
        )
        with pytest.raises(UserError, match=f"not finite .* for image {MARKED} of"):
            measured_of(fails, image_set)


def test_verdict(image_set):
    minimum = {"psnr": 30.0, "ssim": 0.9}
    same = compare_with_thresholds(measured_of(lambda x: x, image_set), minimum)
    assert same.good_enough and [c.passed for c in same.criteria] == [True, True]
    assert same.criteria[0].value == 100.0  # and not infinity, which has no mean
    nearly = measured_of(lambda x: x + 0.02 * jnp.sin(40 * x), image_set)
    assert compare_with_thresholds(nearly, minimum).good_enough
    away = compare_with_thresholds(measured_of(noise, image_set), minimum)
    assert not away.good_enough and not any(c.passed for c in away.criteria)
    assert [c.share_below for c in away.criteria] == [1.0, 1.0]
    # Each criterion decides by itself.
    one = compare_with_thresholds(nearly, {"psnr": 99.0, "ssim": 0.5})
    assert not one.good_enough and [c.passed for c in one.criteria] == [False, True]
    assert "not a medical validation" in one.caveat


def test_devices_and_batches_change_nothing(tiny, image_set):
    """A last batch that is filled up too; and rows in the place of the whole set."""
    autoencoder, _ = tiny
    everywhere = measure(
        autoencoder, image_set, list(range(NUM)), batch_size=1, mesh=make_mesh({"data": -1})
    )
    rows = [1, 4, 5, 8, 10]
    alone = measure(
        autoencoder, image_set, rows, batch_size=3, mesh=make_mesh({}, jax.devices()[:1])
    )
    for name in (*SIMILARITY, *COLOUR_CAST):
        # other shapes, other rounding
        np.testing.assert_allclose(alone.values[name], everywhere.values[name][rows], rtol=1e-4)
    assert {case.row for case in alone.worst} == set(rows)


def test_a_single_image_has_no_spread(image_set):
    with pytest.raises(UserError, match="needs at least 2"):
        measured_of(lambda x: x, image_set, rows=[0])


def test_sizes_and_channels_that_do_not_fit(tiny, monkeypatch):
    _, folder = tiny
    assert open_autoencoder(str(folder), 32, "crop").image_size == 32
    for size in (15, 10, 8):
        with pytest.raises(UserError, match=f"{size} pixels: this VAE takes multiples of 2"):
            open_autoencoder(str(folder), size)
    from medsd_jax.evaluation import autoencoder

    vae = autoencoder.load_vae(str(folder))
    grey = vae._replace(config=dataclasses.replace(vae.config, in_channels=1))
    monkeypatch.setattr(autoencoder, "load_vae", lambda _: grey)
    with pytest.raises(UserError, match="takes 1 channels and gives 3, not RGB"):
        open_autoencoder(str(folder))


def test_only_the_autoencoder_s_bits_are_its_hash(tiny, tmp_path):
    model = tiny_pipeline()
    for name, changed in (("unet", "unet.conv_in.bias"), ("vae", "vae.decoder.conv_in.bias")):
        params = {**model.params, changed: model.params[changed] + 1}
        save_pipeline(dataclasses.replace(model, params=params), tmp_path / name)
    assert open_autoencoder(str(tmp_path / "unet")).fingerprint == tiny[0].fingerprint
    assert open_autoencoder(str(tmp_path / "vae")).fingerprint != tiny[0].fingerprint
