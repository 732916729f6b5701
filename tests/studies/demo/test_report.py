"""The demo's report: a page that stands alone, numbers that are right, commands that parse."""

import argparse
import base64
import dataclasses
import html
import io
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli import data, demo, export
from medsd_jax.cli.flags import ArgumentParser, parse_train_flags
from medsd_jax.cli.sample import make_parser
from medsd_jax.config import training_config
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.prompt_adherence import PromptPredictions
from medsd_jax.evaluation.reports.base import Estimate, LabelScores
from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.sampling.images import save_png
from medsd_jax.studies.demo import report as demo_report
from medsd_jax.workflows.sample_to_folder import read_requests
from tests.tiny.pipeline import SIZE, tiny_pipeline

PROMPTS = ("A photo of a lung xray", "One <with> & effusion")
SECONDS = {"prepare": 3.0, "vae": 61.5, "diffusion": 0.01, "sample": 2.0, "export": 1.0}
N = 10


def _images(seed):
    return np.random.default_rng(seed).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)


def _classified():
    """Ten images per prompt; the classifier sees an effusion in two that must have none."""
    asked = np.repeat([False, True], 10)
    probability = np.where(asked, 0.9, 0.1).astype(np.float32)
    probability[[3, 7]] = 0.6, 0.99
    predictions = PromptPredictions(
        "pleural_effusion",
        tuple(PROMPTS[int(a)] for a in asked),
        asked,
        probability,
        np.arange(20),
    )
    images = np.zeros((20, SIZE, SIZE, 3), np.uint8)
    images[7] = 77
    classifier = LabelScores(
        num_images=80, num_present=30, num_patients=50, too_few=False,
        accuracy=Estimate(0.99, 50, (0.97, 1.0)),
    )  # fmt: skip
    return demo_report.Classified(predictions, images, classifier)


def _write(output):
    return demo_report.write(
        output, _images(0), _images(1), PROMPTS, tiny_pipeline(), SECONDS, _classified()
    )


