"""The phantoms: determinism, truth of the labels in the pixels, captions, patients."""

import collections
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.findings import PAPER_EFFUSION, PAPER_NORMAL, Finding
from medsd_jax.data.phantoms.phantom import (
    FINDINGS,
    describe_phantom,
    encode_grey_png,
    phantom_records,
)
from medsd_jax.errors import UserError


def _with(kind, count, seed=0, **expected):
    """The first phantoms whose only finding is of this kind (and side, size)."""
    result, index = [], 0
    while len(result) < count:
        phantom = describe_phantom(seed, index)
        index += 1
        if len(phantom.findings) == 1 and phantom.findings[0].kind == kind:
            if all(getattr(phantom.findings[0], k) == v for k, v in expected.items()):
                result.append(phantom)
    return result


def _effect(phantom, size=64):
    """Image minus the same one without its findings [size, size], upright, no noise.

    Cardiomegaly stays: it is in the anatomy.
    """
    still = dataclasses.replace(
        phantom.exposure, noise=0.0, rotation=0.0, shift=(0.0, 0.0), marker="", collimation=0.0
    )
    shown = dataclasses.replace(phantom, exposure=still)
    calm = dict.fromkeys(phantom.geometry, 0.0) | {"shift": phantom.geometry["shift"]}
    clear = dataclasses.replace(shown, findings=(), geometry=calm)
    return shown.render(size).astype(int) - clear.render(size)


def test_image_depends_on_seed_and_index_alone():
    few, many = phantom_records(5, seed=3), phantom_records(40, seed=3)
    backwards = [describe_phantom(3, i) for i in reversed(range(5))][::-1]
    for i in range(5):
        assert few[i].read_bytes() == many[i].read_bytes()
        assert few[i].text == many[i].text == backwards[i].caption
        assert few[i].labels == many[i].labels
        assert few[i].patient_id == many[i].patient_id
    assert few[0].read_bytes() == few[0].read_bytes()
    assert few[0].read_bytes() != phantom_records(1, seed=4)[0].read_bytes()
    assert len({record.read_bytes() for record in many}) == 40


@pytest.mark.parametrize("size", [16, 64, 96])
def test_image_is_grey_rgb_of_the_asked_size(size):
    record = phantom_records(1, image_size=size)[0]
    with Image.open(io.BytesIO(record.read_bytes())) as image:
        assert image.format == "PNG" and image.mode == "RGB" and image.size == (size, size)
        pixels = np.asarray(image)
    assert (pixels == pixels[:, :, :1]).all()
    assert pixels.std() > 30


def test_encode_grey_png_keeps_every_value():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = np.asarray(Image.open(io.BytesIO(encode_grey_png(grey))))
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("index", range(6))
def test_small_image_is_the_antialiased_large_one(index):
    phantom = describe_phantom(0, index)
    quiet = dataclasses.replace(phantom.exposure, noise=0.0)
    phantom = dataclasses.replace(phantom, exposure=quiet)
    small, large = phantom.render(64).astype(float), phantom.render(256).astype(float)
    averaged = large.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    # Edges are at least 1.4 pixels soft, hence not equal: 1.3 grey levels on average, measured. A
    # image shifted by one pixel differs by 4 to 6.
    assert np.abs(small - averaged).mean() < 2.0
    assert np.abs(np.roll(small, 1, axis=1) - averaged).mean() > 3.0


@pytest.mark.parametrize(("side", "columns"), [("left", slice(36, 64)), ("right", slice(0, 28))])
def test_effusion_is_bright_low_and_on_its_side(side, columns):
    """The patient's left is on the image's right."""
    for phantom in _with("pleural effusion", 6, side=side):
        effect = _effect(phantom)
        bright = effect > 25
        assert bright.mean() > 0.01, phantom.key
        assert bright[:, columns].sum() > 0.95 * bright.sum(), phantom.key
        rows = np.nonzero(bright)[0]
        # A large one may reach the apex, yet most of the fluid lies below the middle.
        assert np.median(rows) > 28, phantom.key


