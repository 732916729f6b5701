"""sample.py as a user calls it: images, what is written about them, and mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

import medsd_jax
from medsd_jax.cli.main import exit_code
from medsd_jax.sampling.images import read_metadata
from medsd_jax.workflows.models import load, save
from tests import commands
from tests.tiny.pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save(tiny_pipeline(), folder)
    return folder


def sample(model, output, *flags):
    words = ["--model", str(model), "--output", str(output), "--num_steps", "2", *flags]
    return exit_code(lambda: commands.sample(words))


def test_images_and_what_is_known_about_them(model, tmp_path):
    flags = ["--prompt", "a", "--prompt", "größer", "--num_images", "2", "--seed", "7"]
    assert sample(model, tmp_path / "out", *flags) == 0
    lines = [json.loads(x) for x in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [(x["prompt"], x["seed"]) for x in lines] == [
        ("a", 7), ("a", 8), ("größer", 9), ("größer", 10)
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").glob("0*.png")) == [x["file"] for x in lines]
    metadata = read_metadata(tmp_path / "out" / "00003.png")
    assert metadata == {k: v for k, v in lines[3].items() if k != "file"}
    assert metadata["num_steps"] == 2 and metadata["model_hash"] == tiny_pipeline().fingerprint()
    assert (tmp_path / "out" / "grid.png").exists()


def test_the_image_is_the_one_of_the_python_api(model, tmp_path):
    assert sample(model, tmp_path / "o", "--prompt", "a", "--seed", "3", "--num_images", "1") == 0
    expected = medsd_jax.sample(load(model), ["a"], seeds=[3], num_steps=2, progress=False)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o" / "00000.png")), expected[0])


def test_sampler_and_rescale_are_written_down(model, tmp_path):
    flags = ["--prompt", "a", "--num_images", "1", "--sampler", "euler_ancestral"]
    flags += ["--guidance_rescale", "0.5", "--seed", "3"]
    assert sample(model, tmp_path / "o", *flags) == 0
    line = json.loads((tmp_path / "o/samples.jsonl").read_text())
    metadata = read_metadata(tmp_path / "o" / "00000.png")
    for values in (line, metadata):
        assert values["sampler"] == "euler_ancestral" and values["guidance_rescale"] == 0.5
    expected = medsd_jax.sample(
        load(model), ["a"], seeds=[3], num_steps=2, sampler="euler_ancestral",
        guidance_rescale=0.5, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o" / "00000.png")), expected[0])


def test_prompts_from_a_csv_with_their_own_seeds(model, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text('prompt,seed,label\n"one, two",5,x\nthree,,y\n', encoding="utf-8")
    flags = ["--prompts_csv", str(table), "--num_images", "1", "--seed", "9"]
    assert sample(model, tmp_path / "out", *flags) == 0
    lines = [json.loads(x) for x in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [(x["prompt"], x["seed"]) for x in lines] == [("one, two", 5), ("three", 10)]
    assert [x["row"] for x in lines] == [{"label": "x"}, {"label": "y"}]


def seeds_of(output):
    lines = [json.loads(x) for x in (output / "samples.jsonl").read_text().splitlines()]
    return [(x["prompt"], x["seed"]) for x in lines]


def test_a_caption_that_comes_three_times_gives_three_images(model, tmp_path, caplog):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,id\na,1\nb,2\na,3\na,4\n", encoding="utf-8")
    flags = ["--prompts_csv", str(table), "--num_images", "2", "--seed", "5"]
    assert sample(model, tmp_path / "out", *flags) == 0
    result = seeds_of(tmp_path / "out")
    assert len(set(result)) == len(result) == 8
    assert [seed for _, seed in result] == list(range(5, 13))
    drawn = [np.asarray(Image.open(tmp_path / f"out/{i:05d}.png")) for i in (0, 1, 4, 5, 6, 7)]
    assert len({image.tobytes() for image in drawn}) == 6
    assert "copies" not in caplog.text


def test_same_seeds_makes_pairs_and_tells_of_copies(model, tmp_path, caplog):
    flags = ["--prompt", "a", "--prompt", "b", "--num_images", "2", "--same_seeds", "--seed", "3"]
    assert sample(model, tmp_path / "pairs", *flags) == 0
    assert seeds_of(tmp_path / "pairs") == [("a", 3), ("a", 4), ("b", 3), ("b", 4)]
    assert "copies" not in caplog.text
    assert sample(model, tmp_path / "copies", *flags, "--prompt", "a") == 0
    assert "2 of 6 images are exact copies" in caplog.text


def test_a_cohort_of_repeated_seeds_is_not_gone_on_with(model, tmp_path, capsys):
    """As an older version made it, which gave every prompt the same seeds."""
    flags = ["--prompt", "a", "--prompt", "b", "--num_images", "2"]
    assert sample(model, tmp_path / "out", *flags, "--same_seeds") == 0
    manifest = tmp_path / "out/samples.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:3]))
    assert sample(model, tmp_path / "out", *flags) == 2
    assert "00002.png was made with seed = 0, not 2" in capsys.readouterr().err
    assert sample(model, tmp_path / "out", *flags, "--same_seeds") == 0
    assert len(seeds_of(tmp_path / "out")) == 4


def test_a_csv_of_a_spreadsheet(model, tmp_path, caplog):
    table = tmp_path / "prompts.csv"
    table.write_text("id; prompt ;seed\n1; one, two ;5\n;;\n2;None;6\n3;;7.0\n", "utf-8-sig")
    flags = ["--prompts_csv", str(table), "--num_images", "1"]
    assert sample(model, tmp_path / "out", *flags) == 0
    assert seeds_of(tmp_path / "out") == [("one, two", 5), ("", 7)]
    for message in (
        "1 empty lines are skipped",
        "1 rows whose prompt is nan",
        "1 prompts are empty",
    ):
        assert message in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,label\none, two,x\n", "line 2 has more cells"),
        ("prompt,label\nfine,x\nshort\n", "line 3 has no label"),
        ("label\nx\n", "no column 'prompt'"),
        ("prompt,id,prompt\na,1,b\n", "two columns 'prompt'"),
        ("prompt,id\na\0b,1\n", "line 2 holds a NUL character"),
        ("prompt\nnan\n", "no prompt: give"),
    ],
)
def test_a_damaged_csv_is_reported_by_line(model, tmp_path, capsys, text, message):
    (tmp_path / "p.csv").write_text(text)
    assert sample(model, tmp_path / "o", "--prompts_csv", str(tmp_path / "p.csv")) == 2
    assert message in capsys.readouterr().err


def test_start_latents_take_the_place_of_the_seeds_noise(model, tmp_path, capsys):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    np.save(tmp_path / "start.npy", np.stack([noise[0], noise[0]]))
    flags = ["--latents", str(tmp_path / "start.npy"), "--prompt", "a", "--num_images", "2"]
    assert sample(model, tmp_path / "out", *flags) == 0
    one, two = (np.asarray(Image.open(tmp_path / f"out/0000{i}.png")) for i in range(2))
    np.testing.assert_array_equal(one, two)
    np.save(tmp_path / "start.npy", noise)
    assert sample(model, tmp_path / "out", *flags) == 2  # neither resumed nor mixed with the old
    assert "was made with start_latents_hash = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no prompt"),
        (["--prompt", "a", "--num_steps", "0"], "num_steps = 0"),
        (["--prompt", "a", "--guidance", "3"], "did you mean --guidance_scale"),
        (["--prompt", "a", "--height", "17"], "height = 17"),
        (["--prompt", "a", "--seed", "-1"], "seed -1"),
        (["--prompt", "a", "--seed", f"{2**32 - 2}"], f"seed {2**32} of image 2"),
        (["--prompt", "a", "--eta", "2"], "eta = 2"),
        (["--prompt", "a", "--eta", "1", "--sampler", "pndm"], "eta = 1.0 is a setting of sampler"),
        (["--prompt", "a", "--sampler", "plms"], "invalid choice: 'plms'"),
        (["--prompt", "a", "--guidance_rescale", "-1"], "guidance_rescale = -1"),
        (["--prompts_csv", "absent.csv"], "absent.csv"),
        (["--prompt", "a", "--latents", "absent.npy"], "absent.npy"),
        (["--prompt", "a", "--num_images", "0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(model, tmp_path, capsys, flags, message):
    assert sample(model, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("medsd_jax: error:") and message in error
    assert not (tmp_path / "out").exists()


def test_samples_are_not_written_over(model, tmp_path, capsys):
    assert sample(model, tmp_path, "--prompt", "a", "--num_images", "1") == 0
    assert sample(model, tmp_path, "--prompt", "b", "--num_images", "1") == 2
    assert "holds samples already" in capsys.readouterr().err


def test_pickled_latents_are_refused(model, tmp_path, capsys):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert sample(model, tmp_path / "o", "--prompt", "a", "--latents", str(tmp_path / "p.npy")) == 2
    assert "p.npy" in capsys.readouterr().err
