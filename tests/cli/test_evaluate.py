"""evaluate: from two folders to a report, with the features kept, and mistakes in one line."""

import json
import re
import shutil

import jsonschema
import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli import evaluate as command
from medsd_jax.cli.flags import ArgumentParser
from medsd_jax.cli.main import main
from medsd_jax.cli.sampling_flags import sampling_of_flags
from medsd_jax.config.recipes import load_config
from medsd_jax.evaluation.features import extraction
from medsd_jax.evaluation.reports.evaluation import EvaluationReport
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.reports.schema_files import schema_of
from medsd_jax.workflows.models import save
from medsd_jax.workflows.sample_for_evaluation import sample_for_evaluation
from tests.tiny.classifier import write_classifier
from tests.tiny.pipeline import tiny_pipeline
from tests.tiny.run import ROOT

SIZE, NUM = 24, 40


def write_images(folder, seed, brightness):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(NUM):
        pixels = np.clip(rng.normal(brightness, 40, (SIZE, SIZE)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Real images, others alike, darker ones, and a classifier that has learnt nothing."""
    root = tmp_path_factory.mktemp("sets")
    for name, seed, brightness in (("real", 0, 128), ("alike", 1, 128), ("darker", 2, 60)):
        write_images(root / name, seed, brightness)
    write_classifier(root / "classifier", SIZE, ("x",))
    return root


def evaluate(places, synthetic, output, *more):
    words = ["--real", str(places / "real"), "--synthetic", str(places / synthetic)]
    words += ["--output", str(output), "--features", f"classifier={places / 'classifier'}", *more]
    return main(["evaluate", *words])


def test_report(places, tmp_path, capsys):
    assert evaluate(places, "alike", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (space,) = report["fidelity"].values()
    assert (space["num_real"], space["num_synthetic"]) == (NUM, NUM)
    assert "FID" in capsys.readouterr().out
    assert evaluate(places, "darker", tmp_path / "b") == 0
    darker = json.loads((tmp_path / "b" / "report.json").read_text())
    (other,) = darker["fidelity"].values()
    assert other["fid"]["value"] > 3 * space["fid"]["value"]
    assert darker["protocol"] == report["protocol"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{space['recall']['value']:#.3g}" in page and report["protocol"] in page
    assert "Are training images" not in page  # none were named
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # it needs no other file


def test_schema_refuses_what_it_does_not_say(places, tmp_path):
    assert evaluate(places, "alike", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema_of(EvaluationReport))
    jsonschema.validate(report, schema_of(EvaluationReport))
    for key, value in (
        ("recall", {"value": 0.2, "n": -3, "ci95": None}),
        ("fid", None),
        ("protocol", "x"),
        ("new", 1),
    ):
        changed = json.loads(json.dumps(report))
        target = changed if key in ("protocol", "new") else next(iter(changed["fidelity"].values()))
        target[key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, schema_of(EvaluationReport))


def test_planted_copies_are_named(places, tmp_path, capsys):
    """Three training images among the synthetic ones, one of them saved again as JPEG."""
    write_images(tmp_path / "train", 5, 128)
    shutil.copytree(places / "alike", tmp_path / "synthetic")
    for i in (1, 2):
        shutil.copy(tmp_path / "train" / f"00{i}.png", tmp_path / "synthetic" / f"copy{i}.png")
    with Image.open(tmp_path / "train" / "003.png") as image:
        image.save(tmp_path / "synthetic" / "copy3.jpg", quality=60)
    words = ["--train", str(tmp_path / "train"), "--synthetic", str(tmp_path / "synthetic")]
    assert evaluate(places, "alike", tmp_path / "out", *words) == 0
    memorization = json.loads((tmp_path / "out" / "report.json").read_text())["memorization"]
    assert memorization["spaces"]["pixels"]["num_suspicious"] >= 3
    top = {row["image"].rpartition("/")[2]: row for row in memorization["most_suspicious"][:3]}
    assert set(top) == {"copy1.png", "copy2.png", "copy3.jpg"}
    assert top["copy3.jpg"]["nearest"].endswith("003.png")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "copy3.jpg" in page and "Are training images among them?" in page
    assert "nearer to a training image" in capsys.readouterr().out


def test_held_out_images_of_another_origin_accuse_nobody(places, tmp_path, capsys):
    """Smooth training and generated images; the held-out ones are noise."""
    for name, seed in (("train", 5), ("drawn", 6)):
        (tmp_path / name).mkdir()
        rng = np.random.default_rng(seed)
        for i in range(NUM):
            ramp = np.linspace(0, rng.uniform(100, 255), SIZE)[:, None] * np.ones(SIZE)
            pixels = (ramp + rng.normal(0, 5, (SIZE, SIZE))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:03d}.png")
    words = ["--train", str(tmp_path / "train"), "--synthetic", str(tmp_path / "drawn")]
    assert evaluate(places, "alike", tmp_path / "out", *words) == 0
    entry = json.loads((tmp_path / "out" / "report.json").read_text())["memorization"]["spaces"][
        "pixels"
    ]
    assert "another origin" in entry["doubt"]
    message = capsys.readouterr().out
    assert "pixels: the alarm means nothing, as the held-out images lie farther" in message
    assert "pixels: 40 images" not in message
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "the alarm means nothing here" in page and "Only 40 patients are held out" in page


@pytest.fixture(scope="module")
def asking(places, tmp_path_factory):
    """Generated images, as sample.py writes them, half of them asking for the finding."""
    folder = tmp_path_factory.mktemp("asking") / "samples"
    write_images(folder, 3, 128)
    lines = [
        {"file": f"{i:03d}.png", "prompt": f"p{i % 2}", "seed": i, "row": {"x": str(i % 2)}}
        for i in range(NUM)
    ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_the_classifier_is_asked(places, asking, tmp_path, capsys):
    words = ["--synthetic", str(asking), "--classifier", str(places / "classifier")]
    assert evaluate(places, "alike", tmp_path, *words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    entry = report["prompt_adherence"]["labels"]["x"]
    assert {p["prompt"]: (p["asks"], p["num_images"]) for p in entry["prompts"]} == {
        "p0": (False, NUM // 2), "p1": (True, NUM // 2)
    }  # fmt: skip
    confusion = entry["confusion"]
    assert confusion["true_positives"] + confusion["false_negatives"] == NUM // 2
    assert report["subgroups"][f"classifier={places / 'classifier'}"]["x"]["too_few"]
    assert report["diversity"]["num_prompts"] == 2
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Do the images show what their prompts ask for?" in page
    assert f"of {NUM} images show what their prompt asks for" in capsys.readouterr().out


def test_prompts_that_share_their_seeds_are_one_draw(places, asking, tmp_path):
    shutil.copytree(asking, tmp_path / "pairs")
    table = tmp_path / "pairs" / "samples.jsonl"
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    paired = [line | {"seed": line["seed"] // 2} for line in lines]
    table.write_text("\n".join(map(json.dumps, paired)) + "\n")
    words = ["--synthetic", str(tmp_path / "pairs"), "--classifier", str(places / "classifier")]
    assert evaluate(places, "alike", tmp_path / "out", *words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (space,) = report["fidelity"].values()
    assert space["precision"]["n"] == space["fid"]["n"] == NUM // 2
    assert report["prompt_adherence"]["labels"]["x"]["prompt_accuracy"]["n"] == NUM // 2


def test_a_model_is_sampled_first_and_once(places, tmp_path, capsys):
    save(tiny_pipeline(), tmp_path / "model")
    (tmp_path / "prompts.csv").write_text("prompt,x\na,0\nb,1\n")
    model = ["--model", str(tmp_path / "model"), "--prompts_csv", str(tmp_path / "prompts.csv")]
    words = ["evaluate", "--real", str(places / "real"), "--output", str(tmp_path / "out"), *model,
             "--features", f"classifier={places / 'classifier'}", "--num_images", "10",
             "--num_steps", "1", "--classifier", str(places / "classifier")]  # fmt: skip
    assert main(words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["sets"]["synthetic"]["num_images"] == 20
    assert report["prompt_adherence"]["labels"]["x"]["num_prompts"] == 2
    folder = tmp_path / "out" / "samples"
    lines = (folder / "samples.jsonl").read_text().splitlines()
    paths = [folder / json.loads(line)["file"] for line in lines]
    drawn = {path: path.stat().st_mtime_ns for path in paths}
    assert len(drawn) == 20 and main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn  # nothing was left to draw
    for change in (["--guidance_scale", "2"], ["--seed", "1"], ["--same_seeds"]):
        assert main([*words, *change]) == 2
        assert "holds samples already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [([], [0, 1, 2, 3]), (["--seed", "7"], [7, 8, 9, 10]), (["--same_seeds"], [0, 1, 0, 1])],
)
def test_every_image_that_is_sampled_has_a_seed_of_its_own(tmp_path, flags, seeds):
    save(tiny_pipeline(), tmp_path / "model")
    words = ["evaluate", "--real", "r", "--output", "o", "--features", "classifier=c", *flags]
    words += ["--model", str(tmp_path / "model"), "--prompt", "a", "--prompt", "a"]
    words += ["--num_images", "2", "--num_steps", "1"]
    parser = ArgumentParser(prog="medsd_jax")
    command.add_parser(parser.add_subparsers())
    expected = sampling_of_flags(parser.parse_args(words))
    folder = sample_for_evaluation(expected, tmp_path / "out")
    lines = (folder / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == seeds


def test_a_model_is_sampled_by_its_phantom_recipe(places, tmp_path, capsys):
    """The paper's E2 at phantom size: its two prompts; a flag wins over the recipe."""
    save(tiny_pipeline(), tmp_path / "model")
    words = ["evaluate", "--real", str(places / "real"), "--model", str(tmp_path / "model"),
             "--features", f"classifier={places / 'classifier'}", "--output",
             str(tmp_path / "out")]  # fmt: skip
    recipe = ["--config", str(ROOT / "configs" / "phantom_out_of_the_box.py")]
    assert main([*words, *recipe, "--num_images", "4", "--num_steps", "2"]) == 0
    lines = (tmp_path / "out" / "samples" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    prompts = [sample["prompt"] for sample in samples]
    assert len(prompts) == 8 and set(prompts) == set(load_config(recipe[1]).prompts)
    assert {(s["sampler"], s["num_steps"], s["guidance_scale"]) for s in samples} == {
        ("ddim", 2, 4.0)
    }
    for more, message in (
        ([], "what to sample is missing"),
        (["--prompt", "a", "--prompts_csv", "p.csv"], "not both"),
        (["--prompt", " "], "a prompt is empty"),
        ([*recipe, "--guidance_scale", "nan"], "guidance_scale = nan"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def without_features(places, output, *more):
    words = ["--real", str(places / "real"), "--output", str(output), *more]
    assert main(["evaluate", *words]) == 0
    return json.loads((output / "report.json").read_text())


class TestWithoutFeatures:
    """A first look takes no download."""

    def test_the_classifier_serves(self, places, asking, tmp_path, caplog):
        classifier = ["--classifier", str(places / "classifier")]
        report = without_features(places, tmp_path, "--synthetic", str(asking), *classifier)
        assert list(report["fidelity"]) == [f"classifier={places / 'classifier'}"]
        assert "no feature space is named" in caplog.text and "rough" in caplog.text

    def test_two_folders_are_enough(self, places, tmp_path):
        alike, darker = (
            without_features(places, tmp_path / name, "--synthetic", str(places / name),
                             "--train", str(places / "darker"))
            for name in ("alike", "darker")
        )  # fmt: skip
        space = alike["fidelity"]["thumbnail"]
        assert alike["feature_spaces"]["thumbnail"]["rough"] and space["width"] == 64
        other = darker["fidelity"]["thumbnail"]
        assert other["kid"]["ci95"][0] > 2 * space["kid"]["ci95"][1]
        assert list(darker["memorization"]["spaces"]) == ["pixels"]
        page = (tmp_path / "alike" / "report.html").read_text(encoding="utf-8")
        assert "Rough: for a first look" in page

    def test_the_models_autoencoder_serves(self, places, tmp_path):
        save(tiny_pipeline(), tmp_path / "model")
        words = ["--model", str(tmp_path / "model"), "--prompt", "a", "--num_images", "10"]
        report = without_features(places, tmp_path / "out", *words, "--num_steps", "1")
        (space,) = report["feature_spaces"].values()
        assert (space["network"], space["rough"]) == ("latent", True)
        latent = f"latent={tmp_path / 'model'}"
        words = ["--synthetic", str(places / "alike"), "--features", latent]
        assert latent in without_features(places, tmp_path / "b", *words)["fidelity"]


def test_pages_do_not_tell_where_they_were_made(places, asking, tmp_path):
    words = ["--synthetic", str(asking), "--classifier", str(places / "classifier")]
    words += ["--train", str(places / "darker")]
    assert evaluate(places, "alike", tmp_path, *words) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert str(places) not in page and str(asking.parent) not in page
    assert f"classifier={places.name}/classifier" in page and f"{places.name}/real" in page


def test_features_are_computed_once(places, tmp_path):
    assert evaluate(places, "alike", tmp_path) == 0
    first = (tmp_path / "report.json").read_text()
    kept = list((tmp_path / "features").glob("*.npy"))
    assert len(kept) == 2
    assert evaluate(places, "alike", tmp_path) == 0
    assert (tmp_path / "report.json").read_text() == first
    # What is kept is what is measured: scaled by 2, FID is 4 times as large.
    for path in kept:
        np.save(path, 2 * np.load(path))
    assert evaluate(places, "alike", tmp_path) == 0
    before, after = (
        next(iter(json.loads(text)["fidelity"].values()))["fid"]["value"]
        for text in (first, (tmp_path / "report.json").read_text())
    )
    assert after == pytest.approx(4 * before, rel=1e-6)


def test_features_do_not_depend_on_devices_or_batches(places, tmp_path, monkeypatch):
    import jax

    from medsd_jax.evaluation.images.image_sets import open_images

    network = extraction.open_network(f"classifier={places / 'classifier'}")
    images = open_images(places / "real")
    everywhere = extraction.features_of(network, images, tmp_path / "a", make_mesh({"data": -1}))
    monkeypatch.setattr(extraction, "_IMAGES_AT_ONCE", 7)
    alone = extraction.features_of(
        network, images, tmp_path / "b", make_mesh({}, jax.devices()[:1])
    )
    np.testing.assert_allclose(alone, everywhere, atol=1e-5)  # other shapes, other rounding


def test_another_image_is_not_read_from_the_cache(places, tmp_path):
    shutil.copytree(places / "real", tmp_path / "real")
    shutil.copy(places / "darker" / "000.png", tmp_path / "real" / "000.png")
    from medsd_jax.evaluation.images.image_sets import open_images

    network = extraction.open_network(f"classifier={places / 'classifier'}")
    mesh = make_mesh({"data": -1})
    before, after = (
        extraction.features_of(network, open_images(folder), tmp_path / "cache", mesh)
        for folder in (places / "real", tmp_path / "real")
    )
    assert not np.allclose(before[0], after[0])
    np.testing.assert_allclose(before[1:], after[1:], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--features", "vgg=x"], "vgg=x"),
        (["--features", "classifier"], "classifier=PATH"),
        (["--features", "inception=absent.pth"], "absent.pth"),
        (["--features", "classifier=absent"], "classifier.json"),
        (["--real", "absent"], "absent does not exist"),
        (["--classifier", "absent"], "classifier.json"),
        (["--model", "m"], "give --synthetic S, or --model M"),
        (["--prompts_csv", "p.csv"], "--prompts_csv is for sampling"),
        (["--prompt", "p"], "--prompt is for sampling"),
        (["--config", "c.py"], "--config is for sampling"),
        (["--seed", "-1"], "--seed -1"),
        (["--num_steps", "3"], "--num_steps is for sampling"),
        (["--features", "thumbnail=m"], "thumbnail=m"),
        (["--real", "absent:train"], "one prepared data set"),
    ],
)
def test_mistakes_are_one_line(places, tmp_path, capsys, words, message):
    assert evaluate(places, "alike", tmp_path, *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("medsd_jax: error:") and message in line
