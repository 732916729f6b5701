"""reconstruct: from a model and a folder to a report, and mistakes in one line."""

import csv
import json
import re
import shutil

import jsonschema
import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli.main import main
from medsd_jax.evaluation.reports.reconstruction import ReconstructionReport
from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.reports.schema_files import schema_of
from tests.tiny.classifier import write_classifier
from tests.tiny.pipeline import SIZE, tiny_pipeline
from tests.tiny.run import ROOT

NUM = 20


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model, classifiers of two sizes, and labelled images of ten patients."""
    root = tmp_path_factory.mktemp("reconstruct")
    save_pipeline(tiny_pipeline(), root / "model")
    write_classifier(root / "classifier", SIZE)
    write_classifier(root / "large_classifier", 2 * SIZE)
    (root / "real").mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM):
        pixels = rng.normal(60 + 8 * i, 30, (SIZE, SIZE + 4)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "real" / f"{i:02d}.png")
    for table, label in (("metadata", "pleural_effusion"), ("others", "mass")):
        with (root / "real" / f"{table}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "patient_id", label])
            writer.writerows([f"{i:02d}.png", i // 2, i % 2] for i in range(NUM))
    for name, count in (("none", 0), ("one", 1)):
        (root / name).mkdir()
        for i in range(count):
            shutil.copy(root / "real" / f"{i:02d}.png", root / name)
    return root


def reconstruct(places, output, *words):
    given = ["--model", str(places / "model"), "--real", str(places / "real")]
    return main(["reconstruct", *given, "--output", str(output), *words])


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_report(places, tmp_path, capsys):
    assert (
        reconstruct(places, tmp_path / "new" / "out", "--classifier", str(places / "classifier"))
        == 0
    )
    folder = tmp_path / "new" / "out"
    report, message = report_of(folder), capsys.readouterr().out
    assert not report["result"]["good_enough"]  # random weights; and yet the exit code is 0
    assert "not good enough" in message and "not a medical validation" in message
    assert report["measured"] == {
        "num_images": NUM, "num_patients": NUM // 2, "image_size": SIZE, "resize_mode": "pad",
    }  # fmt: skip
    assert report["similarity"]["psnr"]["mean"]["n"] == NUM // 2
    assert report["classifier"]["labels"]["pleural_effusion"]["auroc"]["num_present"] == NUM // 2
    assert report["classifier"]["labels"]["cardiomegaly"]["auroc"] is None
    assert report["set"]["num_images"] == NUM
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Not good enough" in page and "not a medical validation" in page
    assert "4 times" in page and "Does a classifier still see the same?" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # it needs no other file
    with Image.open(folder / "worst.png") as sheet:
        assert sheet.width > 3 * SIZE and sheet.height > 8 * SIZE


def test_an_autoencoder_that_changes_nothing_is_good_enough(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: (x, x))
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, x: x)
    assert (
        reconstruct(places, tmp_path, "--classifier", str(places / "classifier"), "--seed", "3")
        == 0
    )
    report = report_of(tmp_path)
    assert report["result"]["good_enough"] and "\ngood enough" in capsys.readouterr().out
    assert report["similarity"]["psnr"]["mean"]["value"] == 100.0
    for entry in report["classifier"]["labels"].values():
        assert entry["prediction_flips"]["value"] == 0
    assert "Does a classifier" in (tmp_path / "report.html").read_text(encoding="utf-8")
    strict = ["--least_ssim", "1", "--least_psnr", "100"]
    assert reconstruct(places, tmp_path / "strict", *strict, "--num_images", "7") == 0
    report = report_of(tmp_path / "strict")
    assert report["measured"]["num_images"] == 7 and report["classifier"] is None
    assert [c["minimum"] for c in report["result"]["criteria"]] == [100.0, 1.0]
    assert "Does a classifier" not in (tmp_path / "strict" / "report.html").read_text("utf-8")


def test_schema_refuses_what_it_does_not_say(places, tmp_path):
    assert reconstruct(places, tmp_path, "--num_images", "3") == 0
    report = report_of(tmp_path)
    jsonschema.Draft202012Validator.check_schema(schema_of(ReconstructionReport))
    jsonschema.validate(report, schema_of(ReconstructionReport))
    broken = (
        ("new", 1), ("set", {}), ("bands", []), ("classifier", {}), ("worst", []), ("result", {}),
        ("similarity", {**report["similarity"], "psnr": {"mean": {"value": 200.0, "n": 0}}}),
    )  # fmt: skip
    for key, value in broken:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**report, key: value}, schema_of(ReconstructionReport))


def test_a_workdir_has_its_recipe_s_size(places, tmp_path):
    shutil.copytree(places / "model", tmp_path / "run" / "model")
    recipe = {"data": {"image_size": 2 * SIZE, "resize_mode": "crop"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(recipe))
    model = ["--model", str(tmp_path / "run"), "--num_images", "2"]
    for words, expected in (
        ([], (2 * SIZE, "crop")),
        (["--image_size", "24", "--resize_mode", "squash"], (24, "squash")),
        (["--image_size", "24"], (24, "crop")),
    ):
        assert reconstruct(places, tmp_path / "out", *model, *words) == 0
        measured = report_of(tmp_path / "out")["measured"]
        assert (measured["image_size"], measured["resize_mode"]) == expected


def test_by_its_phantom_recipe(places, tmp_path):
    """The paper's E1 at phantom size; a flag wins over the recipe."""
    recipe = ["--config", str(ROOT / "configs" / "phantom_reconstruction.py")]
    assert reconstruct(places, tmp_path, *recipe, "--resize_mode", "crop") == 0
    report = report_of(tmp_path)
    assert report["measured"] == {
        "num_images": NUM, "num_patients": NUM // 2, "image_size": 64, "resize_mode": "crop",
    }  # fmt: skip
    assert [c["minimum"] for c in report["result"]["criteria"]] == [30.0, 0.9]


