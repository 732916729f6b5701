"""Thumbnails and means of latents, against numbers counted by hand."""

import numpy as np
import pytest

from medsd_jax.evaluation.features.extraction import make_extractor, open_network
from medsd_jax.evaluation.features.rough import part_means
from medsd_jax.parallel.mesh import make_mesh


def test_a_thumbnail_is_what_is_light_and_where():
    network = open_network("thumbnail")
    image = np.zeros((64, 64), np.uint8)
    image[:8, 56:] = 255
    extract = make_extractor(network, make_mesh({"data": -1}), 3)
    features = extract([image, image[::-1], np.stack([image] * 3, axis=-1)])
    assert features.shape == (3, 64) and features.dtype == np.float32
    assert features[0].argmax() == 7 and features[1].argmax() == 63
    np.testing.assert_array_equal(features[0], features[2])
    assert features[0, 32] == -1.0


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(8, 8, 4, 4), (2, 6, 2, 4)])
def test_maps_are_averaged_over_parts(height, width, rows, columns):
    features = np.random.default_rng(0).normal(size=(5, height * width * 3)).astype(np.float32)
    result = part_means(features, (height, width, 3)).reshape(5, rows, columns, 3)
    maps = features.reshape(5, height, width, 3)
    first = maps[:, : height // rows, : -(-width // columns)].mean(axis=(1, 2))
    np.testing.assert_allclose(result[:, 0, 0], first, rtol=1e-5, atol=1e-6)
