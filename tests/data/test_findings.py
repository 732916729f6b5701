"""Reading findings from prompts; the truth is what the captions were written from."""

import itertools
import tarfile
from xml.etree import ElementTree

import numpy as np
import pytest

from medsd_jax.data import findings
from medsd_jax.data.findings import findings_in
from medsd_jax.data.phantoms.phantom import FINDINGS, phantom_records
from medsd_jax.data.sources.nih14 import WORDS, caption


def test_every_phantom_caption_is_understood():
    names = [kind.replace(" ", "_") for kind in FINDINGS]
    for record in phantom_records(num_images=1500, seed=5, image_size=16):
        result = findings_in(record.text)
        assert {n: result[n] for n in names} == {n: record.labels[n] for n in names}, record.text


def test_every_nih_caption_is_understood():
    for number, pair in enumerate(itertools.combinations(WORDS.values(), 2)):
        for key in range(3):
            text = caption(list(pair), "PA", f"{number}-{key}")
            expected = {name for name, there in findings_in(text).items() if there}
            assert expected == {words.replace(" ", "_") for words in pair}, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pleural effusion or pneumothorax.", set()),
        ("No pneumothorax. Large left pleural effusion.", {"pleural_effusion"}),
        ("No pneumothorax, but a small effusion.", {"pleural_effusion"}),
        ("Moderate bilateral pleural effusions and mild pulmonary edema.",
         {"pleural_effusion", "edema"}),
        ("Lungs clear without nodule", set()),
        ("The lungs are clear of airspace disease, pneumothorax, or pleural effusion.", set()),
        ("Large right-sided pleural effusion. Cardiomegaly.", {"pleural_effusion", "cardiomegaly"}),
        ("Massive opacity", set()),
        ("NO EFFUSION; ENLARGED HEART", {"cardiomegaly"}),
        ("", set()),
    ],
)  # fmt: skip
def test_negation_ends_with_its_clause(text, expected):
    assert {name for name, there in findings_in(text).items() if there} == expected


def test_real_reports_against_their_readers(shared_assets):
    """3,955 reports of Open-i, whose findings people coded as MeSH terms.

    The terms name what matters in a report, not every word of it, and reports say what prompts do
    not ("may represent"); so the share that is found stands beside the share that is right.
    """
    archive = shared_assets / "iu_xray_openi" / "NLMCXR_reports.tgz"
    terms = {
        "pleural_effusion": ("Pleural Effusion", 0.9, 0.75),
        "cardiomegaly": ("Cardiomegaly", 0.8, 0.95),
        "pneumothorax": ("Pneumothorax", 0.85, 0.75),
        "atelectasis": ("Pulmonary Atelectasis", 0.95, 0.8),
    }
    coded, read = {name: [] for name in terms}, {name: [] for name in terms}
    with tarfile.open(archive) as files:
        for member in files:
            if not member.name.endswith(".xml"):
                continue
            report = ElementTree.fromstring(files.extractfile(member).read())
            majors = {x.text.split("/")[0].strip() for x in report.iter("major") if x.text}
            sections = [x for x in report.iter("AbstractText")
                        if x.get("Label") in ("FINDINGS", "IMPRESSION")]  # fmt: skip
            result = findings_in(" ".join(x.text or "" for x in sections))
            for name, (term, _, _) in terms.items():
                coded[name].append(term in majors)
                read[name].append(bool(result[name]))
    for name, (_, least_found, least_right) in terms.items():
        truth, ours = np.array(coded[name]), np.array(read[name])
        assert len(truth) == 3955
        assert ours[truth].mean() > least_found, name
        assert truth[ours].mean() > least_right, name


def test_all_words_of_captions_have_a_pattern():
    assert set(WORDS.values()) | set(FINDINGS) == set(findings._SPOKEN)
