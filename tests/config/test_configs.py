"""The recipes: each one builds, and every key of base.py is read by the code that trains."""

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from medsd_jax.config import (
    classifier_config,
    downstream_utility_config,
    reconstruction_config,
    sampling_config,
    text_probe_config,
    text_projection_config,
    training_config,
)
from medsd_jax.config.recipes import load_config
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.sources.folder import write_image_folder
from medsd_jax.errors import UserError
from medsd_jax.training.optim import make_schedule
from medsd_jax.workflows import (
    downstream_utility,
    probe_text,
    reconstruct,
    sample_for_evaluation,
    train_classifier,
)
from medsd_jax.workflows.train import preview, projection, run
from medsd_jax.workflows.train.checks import check_config, check_prior_prompts
from tests.tiny.bert import write_bert
from tests.tiny.classifier import write_classifier
from tests.tiny.run import recipe, write_model

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def keys(config: ConfigDict, prefix: str = "") -> set[str]:
    result = set()
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            result |= keys(value, f"{prefix}{name}.")
        else:
            result.add(prefix + name)
    return result


BASE = training_config()
CLASSIFIER_BASE = classifier_config()
COMPARE_BASE = downstream_utility_config()
PROJECTION_BASE = text_projection_config()
MEASURING = {
    "least_psnr": (reconstruction_config(), reconstruct.check_config),
    "pooling": (text_probe_config(), probe_text.check_config),
    "sampler": (sampling_config(), sample_for_evaluation.check_config),
}
"""A key of its own -> defaults and check of a command that trains nothing."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipe_has_the_keys_of_base_and_sensible_values(path):
    config = load_config(path)
    if path.stem != "base":
        text = path.read_text()
        for word in ("Command:", "Hardware:", "Expected:"):
            assert word in text, f"{path.name} does not say its {word}"
    for key, (defaults, check) in MEASURING.items():
        if key in config:
            assert keys(config) == keys(defaults)
            check(config)
            return
    if "synthetic" in config:
        assert keys(config) == keys(COMPARE_BASE)
        downstream_utility.check_config(config)
    elif "projection" in config:
        assert keys(config) == keys(PROJECTION_BASE)
        projection.check_config(config)
    elif "labels" in config:
        assert keys(config) == keys(CLASSIFIER_BASE)
        train_classifier.check_config(config)
    else:
        assert keys(config) == keys(BASE)
        check_config(config)
    make_schedule(
        config.optim.schedule,
        config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps,
        total_steps=config.train.steps,
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_priors_prompts_are_no_captions(path):
    """Or the recipe says why they may be."""
    config = load_config(path)
    if "prior" not in config or not config.prior.weight:
        return
    few = config.few_shot
    shared = set(config.prior.prompts) & {few.prompt_with, few.prompt_without}
    assert shared == (set() if path.stem.startswith("few_shot") else {few.prompt_without})
    assert bool(shared) == bool(config.prior.same_prompts_because)


def test_textual_inversions_rate_is_the_scaled_one_of_the_example():
    """5e-4 for each image of an optimizer step, as `--scale_lr` of diffusers' example has it."""
    config = load_config(CONFIGS[0].parent / "textual_inversion.py")
    assert config.optim.learning_rate == pytest.approx(5e-4 * config.data.batch_size)


def test_a_prior_that_shares_a_caption_is_refused_without_a_reason():
    config = training_config()
    check_prior_prompts(config, ["A photo of an x-ray"])  # there is no prior
    config.prior.weight = 1.0
    check_prior_prompts(config, ["A photo of a lung xray", "x-ray"])
    for caption in ("A photo of an x-ray", " a photo of  AN x-ray\n"):
        with pytest.raises(UserError, match="'A photo of an x-ray' is a caption of the training"):
            check_prior_prompts(config, ["other", caption])
    config.prior.same_prompts_because = "it draws them well"
    check_prior_prompts(config, ["A photo of an x-ray"])


class Recorder:
    """A config that writes down which keys are read. Copying or checking all of it is none."""

    def __init__(self, config: ConfigDict, read: set[str], prefix: str = ""):
        self._config, self._read, self._prefix = config, read, prefix

    def __getattr__(self, name: str):
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return Recorder(value, self._read, f"{self._prefix}{name}.")
        self._read.add(self._prefix + name)
        return value

    def __getitem__(self, name: str):
        return getattr(self, name)

    def items(self, **keywords):
        return self._config.items(**keywords)

    def to_dict(self) -> dict:
        if self._prefix:
            self._read |= {self._prefix + name for name in self._config}
        return self._config.to_dict()


def test_recorder_sees_what_is_read():
    read = set()
    config = Recorder(recipe("model", "data"), read)
    assert config.train.steps == 4
    config.mesh.to_dict()
    config.to_dict()
    assert read == {"train.steps", "mesh.data", "mesh.fsdp", "mesh.tensor"}