def test_effusion_grows_with_its_size_word():
    areas = [
        np.mean([(_effect(p) > 25).mean() for p in _with("pleural effusion", 8, size=s)])
        for s in ("small", "moderate", "large")
    ]
    assert areas[0] > 0.012
    assert areas[1] > 1.5 * areas[0] and areas[2] > 1.4 * areas[1]


def test_effusion_has_a_meniscus():
    """Its upper edge is higher at the wall than towards the middle."""
    for phantom in _with("pleural effusion", 6, side="left", size="moderate"):
        bright = _effect(phantom, 128) > 25
        columns = np.nonzero(bright.any(axis=0))[0]
        top = bright.argmax(axis=0)[columns]
        inner, wall = len(columns) // 4, 3 * len(columns) // 4
        assert top[wall] + 3 <= top[inner], (phantom.key, top)


def test_bilateral_effusion_is_on_both_sides():
    for phantom in _with("pleural effusion", 4, side="bilateral"):
        bright = _effect(phantom) > 25
        assert bright[:, :28].mean() > 0.01 and bright[:, 36:].mean() > 0.01


@pytest.mark.parametrize(("side", "sign"), [("left", 1), ("right", -1)])
def test_pneumothorax_is_dark_outside_a_bright_line_without_markings(side, sign):
    for phantom in _with("pneumothorax", 4, side=side, size="moderate"):
        effect = _effect(phantom, 128)
        dark = effect < -8
        assert dark.mean() > 0.01, phantom.key
        columns = np.nonzero(dark)[1]
        assert (np.sign(columns - 64) == sign).mean() > 0.95
        assert (effect > 10).sum() > 30, "no pleural line"


def test_nodule_is_a_bright_spot_at_its_place():
    for phantom in _with("nodule", 8):
        effect = _effect(phantom, 128) * 1.0
        geometry, scale = phantom.geometry, phantom.exposure.scale
        rows, columns = np.nonzero(effect > 0.5 * effect.max())
        assert effect.max() > 15
        assert abs((columns.mean() + 0.5) / 64 - 1 - scale * geometry["nodule_x"]) < 0.03
        assert abs((rows.mean() + 0.5) / 64 - 1 - scale * geometry["nodule_y"]) < 0.03
        assert (geometry["nodule_x"] > 0) == (phantom.findings[0].side == "left")


def test_no_finding_hides():
    """Also behind a large heart and a high diaphragm, what the labels say can be seen at 64."""
    thresholds = {"pleural effusion": 30, "pneumothorax": 80}  # pixels; the smallest seen: 45, 109
    for index in range(250):
        phantom = describe_phantom(5, index)
        for finding in phantom.findings:
            effect = _effect(phantom)
            if finding.kind == "nodule":
                assert effect.max() > 25, phantom.key
            elif finding.kind in thresholds:
                shown = np.abs(effect) > (20 if finding.kind == "pleural effusion" else 6)
                assert shown.sum() > thresholds[finding.kind], phantom.key


def test_cardiomegaly_widens_the_heart_to_the_labelled_ratio():
    """The heart's width in the image, over the lungs', is the ratio in the labels."""
    for ratio in (0.42, 0.50, 0.60, 0.70):
        phantom = _with("cardiomegaly", 1)[0]
        anatomy = dataclasses.replace(
            phantom.anatomy, rib_strength=0.0, breast=0.0, cardiothoracic_ratio=ratio
        )
        still = dataclasses.replace(
            phantom.exposure, noise=0.0, rotation=0.0, shift=(0.0, 0.0), marker="", scale=1.0,
            patient_turn=0.0, collimation=0.0, tilt=(0.0, 0.0), gain=1.0, offset=0.0, gamma=1.0,
        )  # fmt: skip
        plain = dataclasses.replace(phantom, anatomy=anatomy, exposure=still)
        pixels = plain.render(256).astype(float)
        low = int(128 * (1 + min(anatomy.dome) + still.inspiration)) - 12
        # Just above the diaphragm: dark lung, bright heart, dark lung.
        row = np.median(pixels[low - 6 : low], axis=0)
        dark = np.nonzero(row[20:236] < row[20:236].min() + 45)[0] + 20
        gap = np.diff(dark)
        heart, lungs = gap.max() - 1, dark[-1] - dark[0] + 1
        assert heart / lungs == pytest.approx(ratio, abs=0.06)


