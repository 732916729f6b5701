"""What a classifier no longer calls alike: shares, paired AUROCs, and classifiers that misfit."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.prediction_flips import check_classifier, prediction_flips
from medsd_jax.evaluation.reports.reconstruction import PairedAuroc

NUM = 60


@pytest.fixture
def calls():
    """Probabilities that know the truth, and the same with noise."""
    rng = np.random.default_rng(0)
    truth = (np.arange(NUM) % 3 == 0).astype(float)
    before = np.clip(0.25 + 0.5 * truth + rng.normal(0, 0.2, NUM), 0, 1)
    after = np.clip(before + rng.normal(0, 0.3, NUM), 0, 1)
    pair = tuple(
        np.stack([p, np.full(NUM, 0.2)], axis=1).astype(np.float32) for p in (before, after)
    )
    return truth, pair


def entries(classifier, calls, labels, patients=None):
    patients = [str(i // 2) for i in range(NUM)] if patients is None else patients
    return prediction_flips(classifier, calls, labels, patients, seed=0)


def test_shares_and_paired_aurocs(classifier, calls):
    truth, (before, after) = calls
    result = entries(classifier, (before, after), [{"effusion": int(t)} for t in truth])
    entry, called = result["effusion"], (before[:, 0] > 0.5, after[:, 0] > 0.5)
    assert entry.prediction_flips.value == np.mean(called[0] != called[1]) > 0
    assert entry.prediction_flips.n == NUM // 2
    assert entry.appeared - entry.vanished == called[1].sum() - called[0].sum()
    assert entry.appeared + entry.vanished == (called[0] != called[1]).sum()
    expected = [roc_auc_score(truth, side[:, 0]) for side in (before, after)]
    auroc = entry.auroc
    assert [getattr(auroc, k).value for k in ("original", "reconstruction")] == pytest.approx(
        expected
    )
    assert auroc.difference.value == pytest.approx(expected[1] - expected[0])
    assert (auroc.num_images, auroc.num_present) == (NUM, NUM // 3)
    # Nothing is known of the other finding, which is never called.
    assert result["nodule"].prediction_flips.value == 0 and result["nodule"].auroc is None


def test_the_interval_is_paired(classifier, calls):
    """Both sides equal: the difference is 0 in every resample, however wide each side's own is."""
    truth, (before, _) = calls
    labels = [{"effusion": int(t)} for t in truth]
    auroc = entries(classifier, (before, before), labels)["effusion"].auroc
    assert auroc.difference.ci95 == (0.0, 0.0)
    assert auroc.original.ci95[0] < auroc.original.ci95[1]


def test_unknown_labels_are_left_out_and_few_are_said(classifier, calls):
    truth, (before, after) = calls
    some = [{"effusion": int(t)} if i < 40 else {} for i, t in enumerate(truth)]
    auroc = entries(classifier, (before, after), some)["effusion"].auroc
    assert auroc.num_images == 40
    assert auroc.original.value == pytest.approx(roc_auc_score(truth[:40], before[:40, 0]))
    few = [{"effusion": int(i < 4)} for i in range(NUM)]
    auroc = entries(classifier, (before, after), few)["effusion"].auroc
    assert auroc == PairedAuroc(num_images=NUM, num_present=4, too_few=True)
    # Many images with the finding, but of one patient.
    patients = ["ill" if t else str(i) for i, t in enumerate(truth)]
    labels = [{"effusion": int(t)} for t in truth]
    assert entries(classifier, (before, after), labels, patients)["effusion"].auroc.too_few


def test_classifiers_that_do_not_fit(classifier):
    check_classifier(classifier, [{"effusion": 1}, {"x": 0}], 24)
    check_classifier(classifier, [{"sex": "F", "age": 50}, {}], 512)
    with pytest.raises(UserError, match=r"knows effusion, nodule, but .* labelled with mass$"):
        check_classifier(classifier, [{"mass": 1, "sex": "M"}], 24)
    with pytest.raises(UserError, match="looks at 24 pixels, but the reconstructions have 16"):
        check_classifier(classifier, [{"effusion": 1}], 16)