def test_every_key_is_read(tmp_path, monkeypatch):
    """By what trains, not by what checks values; up to the point where the loop would start."""
    monkeypatch.setattr(run, "check_config", lambda config: None)
    params = []

    def loop(workdir, settings, **arguments):
        params.append(arguments["params"])
        if arguments["preview"] is not None:
            arguments["preview"](arguments["params"], 0)
        if arguments["evaluation"] is not None:
            arguments["evaluation"](arguments["params"], 0, 1.0)
        return arguments["adaptation"].init(arguments["params"], jax.random.key(0))

    monkeypatch.setattr(run, "run_loop", loop)
    monkeypatch.setattr(preview, "sample_images", lambda model, prompts, **_: _grey(prompts))
    write_model(tmp_path / "model")
    write_classifier(tmp_path / "classifier", 16)
    read = set()
    lora = {"adaptation__lora_rank": 2, "adaptation__lora_alpha": 2.0}
    inversion = {
        "placeholder_token": "<x>",
        "initializer_token": "l",
        "num_vectors": 1,
        "train": (),
    }
    kinds = {
        ("diffusion", "full"): {},
        ("diffusion", "lora"): lora,
        ("diffusion", "textual_inversion"): {
            **{f"adaptation__{key}": value for key, value in inversion.items()},
            "few_shot__prompt_with": "<x> effusion",
        },
        ("vae", "full"): {
            "vae__perceptual_weight": 0.1,
            "vae__perceptual_features": f"classifier={tmp_path / 'classifier'}",
        },
    }
    for (task, name), changes in kinds.items():
        config = recipe(
            tmp_path / "model",
            tmp_path / "data",
            task=task,
            adaptation__name=name,
            vae__measure_scaling_factor=True,
            evaluation__every_steps=int(task == "diffusion"),
            evaluation__metrics=("kid", "prompt_accuracy", "validation_loss"),
            evaluation__features=f"classifier={tmp_path / 'classifier'}",
            evaluation__classifier=str(tmp_path / "classifier"),
            few_shot__images_per_prompt=4,
            prior__weight=float(task == "diffusion"),
            prior__num_images=8,
            **changes,
        )
        run.train(Recorder(config, read), tmp_path / f"{task}_{name}")
    assert len(params) == 4
    assert keys(BASE) - read == set()


def test_every_key_of_the_classifier_is_read(tmp_path):
    config = classifier_config()
    config.data.update(num_images=80, image_size=32, batch_size=16, validation_fraction=0.3)
    config.network.update(growth_rate=4, block_config=(1, 1), num_init_features=4)
    config.optim.warmup_steps = 1
    config.train.steps = 2
    read = set()
    train_classifier.train_classifier(Recorder(config.lock(), read), tmp_path)
    assert keys(CLASSIFIER_BASE) - read == set()


def test_every_key_of_the_comparison_is_read(tmp_path):
    config = downstream_utility_config()
    config.data.update(num_images=80, image_size=32, batch_size=16, validation_fraction=0.3)
    config.network.update(growth_rate=4, block_config=(1, 1), num_init_features=4)
    config.optim.warmup_steps = 1
    config.train.steps = 2
    config.update(seeds=1, real_images=20)
    config.synthetic.path = str(tmp_path / "drawn")
    write_image_folder(
        phantom_records(20, seed=1, image_size=32), tmp_path / "drawn", progress=False
    )
    read = set()
    downstream_utility.measure_utility(Recorder(config.lock(), read), tmp_path / "run")
    assert keys(COMPARE_BASE) - read == set()


def test_every_key_of_the_projection_is_read(tmp_path):
    write_model(tmp_path / "model")
    config = text_projection_config()
    config.model.path = str(tmp_path / "model")
    config.encoder.path = str(write_bert(tmp_path / "bert"))
    config.data.update(num_images=40, image_size=16, batch_size=8, validation_fraction=0.3)
    config.train.steps = 1
    read = set()
    projection.train_projection(Recorder(config.lock(), read), tmp_path / "run")
    assert keys(PROJECTION_BASE) - read == set()


def test_every_key_of_the_reconstruction_is_read(tmp_path):
    write_model(tmp_path / "model")
    write_image_folder(phantom_records(4, image_size=16), tmp_path / "real", progress=False)
    config = reconstruction_config()
    config.update(image_size=16, resize_mode="pad")
    read = set()
    recorder = Recorder(config.lock(), read)
    reconstruct.reconstruct(
        recorder, str(tmp_path / "model"), str(tmp_path / "real"), tmp_path / "run"
    )
    assert keys(reconstruction_config()) - read == set()


def test_every_key_of_the_text_probe_is_read(tmp_path):
    config = text_probe_config()
    config.num_images = 60
    config.num_resamples = 20
    read = set()
    bert = str(write_bert(tmp_path / "bert"))
    probe_text.probe_encoders(
        Recorder(config.lock(), read),
        {"bert": bert},
        ("phantom", None),
        tmp_path / "run",
        cache_dir=tmp_path / "data",
    )
    assert keys(text_probe_config()) - read == set()


def test_every_key_of_the_sampling_is_read(tmp_path):
    write_model(tmp_path / "model")
    config = sampling_config()
    config.num_steps = 1
    read = set()
    expected = sample_for_evaluation.Sampling(
        str(tmp_path / "model"), ("a",), Recorder(config.lock(), read)
    )
    sample_for_evaluation.sample_for_evaluation(expected, tmp_path / "run")
    # The prompts are Sampling's own: a table may stand in their place.
    assert keys(sampling_config()) - read == {"prompts"}


def _grey(prompts):
    return np.full((len(prompts), 16, 16, 3), 128, np.uint8)
