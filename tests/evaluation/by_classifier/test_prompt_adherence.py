"""The headline number: agreement of images with their prompts."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from medsd_jax.data.transforms import resize
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier import prompt_adherence
from medsd_jax.evaluation.by_classifier.prompt_adherence import (
    measure_adherence,
    measure_adherence_of_sets,
)
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.prompt_labels import known_labels
from medsd_jax.evaluation.reports.evaluation import Confusion, TooFewImages
from medsd_jax.parallel.mesh import make_mesh

PLAIN, ASKING = "A photo of a lung xray", "... with a visible pleural effusion"
PROMPTS = [PLAIN] * 4 + [ASKING] * 4
ASKED = [False] * 4 + [True] * 4


@pytest.fixture
def predictions(classifier, monkeypatch):
    """One of eight images shows the finding though it was not asked for."""
    seen = np.float32([0.1, 0.2, 0.9, 0.4, 0.6, 0.7, 0.8, 0.99])
    monkeypatch.setattr(prompt_adherence, "predict", lambda *_: np.stack([seen, 1 - seen], axis=1))
    return measure_adherence(
        classifier, "effusion", np.zeros((8, 24, 24, 3), np.uint8), PROMPTS, ASKED
    )


def test_agreement_is_counted_by_prompt(predictions):
    listed = predictions.report()
    assert listed.prompt_accuracy.value == 7 / 8 and listed.prompt_accuracy.n == 8
    low, high = listed.prompt_accuracy.ci95
    assert low < 7 / 8 < high
    plain, asking = listed.prompts
    assert (plain.prompt, plain.asks, plain.num_seen) == (PLAIN, False, 1)
    assert (asking.prompt, asking.asks, asking.num_seen) == (ASKING, True, 4)
    assert plain.accuracy.value == 0.75 and asking.accuracy.value == 1.0


def test_swapped_prompts_give_the_complement(predictions):
    swapped = dataclasses.replace(predictions, asked=~predictions.asked)
    assert swapped.report().prompt_accuracy.value == 1 / 8


def test_prompts_that_share_their_seeds_are_one_draw(predictions):
    """Four start noises, each with and without the finding."""
    shared = dataclasses.replace(predictions, units=("0", "1", "2", "3") * 2).report()
    assert shared.prompt_accuracy.value == 7 / 8 and shared.prompt_accuracy.n == 4
    assert shared.prompts[0].accuracy == predictions.report().prompts[0].accuracy
    widths = [np.diff(x.prompt_accuracy.ci95) for x in (shared, predictions.report())]
    assert widths[0] > widths[1]


def test_confusion_and_scores(predictions):
    listed = predictions.report()
    assert listed.confusion == Confusion(
        true_positives=4, false_negatives=0, false_positives=1, true_negatives=3
    )
    assert listed.auroc is None and listed.f1 is None  # four of a kind are too few
    assert predictions.worst(2).tolist() == [2, 4] or predictions.worst(2).tolist() == [2, 3]


def test_scores_are_scikit_learns(classifier, monkeypatch):
    rng = np.random.default_rng(0)
    asked = rng.random(60) < 0.5
    seen = np.clip(asked * 0.3 + rng.random(60) * 0.7, 0, 1).astype(np.float32)
    monkeypatch.setattr(prompt_adherence, "predict", lambda *_: np.stack([seen, seen], axis=1))
    images = np.zeros((60, 24, 24, 3), np.uint8)
    listed = measure_adherence(classifier, "effusion", images, ["p"] * 60, asked.tolist()).report()
    assert listed.auroc.value == pytest.approx(roc_auc_score(asked, seen))
    assert listed.f1.value == pytest.approx(f1_score(asked, seen > 0.5))


class TestSets:
    """Two sets on disk, classified whole."""

    @pytest.fixture
    def sets(self, tmp_path):
        rng = np.random.default_rng(0)
        for name in ("real", "synthetic"):
            (tmp_path / name).mkdir()
            rows = ["file_name,text,patient_id,effusion,edema,sex"]
            for i in range(60):
                pixels = rng.integers(0, 256, (30, 24), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
                known = "" if i == 0 else i % 2
                rows.append(f"{i}.png,t{i % 3},p{i // 2},{known},1,{'FM'[i > 5]}")
            (tmp_path / name / "metadata.csv").write_text("\n".join(rows) + "\n")
        return {name: open_images(tmp_path / name) for name in ("real", "synthetic")}

    def classified(self, classifier, sets):
        labels = {name: known_labels(images) for name, images in sets.items()}
        mesh = make_mesh({"data": -1})
        return measure_adherence_of_sets(classifier, sets["real"], sets["synthetic"], labels, mesh)

    def test_labels_ask_and_the_classifier_answers(self, classifier, sets):
        entry, predictions_by_label = self.classified(classifier, sets)
        assert entry.not_in_prompts == ("nodule",) and list(entry.labels) == ["effusion"]
        predictions = predictions_by_label["effusion"]
        # Image 0 says nothing of effusions.
        assert predictions.rows.tolist() == list(range(1, 60))
        assert predictions.asked.tolist() == [bool(i % 2) for i in range(1, 60)]
        images = [resize(np.stack([sets["synthetic"].read(i)] * 3, -1), 24) for i in range(60)]
        expected = prompt_adherence.predict(classifier, np.stack(images))[1:, 0]
        np.testing.assert_allclose(predictions.probability, expected, atol=1e-6)  # other batches
        by_subgroup = entry.labels["effusion"].by_subgroup
        assert by_subgroup["sex=F"] == TooFewImages(num_images=5)
        assert by_subgroup["sex=M"].n == 54 and by_subgroup["sex=M"].ci95
        assert entry.on_real_images["effusion"].num_images == 59
        assert entry.on_real_images["nodule"].too_few

    def test_prompts_ask_where_there_are_no_labels(self, classifier, sets):
        bare = {
            name: dataclasses.replace(p, labels=({},) * 60, texts=("",) * 60)
            for name, p in sets.items()
        }
        with pytest.raises(UserError, match="says anything about effusion, nodule"):
            self.classified(classifier, bare)
        prompts = ("No nodule.", "A photo of a lung xray with a visible nodule") * 30
        bare["synthetic"] = dataclasses.replace(bare["synthetic"], texts=prompts)
        entry, predictions_by_label = self.classified(classifier, bare)
        assert entry.not_in_prompts == ("effusion",)
        assert predictions_by_label["nodule"].asked.tolist() == [False, True] * 30
        confusion = entry.labels["nodule"].confusion
        assert sum(vars(confusion).values()) == 60
        swapped = dataclasses.replace(bare["synthetic"], texts=prompts[1:] + prompts[:1])
        other, _ = self.classified(classifier, {**bare, "synthetic": swapped})
        accuracies = [e.labels["nodule"].prompt_accuracy.value for e in (entry, other)]
        assert sum(accuracies) == pytest.approx(1.0)


def test_mistakes_are_reported(classifier):
    images = np.zeros((2, 24, 24, 3), np.uint8)
    with pytest.raises(UserError, match="2 images, 1 prompts, 2 answers"):
        measure_adherence(classifier, "effusion", images, [PLAIN], [True, False])
    with pytest.raises(UserError, match="'edema'"):
        measure_adherence(classifier, "edema", images, [PLAIN] * 2, [False] * 2)
