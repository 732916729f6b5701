"""probe-text where it is known what a text says: words for a finding, and coins for nothing."""

import csv
import io
import json

import jsonschema
import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli.main import main
from medsd_jax.evaluation.reports.text_probe import TextProbeReport
from medsd_jax.reports.schema_files import schema_of
from medsd_jax.workflows.models import save
from tests.tiny.bert import CONFIG, write_bert
from tests.tiny.pipeline import tiny_pipeline
from tests.tiny.run import ROOT

_SIDES, _SIZES = ("left", "right"), ("large", "small")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """300 captions of 150 patients, a BERT, a Stable Diffusion, and the BERT inside of that."""
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image, "PNG")
    data = folder / "data"
    data.mkdir()
    with (data / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["file_name", "text", "patient_id", "effusion", "coin", "rare", "age", "view"]
        )
        for number in range(300):
            has = rng.integers(2)
            message = (
                f"{rng.choice(_SIZES)} {rng.choice(_SIDES)} pleural effusion" if has else "clear"
            )
            other = rng.choice(["nodule", "pneumothorax", "cardiomegaly", "no finding"])
            words = [message, str(other)]
            rng.shuffle(words)
            text = f"Chest x-ray, {rng.choice(['PA', 'AP'])} view. {', '.join(words)}."
            (data / f"{number}.png").write_bytes(image.getvalue())
            row = [f"{number}.png", text, f"p{number // 2}", has, rng.integers(2)]
            writer.writerow([*row, int(number < 6), 40 + number % 30, "PA"])
    save(tiny_pipeline(), folder / "sd" / "model")
    write_bert(folder / "bert")
    write_bert(folder / "other", seed=1)
    return folder


def run(places, output, *words, encoders=("bert",)):
    named = [word for x in encoders for word in ("--encoder", str(places / x))]
    return main(
        ["probe-text", *named, "--source", "folder", "--path", str(places / "data"), "--output",
         str(output), "--num_resamples", "40", *words]
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(places, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    encoders = ("bert", "other", "sd")
    assert run(places, output, "--max_length", "24", encoders=encoders) == 0
    result = json.loads((output / "report.json").read_text())
    jsonschema.validate(result, schema_of(TextProbeReport))
    return result


def test_a_word_is_found_and_a_coin_is_not(report):
    for entry in report["encoders"]:
        labels = entry["labels"]
        assert set(labels) == {"effusion", "coin", "rare"}  # age and view are no findings
        # Random weights keep words apart; coins can be read from no text. CLIP's 16 byte tokens
        # end before the finding.
        if entry["architecture"] == "Bert":
            assert labels["effusion"]["auroc"]["value"] > 0.95, entry["name"]
            assert labels["effusion"]["f1"]["value"] > 0.85, entry["name"]
        assert abs(labels["coin"]["auroc"]["value"] - 0.5) < 0.2, entry["name"]
        assert labels["rare"]["too_few"] is True


def test_sides_share_no_patient_and_are_counted(report):
    sides = [report["data"][name] for name in ("train", "validation")]
    assert sum(side["num_texts"] for side in sides) == 300
    assert sum(side["num_patients"] for side in sides) == 150
    n = report["encoders"][0]["labels"]["effusion"]["auroc"]["n"]
    assert n == sides[1]["num_patients"]


def test_encoders_are_reported_apart(report, places):
    first, second, third = report["encoders"]
    assert [e["architecture"] for e in report["encoders"]] == ["Bert", "Bert", "CLIP"]
    assert len({e["weights_hash"] for e in report["encoders"]}) == 3
    assert first["width"] == CONFIG.hidden_size
    assert [e["max_length"] for e in (first, second, third)] == [24, 24, 16]
    assert len(report["differences"]) == 3
    difference = report["differences"][1]
    assert (difference["encoder"], difference["minus"]) == (third["name"], first["name"])
    values = [e["labels"]["effusion"]["auroc"]["value"] for e in (third, first)]
    assert difference["labels"]["effusion"]["auroc"]["value"] == pytest.approx(
        values[0] - values[1]
    )
    assert difference["labels"]["effusion"]["auroc"]["ci95"][1] < 0


def test_table_and_a_swapped_encoder(places, tmp_path, capsys):
    """The BERT inside a model is the BERT: same hash, and no difference."""
    assert (
        main(
            ["swap-text-encoder", "--model", str(places / "sd"), "--encoder", str(places / "bert"),
             "--output", str(tmp_path / "in_model"), "--max_length", "24"]
        )
        == 0
    )  # fmt: skip
    words = ("--max_length", "24", "--label", "effusion", "--pooling", "cls", "--attention_mask")
    encoders = ("bert", tmp_path / "in_model")
    assert run(places, tmp_path / "out", *words, encoders=encoders) == 0
    message = capsys.readouterr().out
    assert "(Bert, 32 wide)" in message and f"{tmp_path / 'in_model'} minus" in message
    assert "auroc +0.000 (+0.000 to +0.000)" in message
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    one, two = report["encoders"]
    assert one["weights_hash"] == two["weights_hash"] and one["labels"] == two["labels"]
    assert report["pooling"] == "cls" and report["attention_mask"] is True
    assert list(one["labels"]) == ["effusion"]


def test_by_its_phantom_recipe(places, tmp_path):
    """The paper's E3 at phantom size; flags win over the recipe."""
    recipe = ROOT / "configs" / "phantom_text_probe.py"
    words = ["--encoder", str(places / "bert"), "--encoder", str(places / "sd"), "--config"]
    words += [str(recipe), "--num_images", "300", "--num_resamples", "50", "--pooling", "last"]
    assert main(["probe-text", *words, "--source", "phantom", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["num_resamples"], report["pooling"]) == (50, "last")
    assert sum(report["data"][side]["num_texts"] for side in ("train", "validation")) == 300
    assert [list(entry["labels"]) for entry in report["encoders"]] == [["pleural_effusion"]] * 2


@pytest.mark.parametrize(
    ("words", "encoders", "message"),
    [
        (("--pooling", "max"), ("bert",), "is none of last, mean, cls, kth:N"),
        (("--pooling", "kth:9"), ("bert",), "has 3 hidden states"),
        (("--label", "absent"), ("bert",), "has the label 'absent'"),
        (("--label", "view"), ("bert",), "write 1 or 0"),
        (("--num_images", "9"), ("bert",), "is for --source phantom"),
        (("--attention_mask",), ("sd",), "is for BERT encoders"),
        (("--validation_fraction", "1"), ("bert",), "validation_fraction = 1.0"),
        ((), ("bert", "bert"), "is named twice"),
        ((), ("data",), "it holds no config.json"),
    ],
)
def test_mistakes(places, tmp_path, capsys, words, encoders, message):
    assert run(places, tmp_path / "out", *words, encoders=encoders) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
