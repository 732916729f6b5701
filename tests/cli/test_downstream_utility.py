"""downstream-utility: gains that were planted are found, and nobody who is tested is trained on."""

import json
import logging
import shutil

import jsonschema
import numpy as np
import pytest
from PIL import Image

from medsd_jax.classifier.model import load_classifier
from medsd_jax.cli.main import main
from medsd_jax.config.recipes import load_config
from medsd_jax.evaluation.by_classifier.downstream_utility import ARMS
from medsd_jax.evaluation.reports.classifiers import DownstreamUtilityReport
from medsd_jax.reports.schema_files import schema_of
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows import classifier_recipe, downstream_utility
from tests.tiny.run import ROOT

SIZE = 16
STEPS = 60
TINY = {
    "data.source": "folder",
    "data.image_size": SIZE,
    "data.num_workers": 0,
    "data.batch_size": 16,
    "data.validation_fraction": 0.5,
    "calibration_fraction": 0.3,
    "labels": "('square',)",
    "real_images": 16,
    "seeds": 2,
    "network.growth_rate": 8,
    "network.block_config": "(1,1)",
    "network.num_init_features": 8,
    "optim.learning_rate": 1e-2,
    "optim.warmup_steps": 2,
    "fine_tuning.learning_rate": 3e-3,
    "train.steps": STEPS,
    "log.every_steps": STEPS // 2,
}


