"""The probe finds what is there, finds nothing where nothing is, and is the regression it says."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from medsd_jax.errors import UserError
from medsd_jax.evaluation.text.probe import STRENGTHS, Group, _fit, probabilities_of, probe

D = 12


def draw(patients, rng, per_patient=3):
    """Embeddings, a label that one direction of them decides, and a label of coins."""
    n = patients * per_patient
    x = rng.normal(size=(n, D)).astype(np.float32)
    direction = np.arange(D) - 4.0
    seen = (x @ direction + rng.normal(size=n) > 0).astype(float)
    coin = rng.integers(0, 2, n).astype(float)
    ids = tuple(f"{patients}-{i // per_patient}" for i in range(n))
    return x, Group(np.stack([seen, coin], axis=1), ids)


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    (x, train), (x_test, test) = draw(100, rng), draw(70, rng)
    noise = rng.normal(size=x.shape), rng.normal(size=x_test.shape)
    same = (x.copy(), x_test.copy())
    encoders = {"knows": (x, x_test), "noise": noise, "again": same}
    return probe(["seen", "coin"], train, test, encoders, num_resamples=60)


def test_what_is_there_is_found_and_chance_is_chance(result):
    seen, coin = (result.labels["knows"][name] for name in ("seen", "coin"))
    assert seen.auroc.value > 0.95 and seen.f1.value > 0.85
    # 210 texts: the standard error of an AUROC of nothing is 0.04.
    assert abs(coin.auroc.value - 0.5) < 0.12
    assert abs(result.labels["noise"]["seen"].auroc.value - 0.5) < 0.12
    assert seen.auroc.n == 70 and seen.num_images == 210
    assert result.strengths["knows"]["seen"] in STRENGTHS
    assert result.strengths["knows"]["coin"] == min(STRENGTHS)  # nothing to learn: hold back


def test_differences_are_paired(result):
    pairs = [(d.encoder, d.minus) for d in result.differences]
    assert pairs == [("noise", "knows"), ("again", "knows"), ("again", "noise")]
    worse, equal, better = (d.labels["seen"].auroc for d in result.differences)
    values = {k: result.labels[k]["seen"].auroc.value for k in ("knows", "noise")}
    assert worse.value == pytest.approx(values["noise"] - values["knows"])
    assert worse.ci95[1] < 0 < better.ci95[0]
    # The same encoder twice: patients that are hard for both cancel to the last bit.
    assert equal.value == 0 and equal.ci95 == (0, 0)


def test_shuffled_labels_are_chance():
    rng = np.random.default_rng(1)
    (x, train), (x_test, test) = draw(100, rng), draw(70, rng)
    shuffled = Group(rng.permutation(train.targets), train.patient_ids)
    scores = probe(["seen", "coin"], shuffled, test, {"x": (x, x_test)}, num_resamples=20)
    assert abs(scores.labels["x"]["seen"].auroc.value - 0.5) < 0.15


def test_a_patient_on_both_sides_is_refused():
    rng = np.random.default_rng(0)
    x, group = draw(10, rng)
    with pytest.raises(UserError, match="10 patients train and test the probe"):
        probe(["seen", "coin"], group, group, {"x": (x, x)})


def test_rare_and_unknown_labels():
    rng = np.random.default_rng(0)
    (x, train), (x_test, test) = draw(100, rng), draw(70, rng)
    rare, unknown = train.targets.copy(), test.targets.copy()
    rare[:, 1] = 0
    rare[:4, 1] = 1
    unknown[:100, 0] = np.nan
    result = probe(
        ["seen", "coin"], Group(rare, train.patient_ids), Group(unknown, test.patient_ids),
        {"x": (x, x_test), "y": (x, x_test)}, num_resamples=20,
    )  # fmt: skip
    assert result.labels["x"]["coin"].too_few is True
    assert result.labels["x"]["coin"].auroc is None
    assert result.labels["x"]["seen"].num_images == 110
    assert list(result.differences[0].labels) == ["seen"]


def test_probabilities_equal_an_independent_solver():
    """Equation (1) by scipy's own minimiser, and the standardisation by hand."""
    rng = np.random.default_rng(2)
    x, group = draw(60, rng)
    x = x * 5 + 3  # scales and offsets must not matter
    present, patients = group.targets[:, 0] == 1, np.array(group.patient_ids)
    z = (x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    result, strength = probabilities_of(x, present, patients, x)

    def objective(weights):
        w, b = weights[:-1], weights[-1]
        margin = np.where(present, 1, -1) * (z @ w + b)
        return 0.5 * w @ w + strength * np.logaddexp(0, -margin).sum()

    best = scipy.optimize.minimize(
        objective, np.zeros(D + 1), method="BFGS", options={"gtol": 1e-6}
    )
    expected = scipy.special.expit(z @ best.x[:-1] + best.x[-1])
    # Both solvers stop at gradients of about 1e-6.
    np.testing.assert_allclose(result, expected, atol=1e-4)
    other = _fit(z, present, 100 * strength).predict_proba(z)[:, 1]
    assert np.abs(other - expected).max() > 1e-3  # the regularisation shows at this tolerance


def test_a_number_that_never_changes_does_no_harm():
    rng = np.random.default_rng(2)
    x, group = draw(60, rng)
    patients, present = np.array(group.patient_ids), group.targets[:, 0] == 1
    padded = np.concatenate([x, np.full((len(x), 1), 7, np.float32)], axis=1)
    one, two = (probabilities_of(y, present, patients, y)[0] for y in (x, padded))
    np.testing.assert_allclose(one, two, atol=1e-5)