def test_labels_say_what_the_findings_are():
    for index in range(60):
        phantom = describe_phantom(1, index)
        labels = phantom.labels()
        kinds = {finding.kind for finding in phantom.findings}
        assert labels["no_finding"] == int(not kinds)
        for kind in FINDINGS:
            assert labels[kind.replace(" ", "_")] == int(kind in kinds)
        assert (labels["cardiothoracic_ratio"] > 0.52) == ("cardiomegaly" in kinds)


def test_captions_are_true():
    """No caption names a side, size or finding that is not in the image."""
    for index in range(400):
        phantom = describe_phantom(2, index)
        text = phantom.caption.lower()
        assert "\n" not in text and len(text.split()) < 45
        sides = {finding.side for finding in phantom.findings}
        for side in ("left", "right", "bilateral"):
            assert side not in text or side in sides, (text, sides)
        kinds = {finding.kind for finding in phantom.findings}
        for kind in FINDINGS:
            denied = "no pleural effusion or pneumothorax" in text
            assert kind not in text or kind in kinds or (denied and not kinds), (text, kinds)
        for kind in kinds - {"cardiomegaly"}:
            assert kind in text, (text, kind)
        if "cardiomegaly" in kinds:
            assert "cardiomegaly" in text or "enlargement of the cardiac" in text


def test_captions_hold_the_papers_prompts_and_vary():
    texts = collections.Counter(record.text for record in phantom_records(600))
    assert PAPER_NORMAL == "A photo of a lung xray"
    assert PAPER_EFFUSION == "A photo of a lung xray with a visible pleural effusion"
    assert texts[PAPER_NORMAL] > 40
    assert texts[PAPER_EFFUSION] > 25
    assert len(texts) > 80


def test_the_paper_prompts_are_true_of_their_images():
    for record in phantom_records(300):
        if record.text == PAPER_NORMAL:
            assert record.labels["no_finding"] == 1
        if record.text == PAPER_EFFUSION:
            assert record.labels["pleural_effusion"] == 1


def test_patients_have_several_images_of_one_anatomy():
    phantoms = [describe_phantom(0, i) for i in range(240)]
    by_patient = collections.defaultdict(list)
    for phantom in phantoms:
        by_patient[phantom.patient_id].append(phantom)
    counts = collections.Counter(len(group) for group in by_patient.values())
    assert counts[1] > 30 and sum(n for size, n in counts.items() if size > 1) > 30
    for group in by_patient.values():
        assert len({p.anatomy for p in group}) == 1 and len({p.sex for p in group}) == 1
        assert len({p.exposure for p in group}) == len(group)
    assert len({p.anatomy for p in phantoms}) == len(by_patient)


def test_brightness_alone_does_not_tell_an_effusion():
    """A classifier has to look: the mean grey level separates poorly (area under the curve)."""
    records = phantom_records(400, image_size=32)
    means, ill = [], []
    for record in records:
        means.append(np.asarray(Image.open(io.BytesIO(record.read_bytes()))).mean())
        ill.append(record.labels["pleural_effusion"] == 1)
    means, ill = np.array(means), np.array(ill)
    auc = (means[ill][:, None] > means[~ill][None]).mean()
    assert auc < 0.8
    assert 0.2 < ill.mean() < 0.45


def test_findings_can_be_restricted():
    for record in phantom_records(150, findings=("pleural effusion",)):
        assert not record.labels["cardiomegaly"] and not record.labels["nodule"]
        assert record.labels["pleural_effusion"] or record.labels["no_finding"]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: phantom_records(0), "0"),
        (lambda: phantom_records(1, image_size=8), "8"),
        (lambda: phantom_records(1, image_size=4096), "4096"),
        (lambda: phantom_records(1, seed=-1), "-1"),
        (lambda: phantom_records(1, findings=("gout",)), "gout"),
    ],
)
def test_bad_arguments(call, named):
    with pytest.raises(UserError, match=named):
        call()


def test_finding_is_hashable():
    assert len({Finding("nodule", "left"), Finding("nodule", "left")}) == 1
