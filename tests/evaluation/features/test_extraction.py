"""open_network by kind, and the features of a set over many devices."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medsd_jax.errors import UserError  # noqa: E402
from medsd_jax.evaluation.features import extraction  # noqa: E402
from medsd_jax.evaluation.features.extraction import features_of, open_network  # noqa: E402
from medsd_jax.evaluation.images.image_sets import open_images  # noqa: E402
from medsd_jax.evaluation.reports.evaluation import EvaluationReport  # noqa: E402
from medsd_jax.interop.diffusers_folder import save_pipeline  # noqa: E402
from medsd_jax.parallel import batching  # noqa: E402
from medsd_jax.parallel.mesh import make_mesh  # noqa: E402
from medsd_jax.reports.schema_files import schema_of  # noqa: E402
from tests.tiny import pipeline  # noqa: E402
from tests.vision import towers  # noqa: E402

pytestmark = pytest.mark.torch
WIDTHS = {"clip": 12, "rad-dino": 32, "latent": 256}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    clip, dino = towers.clip_tower(**towers.TINY_CLIP), towers.dinov2(**towers.TINY_DINOV2)
    towers.save(clip, root / "clip", {**towers.CLIP_PROCESSOR, "size": 24, "crop_size": 24})
    # Images of another size than the trained one: positions are interpolated.
    towers.save(dino, root / "rad-dino", {**towers.RAD_DINO_PROCESSOR, "size": 56, "crop_size": 56})
    save_pipeline(pipeline.tiny_pipeline(), root / "latent")
    towers.write_images(root / "images", 19)
    return root


@pytest.mark.parametrize("kind", WIDTHS)
def test_features_do_not_depend_on_devices_or_batches(places, tmp_path, kind):
    network = open_network(f"{kind}={places / kind}")
    images = open_images(places / "images")
    everywhere = features_of(network, images, tmp_path / "a", make_mesh({"data": -1}))
    assert everywhere.shape == (19, WIDTHS[kind])
    assert everywhere.dtype == np.float32
    few = dataclasses.replace(network, images_at_once=4)
    alone = features_of(few, images, tmp_path / "b", make_mesh({}, jax.devices()[:1]))
    # Other shapes, other rounding.
    np.testing.assert_allclose(alone, everywhere, atol=1e-5 * np.abs(everywhere).max())
    spread = np.ptp(everywhere, axis=0).max()
    assert spread > 0.1 * np.abs(everywhere).max()  # the images do not look alike to it


def test_a_device_gets_as_many_images_as_it_can_hold(places, tmp_path, monkeypatch):
    """A device works on its share at once; images arrive in one batch for all of them."""
    network = open_network(f"clip={places / 'clip'}")
    sizes = []
    monkeypatch.setattr(
        batching,
        "put_global",
        lambda x, s: (
            (sizes.append(len(x)) if isinstance(x, np.ndarray) else None) or jax.device_put(x, s)
        ),
    )
    small = dataclasses.replace(network, images_at_once=2)
    features_of(small, open_images(places / "images"), tmp_path, make_mesh({"data": -1}))
    assert sizes == [2 * jax.device_count()] * 2


@pytest.mark.parametrize(("size", "number"), [(16, 32), (224, 32), (518, 8), (512, 8), (2000, 1)])
def test_images_that_fit(size, number):
    assert extraction._that_fit(size) == number


def test_settings_that_no_weight_shows_change_the_fingerprint(places, tmp_path):
    """Otherwise features of another network would be read from the cache."""
    result = {open_network(f"clip={places / 'clip'}").fingerprint}
    module = towers.clip_tower(**towers.TINY_CLIP)
    processor = {**towers.CLIP_PROCESSOR, "size": 24, "crop_size": 24}
    changes = (
        ("config.json", {"hidden_act": "gelu"}),
        ("config.json", {"num_attention_heads": 2}),
        ("config.json", {"layer_norm_eps": 1e-6}),
        ("preprocessor_config.json", {"resample": 2}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
    )
    for i, (name, change) in enumerate(changes):
        folder = towers.save(module, tmp_path / str(i), processor)
        assert open_network(f"clip={folder}").fingerprint in result
        towers.edit(folder / name, **change)
        result.add(open_network(f"clip={folder}").fingerprint)
    assert len(result) == 1 + len(changes)


def test_the_chain_is_reported(places):
    chain = open_network(f"rad-dino={places / 'rad-dino'}").chain
    assert "shorter side to 56; centre crop 56x56" in chain
    assert "pad" in open_network(f"latent={places / 'latent'}").chain


@pytest.mark.parametrize("spec", ["dino=x", "clip", "rad-dino=", "latent"])
def test_the_kinds_are_listed(spec):
    with pytest.raises(UserError) as error:
        open_network(spec)
    assert spec in str(error.value)
    assert str(error.value).endswith(
        "write one of inception=PATH, xrv=PATH, classifier=PATH, clip=PATH, rad-dino=PATH, "
        "latent=PATH"
    )


def test_the_report_s_schema_knows_every_kind():
    space = schema_of(EvaluationReport)["$defs"]["FeatureSpace"]
    assert space["properties"]["network"]["enum"] == list(extraction.KINDS)
