"""The folder that sample.py fills: killed runs, other settings, names that others read."""

import ast
import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import medsd_jax
from medsd_jax.cli.main import exit_code
from medsd_jax.evaluation.images.export import CHEXPERT, GENERATIONS
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.workflows import sample_folder
from tests import commands
from tests.tiny.pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    medsd_jax.save(tiny_pipeline(), folder)
    return folder


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt\np1,one\np2,two\np3,Chest X-ray. Large left pleural effusion.\n")
    return path


def sample(model, output, *flags):
    words = ["--model", str(model), "--output", str(output), "--num_steps", "2", *map(str, flags)]
    return exit_code(lambda: commands.sample(words))


def lines(folder):
    return [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]


def images(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))}


@pytest.fixture
def killed(model, table, tmp_path, monkeypatch):
    """A run of 18 images that was killed after eleven, in the middle of a batch of eight."""
    save_png, left = sample_folder.save_png, iter(range(11))

    def save(image, path, metadata):
        if next(left, None) is None:
            path.write_bytes(b"half a pict")
            raise KeyboardInterrupt
        save_png(image, path, metadata)

    flags = ["--prompts_csv", table, "--num_images", 6, "--batch_size", 8]
    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "save_png", save)
        assert sample(model, tmp_path / "killed", *flags) == 130
    assert len(lines(tmp_path / "killed")) == 11  # written as they are sampled
    with (tmp_path / "killed/samples.jsonl").open("a") as manifest:
        manifest.write('{"file": "0001')
    return tmp_path / "killed", flags


def test_a_killed_run_goes_on_by_the_same_command(model, killed, tmp_path, monkeypatch, caplog):
    folder, flags = killed
    assert sample(model, tmp_path / "whole", *flags) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("0*.png")}
    assert len(before) == 11
    caplog.set_level("INFO")
    assert sample(model, folder, *flags) == 0
    assert "11 of 18 images are there already" in caplog.text
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert lines(folder) == lines(tmp_path / "whole")
    whole, resumed = images(tmp_path / "whole"), images(folder)
    assert len(whole) == 18 and whole.keys() == resumed.keys()
    for name, image in whole.items():
        np.testing.assert_array_equal(image, resumed[name], err_msg=name)
    grids = [np.asarray(Image.open(at / "grid.png")) for at in (folder, tmp_path / "whole")]
    np.testing.assert_array_equal(*grids)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    monkeypatch.setattr(
        "medsd_jax.workflows.sample_to_folder.sample_batches", None
    )  # nothing is left to do
    assert sample(model, folder, *flags) == 0


