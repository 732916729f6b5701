"""Feature maps for a loss: the chains in JAX are Pillow's, and the maps are the network's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.classifier.model import load_classifier
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features import perceptual
from medsd_jax.evaluation.features.extraction import make_extractor, open_network
from medsd_jax.models.params import abstract, bind
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.vision.densenet import DenseNet, DenseNetConfig
from medsd_jax.vision.inception import SMALLEST_IMAGE, InceptionV3
from medsd_jax.vision.preprocessing import BILINEAR, CLEAN_FID, resize
from tests.tiny.classifier import write_classifier


def draw_images(size, channels=3):
    """Two square images [size, size, channels] uint8 with edges, and their images in [-1, 1]."""
    rng = np.random.default_rng(size)
    coarse = rng.integers(0, 256, (2, size // 8, size // 8, channels))
    u8 = coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    return u8, jnp.asarray(u8 / np.float32(127.5) - 1)


def xrv(image):
    """As torchxrayvision's README feeds its DenseNets, from a square image."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    return resize(2048 * (grey / np.float32(255)) - 1024, 224, 224, BILINEAR)


@pytest.mark.parametrize("size", [64, 224, 512])
@pytest.mark.parametrize(
    ("ours", "chain", "white"),
    [(perceptual._xrv, xrv, 1024), (perceptual._clean_fid, CLEAN_FID, 1)],
)
def test_chains_equal_pillow_s(size, ours, chain, white):
    u8, images = draw_images(size)
    result, expected = np.asarray(jax.jit(ours)(images)), np.stack([chain(x) for x in u8])
    assert result.shape == expected.shape
    # Both are float32; Pillow rounds the weights of its filter to float32 as we do, but sums in
    # another order. An unantialiased filter, or bicubic with another constant, is off by 0.1.
    np.testing.assert_allclose(result, expected, atol=4e-5 * white)


def test_a_classifier_s_maps_end_in_its_features(tmp_path):
    """Pooled, the last map is what `evaluate` measures; the sizes halve from map to map."""
    write_classifier(tmp_path, 32)
    features = perceptual.open_feature_maps(f"classifier={tmp_path}")
    u8, images = draw_images(32)
    maps = jax.jit(features.maps)(dict(features.params), images)
    assert [x.shape[1] for x in maps] == [16, 8, 4]
    extract = make_extractor(open_network(f"classifier={tmp_path}"), make_mesh({"data": -1}), 2)
    # Colours are averaged in float32 on both sides, in another order.
    np.testing.assert_allclose(np.mean(maps[-1], axis=(1, 2)), extract(u8), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_resized(tmp_path):
    write_classifier(tmp_path, 32)
    size = load_classifier(tmp_path).image_size
    features = perceptual.open_feature_maps(f"classifier={tmp_path}")
    _, large = draw_images(64)
    (first, *_) = jax.jit(features.maps)(dict(features.params), large)
    assert first.shape[1] == size // 2


def test_gradient_reaches_every_pixel(tmp_path):
    """Through an antialiased reduction too: none of the pixels falls between the samples."""
    write_classifier(tmp_path, 32)
    features = perceptual.open_feature_maps(f"classifier={tmp_path}")
    _, images = draw_images(64)
    loss = lambda x: sum(jnp.sum(jnp.sin(m)) for m in features.maps(dict(features.params), x))  # noqa: E731
    grad = np.asarray(jax.jit(jax.grad(loss))(images))
    assert np.isfinite(grad).all() and (np.abs(grad) > 0).mean() > 0.99


@pytest.mark.parametrize(
    ("make", "size", "channels"),
    [
        (InceptionV3, SMALLEST_IMAGE, 3),
        (functools.partial(DenseNet, DenseNetConfig(4, (1, 1, 1), 4, in_channels=1)), 32, 1),
    ],
)
def test_the_last_map_is_what_is_pooled(make, size, channels):
    graphdef, like = abstract(make)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    maps = jax.eval_shape(lambda p, x: bind(graphdef, p).feature_maps(x), like, image)
    pooled = jax.eval_shape(lambda p, x: bind(graphdef, p).pooled_features(x), like, image)
    assert maps[-1].shape[-1] == pooled.shape[-1]
    sides = [x.shape[1] for x in maps]
    assert sides == sorted(sides, reverse=True) and len(set(sides)) == len(sides) >= 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clip=folder", "write one of classifier=PATH, xrv=PATH, inception=PATH"),
        ("classifier", "are not known"),
        ("xrv=absent.pt", "absent.pt"),
        ("classifier=absent", "holds no classifier.json"),
    ],
)
def test_wrong_specs_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        perceptual.open_feature_maps(spec)
