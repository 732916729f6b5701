"""task = "vae" with the decoder alone and a perceptual term: what a run changes, and mistakes."""

import jax
import numpy as np
import pytest

from medsd_jax.cli.main import exit_code
from medsd_jax.workflows.models import load
from medsd_jax.workflows.train.run import train
from medsd_jax.workflows.train.vae import open_features
from tests import commands
from tests.tiny.classifier import write_classifier
from tests.tiny.run import ROOT, recipe, write_model

DECODER = r"^vae\.(decoder|post_quant_conv)\."


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("decoder")
    write_model(root / "model")
    write_classifier(root / "classifier", 16)
    jax.config.update("jax_disable_most_optimizations", True)
    yield root
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_decoder_alone_changes(places, tmp_path):
    """Encoder, latents, U-Net and text encoder keep every bit; the network is not written out."""
    config = recipe(
        places / "model", places / "data", task="vae", vae__train=(DECODER,), train__steps=2,
        vae__perceptual_weight=0.5, vae__perceptual_features=f"classifier={places / 'classifier'}",
    )  # fmt: skip
    train(config, tmp_path / "run")
    before, after = load(places / "model"), load(tmp_path / "run")
    assert before.params.keys() == after.params.keys()
    for name, weight in before.params.items():
        same = np.array_equal(after.params[name], weight)
        # A bias of zero that has no gradient stays what it is: see test_step_parity.py.
        expected = not name.startswith(("vae.decoder.", "vae.post_quant_conv."))
        assert same == expected or name.endswith("to_k.bias"), name
    assert before.vae == after.vae
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "train/perceptual" in metrics
    # Resuming knows the network's weights again.
    more = recipe(
        places / "model", places / "data", task="vae", vae__train=(DECODER,), train__steps=3,
        vae__perceptual_weight=0.5, vae__perceptual_features=f"classifier={places / 'classifier'}",
    )  # fmt: skip
    train(more, tmp_path / "run")
    assert '"step": 3' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_without_weight_no_network_is_opened(places):
    config = recipe(places / "model", places / "data", task="vae")
    assert config.vae.perceptual_weight == 0.0 and open_features(config) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["perceptual_weight=0.1"], "vae.perceptual_weight = 0.1 needs vae.perceptual_features"),
        (["perceptual_weight=-1.0"], "vae.perceptual_weight = -1.0 must be at least 0"),
        (["perceptual_features=xrv=x.pt"], "'xrv=x.pt' would not be read"),
        (["perceptual_weight=0.1", "perceptual_features=clip=x"], "'clip=x' are not known"),
        (["perceptual_weight=0.1", "perceptual_features=xrv=absent.pt"], "absent.pt"),
        (["train=('decoder', '^unet')"], "which is no weight of the VAE"),
        (["train=('absent',)"], "matches none"),
    ],
)
def test_mistakes_are_one_line_and_2(places, tmp_path, capsys, words, message):
    words = ["task=vae", *(f"vae.{word}" for word in words)]
    assert run_with(places, tmp_path, words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line


def test_the_term_is_of_the_vae_alone(places, tmp_path, capsys):
    words = ["vae.perceptual_weight=0.1", "vae.perceptual_features=xrv=x.pt"]
    assert run_with(places, tmp_path, words) == 2
    assert "needs task = 'vae'" in capsys.readouterr().err.splitlines()[-1]


def run_with(places, tmp_path, words) -> int:
    base = [f"model.path={places / 'model'}", f"data.cache_dir={places / 'data'}",
            "data.num_images=60", "data.image_size=16", "data.validation_fraction=0.3"]  # fmt: skip
    flags = ["--config", str(ROOT / "configs" / "base.py"), "--workdir", str(tmp_path / "run")]
    return exit_code(
        lambda: commands.train(flags + [f"--config.{word}" for word in [*base, *words]])
    )