def draw(rng, present):
    """Noise, with a brighter square somewhere or not."""
    image = rng.normal(110, 30, (SIZE, SIZE))
    if present:
        y, x = rng.integers(1, SIZE - 7, 2)
        image[y : y + 6, x : x + 6] += 32
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def write_real(folder, num=200, seed=0):
    """Two images per patient, half of all with a square."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), ["file_name,text,patient_id,square"]
    for i in range(num):
        present = rng.random() < 0.5
        draw(rng, present).save(folder / f"{i:03d}.png")
        rows.append(f"{i:03d}.png,an image,p{i // 2},{int(present)}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def write_samples(folder, num=320, seed=1, honest=True):
    """As sample.py writes them; of those that are not honest, the prompt says nothing."""
    folder.mkdir()
    rng, lines = np.random.default_rng(seed), []
    for i in range(num):
        present = rng.random() < 0.5
        draw(rng, present if honest else rng.random() < 0.5).save(folder / f"{i:05d}.png")
        prompt = f"Noise with {'a' if present else 'no'} square."
        lines.append(json.dumps({"file": f"{i:05d}.png", "prompt": prompt}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    write_real(root / "real")
    write_samples(root / "telling")
    write_samples(root / "untrue", honest=False)
    (root / "prompts.csv").write_text(
        "prompt,square\nNoise with a square.,1\nNoise with no square.,0\n"
    )
    return root


def run(places, synthetic, workdir, **changes):
    values = TINY | {
        "data.path": places / "real",
        "data.cache_dir": places / "cache",
        "synthetic.path": places / synthetic,
        "synthetic.labels_by_prompt": places / "prompts.csv",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    config = str(ROOT / "configs" / "demo_downstream_utility.py")
    return main(["downstream-utility", "--config", config, "--workdir", str(workdir), *flags])


@pytest.fixture(scope="module")
def compared(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("telling")
    assert run(places, "telling", workdir) == 0
    return workdir


def read(workdir):
    return json.loads((workdir / "report.json").read_text())


def test_images_that_carry_the_label_help_where_real_ones_are_few(compared):
    square = read(compared)["labels"]["square"]
    for arm in ARMS[1:]:
        gain = square["gains"][arm]["auroc"]
        assert gain["ci95"][0] > 0 and gain["n"] == square["num_patients"], arm
    # The best that can be told of such squares is above 0.95.
    assert square["scores"]["synthetic"]["auroc"]["value"] > 0.9


def test_images_whose_prompts_are_not_followed_do_not_help(places, compared, tmp_path):
    for seed in (0, 1):  # the arm that does not see them is the same
        shutil.copytree(compared / "arms" / f"real-{seed}", tmp_path / "arms" / f"real-{seed}")
    assert run(places, "untrue", tmp_path) == 0
    gains = read(tmp_path)["labels"]["square"]["gains"]
    assert all(gains[arm]["auroc"]["ci95"][0] <= 0 for arm in ARMS[1:])
    assert gains["real_and_synthetic"]["auroc"]["value"] < 0


def test_every_arm_is_trained_as_long_and_kept(compared, places):
    report = read(compared)
    assert report["seeds"] == [0, 1] and set(report["arms"]) == set(ARMS)
    for arm, stages in report["arms"].items():
        assert sum(stage["steps"] for stage in stages) == STEPS
        for seed in report["seeds"]:
            folder = compared / "arms" / f"{arm}-{seed}"
            assert [row["step"] for row in read_scalars(folder)] == [STEPS // 2, STEPS]
            assert load_classifier(folder).labels == ("square",)
    last = report["arms"]["synthetic_then_real"][1]
    assert (last["images"], last["steps"], last["learning_rate"]) == (["real"], STEPS // 2, 3e-3)
    assert last["epochs"] == STEPS / 2 * 16 / 16
    assert report["images"]["real"]["num_images"] == 16
    squares = (places / "telling" / "samples.jsonl").read_text().count("with a square")
    counts = report["images"]["synthetic"]["labels"]["square"]
    assert counts == {"present": squares, "absent": 320 - squares}


def test_gains_are_differences_of_the_scores(compared):
    square = read(compared)["labels"]["square"]
    for arm, gains in square["gains"].items():
        for metric, gain in gains.items():
            scores = [square["scores"][a][metric]["value"] for a in (arm, "real")]
            assert gain["value"] == pytest.approx(scores[0] - scores[1], abs=1e-12)
        by_seed = square["scores"][arm]["auroc_by_seed"]
        assert np.mean(by_seed) == pytest.approx(square["scores"][arm]["auroc"]["value"])
        assert len(set(by_seed)) == 2  # the seed moves something


def test_schema_refuses_what_it_does_not_say(compared):
    report = read(compared)
    jsonschema.Draft202012Validator.check_schema(schema_of(DownstreamUtilityReport))

    def refused(change):
        changed = json.loads(json.dumps(report))
        change(changed)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, schema_of(DownstreamUtilityReport))

    jsonschema.validate(report, schema_of(DownstreamUtilityReport))
    refused(lambda r: r.update(new=1))
    refused(lambda r: r["labels"]["square"]["scores"].pop("real"))
    refused(lambda r: r["labels"]["square"].update(too_few=None))
    refused(lambda r: r["labels"]["square"]["gains"].update(other={}))
    refused(lambda r: r["labels"]["square"]["gains"]["synthetic"]["f1"].update(value=None))


def test_nobody_who_is_tested_or_calibrates_is_trained_on(places, tmp_path, monkeypatch):
    """By the images that reach the training, whatever the report says."""
    seen = {"trained": set(), "others": set()}

    def train(recipe, stages, calibration, *, seed, workdir):
        for stage in stages:
            images = [stage.images[i].read_bytes() for i in range(len(stage.images))]
            seen["trained"] |= set(images)
        seen["others"] |= set(calibration.patient_ids)
        raise StopAsyncIteration  # nothing is trained

    monkeypatch.setattr(classifier_recipe.ClassifierRecipe, "train", train)
    kept = {}
    original = classifier_recipe.open_real_images

    def open_real_images(config, workdir):
        kept["real"] = original(config, workdir)
        return kept["real"]

    monkeypatch.setattr(classifier_recipe, "open_real_images", open_real_images)
    with pytest.raises(StopAsyncIteration):
        run(places, "telling", tmp_path, real_images="None")
    real = kept["real"]
    patients = [set(s.patient_ids) for s in (real.train, real.calibration, real.held_out)]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 100
    assert seen["others"] == patients[1]
    held_back = {
        s[i].read_bytes() for s in (real.calibration, real.held_out) for i in range(len(s))
    }
    assert seen["trained"] and not seen["trained"] & held_back


def test_what_is_done_is_kept(compared, places, tmp_path, monkeypatch, caplog):
    shutil.copytree(compared, tmp_path / "again")
    trained = []
    original = classifier_recipe.ClassifierRecipe.train

    def train(recipe, stages, calibration, *, seed, workdir):
        trained.append(workdir.name)
        return original(recipe, stages, calibration, seed=seed, workdir=workdir)

    monkeypatch.setattr(classifier_recipe.ClassifierRecipe, "train", train)
    (tmp_path / "again" / "arms" / "synthetic-1" / "setup.json").unlink()
    with caplog.at_level(logging.INFO):
        assert run(places, "telling", tmp_path / "again") == 0
    assert trained == ["synthetic-1"] and "real-0 is trained already" in caplog.text
    assert read(tmp_path / "again") == read(compared)  # the same run gives the same numbers

    def retrain(recipe, stages, calibration, *, seed, workdir):
        trained.append(workdir.name)
        workdir.mkdir(exist_ok=True)
        return load_classifier(compared / "arms" / "real-0")

    monkeypatch.setattr(classifier_recipe.ClassifierRecipe, "train", retrain)
    for change, expected in (
        ({"fine_tuning.share": 0.4}, {"synthetic_then_real-0", "synthetic_then_real-1"}),
        ({"augmentation.shift": 0.1}, {f"{arm}-{seed}" for arm in ARMS for seed in (0, 1)}),
        ({"augmentation.shift": 0.1, "seeds": 3}, {f"{arm}-2" for arm in ARMS}),
    ):
        trained.clear()
        assert run(places, "telling", tmp_path / "again", **change) == 0
        assert set(trained) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real_images": 1000}, "real_images = 1000, but only 5"),
        ({"real_images": 0}, "real_images = 0"),
        ({"seeds": 0}, "seeds = 0"),
        ({"fine_tuning.share": 1.0}, "fine_tuning.share = 1.0"),
        ({"fine_tuning.learning_rate": -1.0}, "fine_tuning.learning_rate = -1.0"),
        ({"optim.warmup_steps": 40}, "optim.warmup_steps = 40"),
        ({"labels": "('square','circle')"}, "'circle'"),
        ({"synthetic.labels_by_prompt": "None"}, "of the 320 synthetic images, none is known"),
        ({"synthetic.path": "nowhere"}, "nowhere does not exist"),
        ({"network.weights": "absent.pth"}, "absent.pth"),
        ({"real_images": 8}, "8 real images are fewer than data.batch_size = 16"),
    ],
)
def test_mistakes_are_one_line(places, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.setattr(classifier_recipe, "fit", lambda *_, **__: pytest.fail("a training began"))
    assert run(places, "telling", tmp_path, **changes) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("medsd_jax: error:") and message in line


def test_real_images_among_the_synthetic_ones_are_refused(places, tmp_path, capsys):
    """The data set itself given as the synthetic set, in another format."""
    shutil.copytree(places / "real", tmp_path / "copied")
    for file in (tmp_path / "copied").glob("*.png"):
        Image.open(file).convert("RGB").save(file)
    changes = {"synthetic.path": tmp_path / "copied", "synthetic.labels_by_prompt": "None"}
    assert run(places, "telling", tmp_path / "run", **changes) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 200 synthetic images are, pixel for pixel, images that test or calibrate" in line


def test_labels_come_from_the_table_else_from_the_words_of_the_prompts(places, tmp_path):
    """By the set's own table under another spelling, and by data/findings.py."""
    config = load_config(ROOT / "configs" / "demo_downstream_utility.py")
    config.labels = ("Square",)
    config.synthetic.path = str(places / "real")
    result = downstream_utility.open_synthetic(config)
    lines = (places / "real" / "metadata.csv").read_text().splitlines()[1:]
    assert [row["Square"] for row in result.labels] == [int(line[-1]) for line in lines]

    folder = tmp_path / "drawn"
    folder.mkdir()
    prompts = ("Chest X-ray. Small left pleural effusion.", "Chest X-ray. No finding.")
    rows = []
    for i, prompt in enumerate(prompts):
        draw(np.random.default_rng(i), False).save(folder / f"{i}.png")
        rows.append(json.dumps({"file": f"{i}.png", "prompt": prompt}))
    (folder / "samples.jsonl").write_text("\n".join(rows) + "\n")
    config.labels, config.synthetic.path = ("pleural_effusion", "square"), str(folder)
    result = downstream_utility.open_synthetic(config)
    assert result.labels == (
        {"pleural_effusion": 1, "square": ""},
        {"pleural_effusion": 0, "square": ""},
    )


def test_prompts_without_labels_are_listed(places, tmp_path, capsys):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,square\nNoise with a square.,1\n")
    assert run(places, "telling", tmp_path / "run", synthetic__labels_by_prompt=table) == 2
    assert "'Noise with no square.'" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_classifier_s_recipe_is_refused(tmp_path, capsys):
    config = str(ROOT / "configs" / "demo_classifier.py")
    assert main(["downstream-utility", "--config", config, "--workdir", str(tmp_path)]) == 2
    assert "demo_classifier.py lacks the key 'fine_tuning.learning_rate'" in capsys.readouterr().err
