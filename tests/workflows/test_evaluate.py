"""The evaluation from Python: folders and arrays, with files and without, and FID in six lines."""

import json

import numpy as np
import pytest
from PIL import Image

import medsd_jax
from medsd_jax.cli.main import main
from medsd_jax.evaluation.features.rough import thumbnails
from medsd_jax.reports.writing import to_json
from medsd_jax.workflows.sample_for_evaluation import Sampling

SIZE, NUM = 24, 40


def draw(seed, brightness):
    noise = np.random.default_rng(seed).normal(brightness, 40, (NUM, SIZE, SIZE))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name, images in (("real", draw(0, 128)), ("synthetic", draw(1, 100))):
        (root / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{i:03d}.png")
    return root


@pytest.mark.torch
def test_a_six_line_fid_of_two_folders(folders, monkeypatch, capsys):
    """The value is that of torchmetrics on the same features; the code is the guide's."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torchmetrics.image.fid")
    monkeypatch.chdir(folders)

    fid = medsd_jax.fid("real", "synthetic", features="thumbnail")
    print(f"FID {fid:.4f}")

    sets = [thumbnails(list(images)).reshape(NUM, -1) for images in (draw(0, 128), draw(1, 100))]
    metric = reference.FrechetInceptionDistance(feature=_Same(torch, 64))
    for features, real in zip(sets, (True, False), strict=True):
        metric.update(torch.tensor(features), real=real)
    # Fewer images than features: torchmetrics takes roots of eigenvalues that are zero.
    assert fid.value == pytest.approx(float(metric.compute()), rel=1e-4)
    assert fid.n == NUM and fid.ci95[0] < fid.value < fid.ci95[1]
    assert capsys.readouterr().out.startswith(f"FID {fid.value:.4f} ({fid.ci95[0]:.4f} to ")


def _Same(torch, width):
    """A network that hands features on; torchmetrics first asks how wide they are."""

    class Same(torch.nn.Module):
        num_features = width

        def forward(self, x):
            return x

    return Same()


def test_arrays_are_measured_as_their_files_are(folders):
    real, synthetic = draw(0, 128), draw(1, 100)
    by_files = medsd_jax.fid(folders / "real", folders / "synthetic", "thumbnail")
    assert medsd_jax.fid(real, synthetic, "thumbnail") == by_files
    in_colour = np.stack([synthetic] * 3, axis=-1)
    assert medsd_jax.fid(real, in_colour, "thumbnail").value == pytest.approx(by_files.value)
    assert medsd_jax.fid(real, 255 - synthetic, "thumbnail").value != pytest.approx(by_files.value)


def test_the_report_is_that_of_the_command(folders, tmp_path):
    real, synthetic = draw(0, 128), draw(1, 100)
    result = medsd_jax.evaluate(real, synthetic, features="thumbnail", train=synthetic, seed=3)
    words = ["--real", str(folders / "real"), "--synthetic", str(folders / "synthetic")]
    words += ["--train", str(folders / "synthetic"), "--features", "thumbnail", "--seed", "3"]
    assert main(["evaluate", *words, "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    ours = to_json(result)
    for report in (ours, written):  # names of files, and of the whole set
        del report["sets"]
        for row in report["memorization"]["most_suspicious"]:
            del row["image"], row["nearest"]
    assert ours == written
    assert result.memorization.spaces["pixels"].num_suspicious == NUM  # trained on themselves
    assert result.sets["real"].num_images == NUM and result.prompt_adherence is None


def test_an_output_gets_the_files_and_keeps_the_features(folders, tmp_path, caplog):
    result = medsd_jax.evaluate(folders / "real", draw(1, 100), output=tmp_path / "out")
    assert "no feature space is named: distances are measured in thumbnail" in caplog.text
    assert result.feature_spaces["thumbnail"].rough
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"report.json", "report.html", "features"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8, 3)), "images are float64 [4, 8, 8, 3]; give uint8"),
        (np.zeros((4, 8, 8, 4), np.uint8), "images are uint8 [4, 8, 8, 4]; give uint8"),
        (np.zeros((8, 8), np.uint8), "images are uint8 [8, 8]"),
        (np.zeros((0, 8, 8), np.uint8), "the array holds no image"),
    ],
)
def test_arrays_that_are_no_images_are_reported(images, message):
    with pytest.raises(medsd_jax.UserError) as error:
        medsd_jax.fid(draw(0, 128), images, "thumbnail")
    assert message in str(error.value)


def test_what_is_sampled_needs_a_folder():
    sampling = Sampling("m", ("a prompt",), medsd_jax.sampling_config())
    with pytest.raises(medsd_jax.UserError, match="name an output"):
        medsd_jax.evaluate(draw(0, 128), sampling, features="thumbnail")