def test_evaluate_mentions_it(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "medsd-jax reconstruct" in capsys.readouterr().out
    # The other command still has words of its own.
    assert main(["evaluate", "vea"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--real", "{}/none"], "holds no image"),
        (["--real", "{}/one"], "needs at least 2"),
        (["--real", "{}/absent"], "does not exist"),
        (["--num_images", "1"], "needs at least 2"),
        (["--model", "{}/absent"], "absent does not exist"),
        (["--model", "{}/real"], "model_index.json"),
        (["--classifier", "{}/real"], "holds no classifier.json"),
        (
            ["--classifier", "{}/large_classifier"],
            "looks at 32 pixels, but the reconstructions have 16",
        ),
        (["--classifier", "{}/classifier", "--real", "{}/real/others.csv"], "labelled with mass"),
        (["--image_size", "15"], "multiples of 2"),
        (["--least_psnr", "nan"], "least_psnr = nan"),
        (["--least_ssim", "1.5"], "least_ssim = 1.5"),
        (["--resize_mode", "stretch"], "stretch"),
        (["--seed", "-1"], "seed = -1 must be at least 0"),
        (["--config", str(ROOT / "configs" / "few_shot.py")], "reconstruction_config, such as"),
        (["--config", "vae_adit.py"], "vae_adit.py does not exist"),
        (["--config.num_images=5"], "unknown argument --config.num_images"),
        (["--lest_ssim", "1"], "did you mean --least_ssim?"),
    ],
)
def test_mistakes_are_one_line(places, tmp_path, capsys, words, message):
    words = [word.format(places) for word in words]
    assert reconstruct(places, tmp_path / "out", *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("medsd_jax: error:") and message in line
    assert not (tmp_path / "out").exists()


def test_a_model_without_an_autoencoder(places, tmp_path, capsys):
    shutil.copytree(places / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    assert reconstruct(places, tmp_path / "out", "--model", str(tmp_path / "model")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("medsd_jax: error:") and "vae" in line
