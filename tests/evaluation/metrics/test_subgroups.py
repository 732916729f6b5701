"""Parts of the sets: who is in them, and what too few images give."""

import numpy as np
import pytest

from medsd_jax.evaluation.metrics.fidelity import fidelity
from medsd_jax.evaluation.metrics.subgroups import find_subgroups, subgroup_fidelity
from medsd_jax.evaluation.reports.base import TooFew
from medsd_jax.evaluation.reports.evaluation import Distances

LABELS = [
    {"edema": 1, "sex": "F", "age": 8, "view": "PA", "side": "left", "ratio": 0.5},
    {"edema": 0, "nodule": 0, "sex": "M", "age": 44},
    {"edema": 1, "sex": "", "age": 59, "view": "AP"},
    {"sex": "F", "age": 110, "view": "PA"},
]


def test_subgroups_are_findings_sexes_ages_and_views():
    result = {name: np.flatnonzero(rows).tolist() for name, rows in find_subgroups(LABELS).items()}
    assert result == {
        "edema": [0, 2],  # no image shows a nodule; a side and a ratio are no yes or no
        "age=0-19": [0],
        "age=40-59": [1, 2],
        "age=100-119": [3],
        "sex=F": [0, 3],
        "sex=M": [1],
        "view=AP": [2],
        "view=PA": [0, 3],
    }
    assert list(result)[:4] == ["edema", "age=0-19", "age=40-59", "age=100-119"]
    assert find_subgroups([{}, {}]) == {}


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(200, 4)), rng.normal(size=(160, 4))
    sick, asked = np.arange(200) % 2 == 0, np.arange(160) % 4 != 0
    synthetic[asked] += 2.0  # the generated images of sick patients are wrong
    labels = [[{"edema": int(x), "sex": "F"} for x in rows] for rows in (sick, asked)]
    labels[1][5]["age"] = 30
    return real.astype(np.float32), synthetic.astype(np.float32), *labels


def test_a_subgroup_is_the_distance_of_these_images_alone(sets):
    real, synthetic, of_real, of_synthetic = sets
    result = subgroup_fidelity(real, synthetic, of_real, of_synthetic)
    asked = np.arange(160) % 4 != 0
    assert result["edema"] == fidelity(real[::2], synthetic[asked])
    assert result["sex=F"] == fidelity(real, synthetic)
    assert result["edema"].kid.value > result["sex=F"].kid.value


def test_subgroups_with_few_images_are_marked_and_get_no_number(sets):
    result = subgroup_fidelity(*sets, least=121)
    assert result["edema"] == TooFew(num_real=100, num_synthetic=120)
    assert result["age=20-39"] == TooFew(num_real=0, num_synthetic=1)
    assert isinstance(result["sex=F"], Distances)


def test_a_subgroup_that_all_images_are_in_is_not_measured_twice(sets):
    whole = fidelity(*sets[:2], seed=1)  # another object than what would be measured
    result = subgroup_fidelity(*sets, whole=whole)
    assert result["sex=F"] is whole and isinstance(result["edema"], Distances)


def test_many_images_of_few_patients_get_no_number(sets):
    patients = [f"p{i // 2 % 9}" for i in range(200)]  # nine patients with an edema, nine without
    result = subgroup_fidelity(*sets, real_patients=patients)
    assert result["edema"] == TooFew(num_real=100, num_synthetic=120)
    patients = [f"p{i // 2 % 20}" for i in range(200)]
    result = subgroup_fidelity(
        *sets, real_patients=patients, synthetic_units=[*map(str, range(160))]
    )
    assert result["edema"].kid.n == 20 and result["edema"].precision.n == 120
    assert subgroup_fidelity(*sets, synthetic_units=["s"] * 160)["edema"].too_few