def test_a_lost_image_is_made_again(model, killed, tmp_path):
    folder, flags = killed
    expected = images(folder)["00004.png"]
    (folder / "00004.png").unlink()
    assert sample(model, folder, *flags) == 0
    np.testing.assert_array_equal(images(folder)["00004.png"], expected)
    assert [line["file"] for line in lines(folder)] == [f"{i:05d}.png" for i in range(18)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guidance_scale", "3"], "00000.png was made with guidance_scale = 7.5, not 3.0"),
        (["--seed", "1"], "00000.png was made with seed = 0, not 1"),
        (["--sampler", "euler"], "sampler = 'ddim', not 'euler'"),
        (["--num_images", "7"], "00006.png was made with prompt = 'two', not 'one'"),
        (["--layout", "roentgen"], "made with file = '00000.png', not 'p1_0.jpg'"),
    ],
)
def test_other_settings_are_refused_by_name(model, killed, capsys, more, message):
    folder, flags = killed
    manifest = (folder / "samples.jsonl").read_text()
    assert sample(model, folder, *flags, *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds samples already" in error and message in error
    assert (folder / "samples.jsonl").read_text() == manifest


def test_another_model_is_refused(killed, tmp_path, capsys):
    folder, flags = killed
    medsd_jax.save(tiny_pipeline("v_prediction"), tmp_path / "other")
    assert sample(tmp_path / "other", folder, *flags) == 2
    assert "was made with model_hash = " in capsys.readouterr().err


def test_a_moved_model_is_the_same(killed, tmp_path):
    folder, flags = killed
    medsd_jax.save(tiny_pipeline(), tmp_path / "moved")
    assert sample(tmp_path / "moved", folder, *flags) == 0


def test_fewer_images_than_there_are(model, killed, capsys):
    folder, _ = killed
    assert sample(model, folder, "--prompt", "one", "--num_images", 6) == 2
    assert "11 images, not 6" in capsys.readouterr().err


def test_two_samplings_into_one_folder(model, killed, capsys, monkeypatch):
    """The second is refused before it draws; what is there stays as it is."""
    folder, flags = killed
    hold = "import sys; from medsd_jax.locks import lock\n"
    hold += "with lock(sys.argv[1], 'a sampling'): print('held', flush=True); sys.stdin.read()"
    before = (folder / "samples.jsonl").read_text()
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with monkeypatch.context() as patch:
            patch.setattr("medsd_jax.workflows.sample_to_folder.sample_batches", None)
            assert sample(model, folder, *flags) == 2
        other.stdin.close()
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{folder} is in use by a sampling of process {other.pid}" in message
    assert (folder / "samples.jsonl").read_text() == before
    assert sample(model, folder, *flags) == 0
    assert len(lines(folder)) == 18


def test_an_output_that_cannot_be_written_is_reported_before_drawing(
    model, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("medsd_jax.workflows.sample_to_folder.sample_batches", None)
    assert sample(model, tmp_path / "file" / "look", "--prompt", "one") == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\n", b"[1]\n", b"[" * 10**5 + b"\n"])
def test_a_manifest_that_is_none_is_one_line(model, killed, capsys, content):
    folder, flags = killed
    (folder / "samples.jsonl").write_bytes(content)
    assert sample(model, folder, *flags) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "samples.jsonl" in message and "remove it" in message


def test_hidden_parts_of_a_killed_run_go(model, killed):
    folder, flags = killed
    (folder / ".00003.0123abcd.png").write_bytes(b"half")
    (folder / ".htaccess").write_text("of the user")
    assert sample(model, folder, *flags) == 0
    assert [path.name for path in folder.glob(".*")] == [".htaccess"]


def test_a_damaged_manifest(model, killed, capsys):
    folder, flags = killed
    (folder / "samples.jsonl").write_text("no json\n")
    assert sample(model, folder, *flags) == 2
    assert "samples.jsonl is damaged" in capsys.readouterr().err


def test_roentgens_names(model, table, tmp_path):
    flags = ["--prompts_csv", table, "--num_images", 2, "--layout", "roentgen"]
    assert sample(model, tmp_path / "o", *flags) == 0
    names = {path.name for path in (tmp_path / "o").iterdir()} - {"samples.jsonl", "grid.png"}
    assert names == {f"p{i}_{k}.jpg" for i in (1, 2, 3) for k in (0, 1)} | {
        f"p{i}.txt" for i in (1, 2, 3)
    }
    assert (tmp_path / "o/p2.txt").read_text() == "two\n"
    plain = medsd_jax.sample(tiny_pipeline(), ["two"], seeds=[3], num_steps=2, progress=False)[0]
    Image.fromarray(plain).save(tmp_path / "plain.jpg", quality=95)
    ours, theirs = (np.asarray(Image.open(tmp_path / x)) for x in ("o/p2_1.jpg", "plain.jpg"))
    # Another batch size is another program: a level more or less, now and then.
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5
    result = open_images(tmp_path / "o")
    assert len(result) == 6 and result.ids[2:4] == ("p2", "p2") and result.texts[2] == "two"


def test_chexgenbenchs_table(model, table, tmp_path):
    assert sample(model, tmp_path / "o", "--prompts_csv", table, "--layout", "chexgenbench") == 0
    with (tmp_path / "o/generations_with_metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == GENERATIONS and [row["id"] for row in rows] == ["p1", "p2", "p3"]
    for row in rows:
        assert row["img_savename"] == row["synthetic_filename"] == f"SyntheticImg_{row['id']}.png"
        assert (tmp_path / "o" / row["img_savename"]).is_file()
        assert row["prompt"] == row["annotated_prompt"]
        assert list(ast.literal_eval(row["chexpert_labels"])) == list(CHEXPERT)
    assert ast.literal_eval(rows[2]["chexpert_labels"])["Pleural Effusion"] == 1.0


def test_chexgenbenchs_own_columns_are_handed_on(model, tmp_path):
    labels = "{'Pleural Effusion': 1.0}"
    (tmp_path / "p.csv").write_text(
        f'id,path,prompt,chexpert_labels,annotated_prompt\n7,a/b.jpg,short,"{labels}",long one\n'
    )
    flags = ["--prompts_csv", tmp_path / "p.csv", "--layout", "chexgenbench"]
    assert sample(model, tmp_path / "o", *flags) == 0
    with (tmp_path / "o/generations_with_metadata.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "id": "7", "path": "a/b.jpg", "prompt": "short", "annotated_prompt": "long one",
        "img_savename": "SyntheticImg_7.png", "synthetic_filename": "SyntheticImg_7.png",
        "chexpert_labels": labels,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("id,prompt\na,one\n", ["--num_images", "2"], "one image per prompt, id 'a' has more"),
        ("id,prompt\na,one\na,one\n", [], "one image per prompt, id 'a' has more"),
        ("id,prompt\na,one\na,two\n", [], "id 'a' has the prompts 'one' and 'two'"),
    ],
)
def test_ids_that_clash(model, tmp_path, capsys, text, flags, message):
    (tmp_path / "p.csv").write_text(text)
    words = ["--prompts_csv", tmp_path / "p.csv", "--layout", "chexgenbench", *flags]
    assert sample(model, tmp_path / "o", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_images_arrive_batch_by_batch_and_are_not_kept():
    settings = {"num_steps": 2, "batch_size": 8, "progress": False}
    prompts = [str(i) for i in range(18)]
    seen = list(medsd_jax.sample_batches(tiny_pipeline(), prompts, **settings, skip=3))
    assert [len(images) for images in seen] == [8, 7]
    whole = medsd_jax.sample(tiny_pipeline(), prompts, **settings)
    np.testing.assert_array_equal(np.concatenate(seen), whole[3:])
