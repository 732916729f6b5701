"""The classifier: its images, its weights on disk, its probabilities."""

import dataclasses

import jax
import numpy as np
import pytest

from medsd_jax.classifier import model
from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.vision.densenet import random_params


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (11, 24, 24), dtype=np.uint8)


def test_calibration_is_applied(classifier, images):
    logits = model.predict_logits(classifier, images)
    expected = 1 / (1 + np.exp(-(logits.astype(np.float64) * [2.0, 1.0] + [-0.5, 0.0])))
    np.testing.assert_allclose(model.predict(classifier, images), expected, rtol=1e-5)


def test_grey_and_colour_images_are_classified_alike(classifier, images):
    colour = np.repeat(images[..., None], 3, axis=-1)
    grey, of_colour = (model.predict_logits(classifier, p) for p in (images, colour))
    np.testing.assert_allclose(of_colour, grey, atol=1e-5)  # the mean of three rounds


def test_scores_depend_on_the_image_alone(classifier, images):
    """Not on its neighbours, the filled-up last batch, or the number of devices."""
    together = model.predict_logits(classifier, images)
    alone = model.predict_logits(classifier, images[[4]], make_mesh({}, jax.devices()[:1]))
    np.testing.assert_allclose(alone[0], together[4], atol=1e-5)


def test_scores_that_are_not_finite_are_no_calls(classifier, images):
    """Each weight is finite, so that the file can be read. NaN would be called absent."""
    name = next(name for name in classifier.params if name.endswith("conv0.kernel"))
    kernel = np.full_like(classifier.params[name], 3e38)
    broken = dataclasses.replace(classifier, params=classifier.params | {name: kernel})
    with pytest.raises(UserError, match=r"scores that are not finite .* for 11 of 11 images"):
        model.predict(broken, images)


def test_saved_and_loaded(classifier, images, tmp_path):
    model.save_classifier(classifier, tmp_path / "classifier")
    again = model.load_classifier(tmp_path / "classifier")
    assert again.network == classifier.network and again.labels == classifier.labels
    np.testing.assert_array_equal(model.predict(again, images), model.predict(classifier, images))


def test_mistakes_are_reported(classifier, images, tmp_path):
    with pytest.raises(UserError, match=r"12x24.*trained on 24x24"):
        model.predict(classifier, images[:, :12])
    with pytest.raises(UserError, match=r"knows effusion, nodule, not 'edema'"):
        classifier.column("edema")
    with pytest.raises(UserError, match=r"holds no classifier\.json"):
        model.load_classifier(tmp_path)
    model.save_classifier(classifier, tmp_path)
    weights = tmp_path / model.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or cut short"):
        model.load_classifier(tmp_path)


def test_weights_of_another_shape_are_reported(classifier, tmp_path):
    wider = dataclasses.replace(classifier.network, num_classes=3)
    model.save_classifier(
        dataclasses.replace(classifier, params=random_params(wider, np.random.default_rng(0))),
        tmp_path,
    )
    with pytest.raises(UserError, match=r"classifier\.weight"):
        model.load_classifier(tmp_path)