def _write_run(workdir, task, validation):
    config = training_config()
    config.task = task
    config.model.path = "somewhere"
    config.data.num_images, config.data.image_size = 120, SIZE
    config.train.steps, config.optim.warmup_steps = 20, 2
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    rows = [{"step": 0, "validation/loss": validation[0]}]
    rows += [{"step": step, "train/loss": 1 / step, "train/grad_norm": 1.0} for step in (10, 20)]
    rows += [{"step": 20, "validation/loss": validation[1]}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder as the demo leaves it, with the report written."""
    output = tmp_path_factory.mktemp("a demo") / "runs"
    _write_run(output, "diffusion", (1.0, 0.25))
    _write_run(output / "vae", "vae", (0.7, 0.0421))
    (output / "samples").mkdir()
    for step in (10, 20):
        image = np.full((SIZE, SIZE, 3), step, np.uint8)
        save_png(image, output / "samples" / f"{step:07d}.png", {"step": step})
    report = _write(output)
    assert report == output / "report.html"
    return output


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def numbers(run):
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def test_page_stands_alone(page):
    sources = re.findall(r'\b(?:src|href)\s*=\s*"([^"]*)"', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "<script" not in page and "@import" not in page
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    assert "{{" not in page and "{%" not in page


def test_page_shows_each_image_unchanged(page):
    shown = set()
    for code in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(code))) as image:
            shown.add(np.asarray(image.convert("RGB")).tobytes())
    for image in [*_images(0), *_images(1)]:
        assert image.tobytes() in shown
    for step in (10, 20):
        assert np.full((SIZE, SIZE, 3), step, np.uint8).tobytes() in shown


def test_page_tells_the_numbers_and_escapes_the_prompts(page, numbers):
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for message in (
        *PROMPTS,
        f"{numbers['parameters']['total']:,}",
        "0.0421",
        "0.250",
        "1 min 08 s",
    ):
        assert message in text
    assert "<with>" not in page
    assert "Every image on this page is synthetic" in text
    # 0.01 s is no training time: an earlier run did it.
    assert re.search(r"Done already by an earlier run[^.]*: Text encoder and U-Net trained\.", text)


def test_numbers(numbers):
    model = tiny_pipeline()
    by_hand = {}
    for name, weight in model.params.items():
        part = name.split(".")[0]
        by_hand[part] = by_hand.get(part, 0) + weight.size
    assert numbers["parameters"] == by_hand | {"total": sum(by_hand.values())}
    assert numbers["num_images"] == {"plain": N, "effusion": N}
    assert numbers["seconds"] == SECONDS | {"total": pytest.approx(67.51)}
    assert sum(numbers["data"]["num_images"].values()) == 120
    assert numbers["training"]["vae"] == {
        "steps": 20,
        "batch_size": training_config().data.batch_size,
        "train_loss": {"first": {"step": 10, "value": 0.1}, "last": {"step": 20, "value": 0.05}},
        "validation_loss": {
            "first": {"step": 0, "value": 0.7},
            "last": {"step": 20, "value": 0.0421},
        },
    }
    assert set(numbers["versions"]) >= {"python", "medsd_jax", "jax", "flax"}
    assert numbers["vae_reconstruction"]["n"] == min(
        64, numbers["data"]["num_images"]["validation"]
    )


def test_reconstruction_is_the_vaes():
    model, images = tiny_pipeline(), _images(2)[:3]
    graph, _ = abstract(lambda rngs: AutoencoderKL(model.vae, rngs=rngs))
    vae = bind(graph, component(model.params, "vae"))
    floats = images.astype(np.float32) / 127.5 - 1
    expected = np.asarray(vae.decode(vae.encode(floats)[0]))

    got, l1 = demo_report.reconstruct(model, images)

    # The jitted program may round a value that lies between two steps to the other one.
    difference = got.astype(int) - np.round(255 * np.clip(expected / 2 + 0.5, 0, 1))
    assert np.abs(difference).max() <= 1
    assert l1 == pytest.approx(np.abs(expected - floats).mean(), rel=1e-4)


def test_images_are_files(run):
    folder = run / "images"
    sizes = {}
    for name in ("plain", "effusion", "pairs", "phantoms", "vae"):
        with Image.open(folder / f"{name}.png") as image:
            sizes[name] = image.size
    # 8 columns of 16 pixels with 2 of padding; 10 images make two rows.
    assert sizes["plain"] == sizes["effusion"] == (8 * 18 + 2, _rows(folder / "plain.png"))
    assert sizes["pairs"][0] > 8 * 192
    for name in ("diffusion", "vae"):
        assert b"<svg" in (folder / f"{name}_loss.svg").read_bytes()


def _rows(path):
    with Image.open(path) as image:
        return image.height


def _commands(page, kind):
    blocks = re.findall(rf'<code class="{kind}">(.*?)</code>', page, re.DOTALL)
    return [html.unescape(block) for block in blocks]


def test_commands_parse(page, run):
    lines = [
        line
        for block in _commands(page, "shell")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]
    called = []
    for line in lines:
        program, command, *words = shlex.split(line)
        assert program == "medsd-jax"
        if command == "sample":
            args = make_parser("medsd-jax sample").parse_args(words)
            requests = read_requests(args.prompt, num_images=args.num_images)
            assert len(requests) == 16 and args.model == str(run)
        elif command == "train":
            flags = parse_train_flags(words)
            assert flags.config.optim.warmup_steps <= flags.config.train.steps
        else:
            parser = ArgumentParser(prog="medsd-jax")
            subparsers = parser.add_subparsers(dest="command")
            for module in (data, demo, export):
                module.add_parser(subparsers)
            assert isinstance(parser.parse_args([command, *words]), argparse.Namespace)
        called.append(command)
    assert called == ["sample", "data", "train", "export", "train", "demo"]
    for block in _commands(page, "python"):
        compile(block, "report", "exec")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("metrics.jsonl", "metrics.jsonl does not exist"),
        ("vae/metrics.jsonl", "vae/metrics.jsonl does not exist"),
        ("config.json", "config.json does not exist"),
    ],
)
def test_missing_file_is_named(run, tmp_path, missing, message):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        _write(tmp_path / "copy")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no train/loss"), ('{"step": 1, "train/loss": 1.0}\n', "no validation/loss")],
)
def test_unfinished_run_is_named(run, tmp_path, content, message):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        _write(tmp_path / "copy")


def test_what_the_classifier_says_is_shown(page, numbers):
    accuracy = numbers["prompt_accuracy"]
    assert accuracy["value"] == 0.9 and accuracy["n"] == 20
    assert accuracy["ci95"] == pytest.approx([0.699, 0.972], abs=1e-3)  # Wilson's, from tables
    assert numbers["classifier_accuracy"] == {"value": 0.99, "n": 50, "ci95": [0.97, 1.0]}
    plain, effusion = numbers["prompt_adherence"]["prompts"]
    assert (plain["asks"], plain["num_images"], plain["num_seen"]) == (False, 10, 2)
    assert (effusion["asks"], effusion["num_images"], effusion["num_seen"]) == (True, 10, 10)
    assert "90.0 %" in page and "99.0 %" in page
    worst = _classified().worst()
    assert worst[0][0].max() == 77 and worst[0][2] == pytest.approx(0.99)
    assert [round(p, 2) for _, _, p in worst[:2]] == [0.99, 0.6]


def test_too_small_a_demo_says_so(run, tmp_path):
    """A quick look may hold out too few phantoms to score the classifier."""
    shutil.copytree(run, tmp_path / "copy")
    scores = LabelScores(num_images=4, num_present=1, num_patients=3, too_few=True)
    classified = dataclasses.replace(_classified(), classifier=scores)
    report = demo_report.write(
        tmp_path / "copy", _images(0), _images(1), PROMPTS, tiny_pipeline(), SECONDS, classified
    )
    assert "too few held-out phantoms" in report.read_text(encoding="utf-8")
