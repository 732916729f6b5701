"""Published weights as a start: the torch module's scores before training, and what moves in it."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from medsd_jax.classifier import model
from medsd_jax.classifier.init import from_classifier, from_published, from_scratch
from medsd_jax.classifier.training import Augmentation, fit
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features.extraction import open_network
from medsd_jax.interop.torch_layout import to_torch
from medsd_jax.models.params import bind
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.vision.densenet import DenseNetConfig
from tests.tiny.classifier import write_classifier
from tests.vision import cases

ASKED = DenseNetConfig(
    growth_rate=cases.TINY["growth_rate"],
    block_config=cases.TINY["block_config"],
    num_init_features=cases.TINY["num_init_features"],
    num_classes=2,
    in_channels=1,
)
SIZE = 36
IMAGES = np.random.default_rng(3).integers(0, 256, (9, SIZE, SIZE), dtype=np.uint8)
IMAGENET = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def write_weights(path, channels=1):
    """A published file of the tiny network; its head scores five other labels."""
    shapes = dict(cases.used_shapes("xrv_tiny"))
    out, _, height, width = shapes["features.conv0.weight"]
    shapes["features.conv0.weight"] = (out, channels, height, width)
    tensors = cases.draw_weights(shapes)
    if channels == 1:
        # torchxrayvision's images are a thousand times as bright.
        tensors["features.norm0.running_var"] *= np.float32(600**2)
    save_file(tensors, path)
    return tensors


@pytest.fixture(params=[1, 3])
def channels(request):
    return request.param


@pytest.fixture
def file(tmp_path, channels):
    path = tmp_path / "published.safetensors"
    write_weights(path, channels)
    return path


def classifier_of(network, params):
    one = np.ones(2, np.float32)
    return model.Classifier(network, ("a", "b"), SIZE, "pad", params, one, 0 * one)


def own_range(channels):
    """IMAGES as torchxrayvision or torchvision feed them, [B, C, H, W]."""
    grey = IMAGES[:, None].astype(np.float32)
    if channels == 1:
        return 2048 * (grey / 255) - 1024
    mean, std = IMAGENET[:, :, None, None]
    return (np.repeat(grey, 3, axis=1) / 255 - mean) / std


@pytest.mark.torch
def test_scores_before_training_equal_the_torch_module_s(file, channels):
    """From the same 8-bit images, with our fresh head in the place of the module's."""
    import torch

    from tests.vision.torch_densenet import pooled_features

    start = from_published(file, ASKED)
    params = start.params(seed=4)
    tensors = {name: torch.tensor(x) for name, x in to_torch(params).items()}
    features = pooled_features(tensors, (2, 3), torch.from_numpy(own_range(channels)))
    expected = features @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    ours = model.predict_logits(classifier_of(start.network, params), IMAGES)
    # Float32 sums in another order: 1e-6 of the largest value, as for the feature networks.
    np.testing.assert_allclose(ours, expected, atol=1e-5 * float(expected.abs().max()))
    assert np.ptp(ours, axis=0).min() > 0.01 * np.abs(ours).max()  # the images differ


def test_features_equal_torchxrayvision_s(tmp_path):
    """The stored outputs of its own class, for images that are not 8 bits."""
    save_file(cases.draw_weights(cases.used_shapes("xrv_tiny")), tmp_path / "x.safetensors")
    start = from_published(tmp_path / "x.safetensors", ASKED)
    graphdef, _ = model.structure(start.network)
    images = jnp.asarray(cases.images("xrv_tiny"))
    ours = bind(graphdef, start.params(0)).pooled_features(images)
    expected = cases.golden()["xrv_tiny/features"]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_training_moves_all_but_the_stored_statistics(file):
    start = from_published(file, ASKED)
    before = start.params(seed=0)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (8, SIZE, SIZE, 3), np.uint8),
        "targets": rng.integers(0, 2, (8, 2)).astype(np.float32),
    }
    losses = []
    after = fit(
        before, start.network, itertools.repeat(batch), optax.adamw(1e-3, weight_decay=0.1),
        steps=8, augment=Augmentation(0.0, 0.0, 0.0), seed=0, mesh=make_mesh({"data": -1}),
        on_step=lambda step, metrics: losses.append(float(metrics["loss"])),
    )  # fmt: skip
    assert losses[-1] < losses[0]
    assert list(after) == list(before)
    for name, x in before.items():
        stays = name.endswith((".mean", ".var"))
        assert np.array_equal(after[name], x) == stays, name


def test_saved_and_loaded(file, channels, tmp_path):
    start = from_published(file, ASKED)
    classifier = classifier_of(start.network, start.params(1))
    model.save_classifier(classifier, tmp_path / "classifier")
    again = model.load_classifier(tmp_path / "classifier")
    assert again.network == start.network
    assert (again.network.norm, again.network.in_channels) == ("batch", channels)
    assert again.network.input_range == {1: "xrv", 3: "imagenet"}[channels]
    np.testing.assert_array_equal(model.predict(again, IMAGES), model.predict(classifier, IMAGES))
    space = open_network(f"classifier={tmp_path / 'classifier'}")
    prepared = space.prepare(list(IMAGES))
    np.testing.assert_allclose(
        np.moveaxis(prepared, -1, 1), own_range(channels), atol=1e-5 * np.abs(prepared).max()
    )


def test_the_seed_moves_the_head_alone(file):
    start = from_published(file, ASKED)
    first, other = start.params(0), start.params(1)
    differ = {name for name in first if not np.array_equal(first[name], other[name])}
    assert differ == {"classifier.kernel"}
    assert first["classifier.kernel"].shape == (ASKED.feature_size, 2)
    scratch = from_scratch(ASKED)
    assert scratch.network is ASKED
    assert (
        np.ptp(
            scratch.params(0)["features.conv0.kernel"] - scratch.params(1)["features.conv0.kernel"]
        )
        > 0
    )


def test_mistakes_are_reported(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = write_weights(path)
    wider = DenseNetConfig(growth_rate=16, block_config=(2, 3), num_init_features=16)
    with pytest.raises(UserError, match=r"set network.num_init_features=16, network.growth_rate=8"):
        from_published(path, wider)
    with pytest.raises(UserError, match="no such file"):
        from_published(tmp_path / "absent.pth", ASKED)

    def refused(match, changed):
        save_file(changed, path)
        with pytest.raises(UserError, match=match):
            from_published(path, ASKED)

    refused("holds no DenseNet", {"fc.weight": np.zeros((2, 2), np.float32)})
    refused("group norm", {k: x for k, x in tensors.items() if "running" not in k})
    refused("1 missing: features.norm5.bias", {
        k: x for k, x in tensors.items() if k != "features.norm5.bias"
    })  # fmt: skip
    two = np.zeros((16, 2, 7, 7), np.float32)
    refused("2 channels", tensors | {"features.conv0.weight": two})


def test_a_classifier_of_ours_gives_all_but_its_head(tmp_path):
    write_classifier(tmp_path, 16)
    before = model.load_classifier(tmp_path)
    asked = dataclasses.replace(before.network, num_classes=5)
    start = from_classifier(tmp_path, asked)
    assert start.network == asked
    for name, weight in start.params(0).items():
        if name.startswith("classifier."):
            assert weight.shape[-1] == 5
        else:
            np.testing.assert_array_equal(weight, before.params[name], err_msg=name)
    with pytest.raises(UserError, match=r"set network.num_init_features=8, network.growth_rate=8"):
        from_classifier(tmp_path, ASKED)
    with pytest.raises(UserError, match=r"holds no classifier.json"):
        from_classifier(tmp_path / "elsewhere", ASKED)
