"""Every number of a recipe has bounds, and what is beyond them is one line before any work."""

import json
import resource

import pytest
from ml_collections import ConfigDict
from PIL import Image

from medsd_jax.cli.main import exit_code, main
from medsd_jax.config import (
    classifier_config,
    downstream_utility_config,
    reconstruction_config,
    sampling_config,
    text_probe_config,
    text_projection_config,
    training_config,
)
from medsd_jax.config.ranges import RANGES, Range, check_kinds, check_ranges
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.errors import UserError
from medsd_jax.vision.densenet import DenseNetConfig
from medsd_jax.workflows import (
    downstream_utility,
    probe_text,
    reconstruct,
    sample_for_evaluation,
    train_classifier,
)
from medsd_jax.workflows.train import checks, projection
from tests import commands
from tests.tiny.run import ROOT

CHECKS = {
    training_config: checks.check_config,
    classifier_config: train_classifier.check_config,
    downstream_utility_config: downstream_utility.check_config,
    text_projection_config: projection.check_config,
    reconstruction_config: reconstruct.check_config,
    text_probe_config: probe_text.check_config,
    sampling_config: sample_for_evaluation.check_config,
}


def filled(factory):
    config = factory()
    for section, name in (("model", "path"), ("encoder", "path"), ("synthetic", "path")):
        if section in config:
            config[section][name] = "x"
    return config


def kinds(config, prefix=""):
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield from kinds(value, f"{prefix}{name}.")
        else:
            kind = value.get_type() if hasattr(value, "get_type") else type(value)
            yield prefix + name, kind


NUMBERS = [
    (factory, key, kind)
    for factory in CHECKS
    for key, kind in kinds(factory())
    if kind in (int, float)
]


def changed(factory, key, value):
    config = filled(factory)
    *sections, name = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[name] = value
    return config


@pytest.mark.parametrize("factory", CHECKS)
def test_the_defaults_are_in_their_ranges(factory):
    CHECKS[factory](filled(factory))
    check_ranges(factory())  # what a recipe leaves to its user has no value yet


@pytest.mark.parametrize(("factory", "key", "kind"), NUMBERS)
def test_every_number_of_every_recipe_has_bounds(factory, key, kind):
    assert key in RANGES
    values = [10**12, -(10**12), 10**400]
    if kind is float:
        values = [float("nan"), float("inf"), -float("inf"), 1e300]
    for value in values:
        with pytest.raises(UserError) as refused:
            CHECKS[factory](changed(factory, key, value))
        message = str(refused.value)
        assert message.startswith(f"{key} = ") and "\n" not in message and len(message) < 250


@pytest.mark.parametrize(
    ("factory", "key", "value", "message"),
    [
        (classifier_config, "labels", ("a", "b", "a"), "labels names 'a' twice"),
        (classifier_config, "labels", ("Pleural Effusion", "pleural_effusion"), "twice"),
        (classifier_config, "log.every_steps", 0, "must be at least 1"),
        (classifier_config, "network.block_config", (6, 10**9), "at most 128"),
        (classifier_config, "augmentation.shift", 1.5, "at least 0 and at most 1"),
        (downstream_utility_config, "fine_tuning.share", 1.0, "above 0 and below 1"),
        (training_config, "seed", 2**32, "at least 0 and below 2\\*\\*32"),
        (training_config, "adaptation.num_vectors", 10**9, "at least 1 and at most 75"),
        (training_config, "optim.learning_rate", 1e29, "at least 0 and at most 10"),
        (training_config, "optim.eps", 0.0, "above 0"),
        (text_probe_config, "labels", ("a", "a"), "twice"),
        (training_config, "adaptation.train", (1,), r"adaptation\.train = \(1,\) must list texts"),
        (training_config, "optim.no_decay", (None,), "must list texts alone, not None"),
        (training_config, "preview.prompts", (("a",),), "must list texts alone"),
        (training_config, "data.cache_dir", "a\0b", r"data\.cache_dir = 'a\\x00b' holds the char"),
        (classifier_config, "labels", (1, 2), "must list texts alone, not 1"),
        (
            classifier_config,
            "network.block_config",
            ("a",),
            "must list numbers alone",
        ),
        (sampling_config, "guidance_scale", -1001.0, "at least -1000 and at most 1000"),
    ],
)
def test_what_the_bounds_say(factory, key, value, message):
    with pytest.raises(UserError, match=message):
        CHECKS[factory](changed(factory, key, value))


def test_a_range_with_and_without_its_ends():
    assert [Range(0, 1).holds(x) for x in (-1, 0, 0.5, 1, 2)] == [False, True, True, True, False]
    inner = Range(0, 1, above=True, below=True)
    assert [inner.holds(x) for x in (0, 0.5, 1)] == [False, True, False]
    assert str(Range()) == "" and str(Range(1)) == "at least 1" and Range().holds(-3)
    check_ranges(ConfigDict({"seed": 1, "model": {"remat": True}, "mine": 10**12}))


@pytest.mark.parametrize(
    "word",
    [
        "data.num_images=1000000000",
        "data.image_size=100000",
        "data.batch_size=1000000000",
        "prior.num_images=1000000000",
        "adaptation.num_vectors=1000000000",
        "adaptation.lora_rank=1000000000",
        "optim.learning_rate=nan",
        "validation.num_images=1000000000",
        "train.steps=99999999999999999999",
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_asked_for(tmp_path, capsys, word):
    words = ["--config", str(ROOT / "configs/demo.py"), "--workdir", str(tmp_path / "run")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words += ["--config.model.path=x"] if "model.path" not in word else []
    assert exit_code(lambda: commands.train([*words, f"--config.{word}"])) == 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 * 1024  # KiB
    assert word.split("=")[0] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["data", "--source", "phantom", "--num_images", "1000000000"],
        ["data", "--source", "phantom", "--num_images", "9" * 5000],
        ["membership", "--workdir", ".", "--num_timesteps", "1000000000"],
        ["membership", "--workdir", ".", "--batch_size", "1000000000"],
        ["data", "--source", "phantom", "--num_shown", "1000000"],
        ["data", "--source", "phantom", "--seed", "4294967296"],
        ["data", "--source", "phantom", "--seed", "9" * 5000],
        ["demo", "--steps", "1000000000"],
        ["demo", "--vae_steps", "0"],
        ["demo", "--classifier_steps", "-1"],
        ["export", "--model", ".", "--num_steps", "1001"],
    ],
)
def test_flags_that_count_have_bounds(tmp_path, capsys, words):
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert words[-2] in line and len(line) < 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("num_images", 10**9),
        ("height", 8193),
        ("width", 10**5),
        ("batch_size", 10**5),
        ("seed", "9" * 5000),
    ],
)
@pytest.mark.parametrize("edited", [False, True])
def test_absurd_images_are_refused_before_the_model_is_read(tmp_path, capsys, flag, value, edited):
    words = ["--model", str(tmp_path / "absent"), "--prompt", "x", "--output", str(tmp_path / "o")]
    if edited:
        Image.new("L", (16, 16)).save(tmp_path / "given.png")
        words += ["--init_image", str(tmp_path / "given.png")]
    assert exit_code(lambda: commands.sample([*words, f"--{flag}={value}"])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--{flag}" in line and len(line) < 500
    assert not (tmp_path / "o").exists()


def test_images_of_all_prompts_together_have_a_bound(tmp_path, capsys):
    words = ["--model", "absent", "--output", str(tmp_path / "o"), "--num_images", "600000"]
    assert exit_code(lambda: commands.sample([*words, "--prompt", "x", "--prompt", "y"])) == 2
    assert "1200000 images, more than the 1000000" in capsys.readouterr().err.splitlines()[-1]


def test_phantoms_have_bounds():
    with pytest.raises(UserError, match="at most 100000"):
        phantom_records(10**9)


@pytest.mark.parametrize(
    "changes",
    [
        {"growth_rate": 10**9},
        {"block_config": (10**9,)},
        {"num_init_features": 10**9},
        {"block_config": (1,) * 99},
    ],
)
def test_a_network_has_bounds(changes):
    with pytest.raises(UserError) as refused:
        DenseNetConfig(**changes)
    assert "\n" not in str(refused.value)


def as_json(config):
    return ConfigDict(json.loads(json.dumps(config.to_dict())))


def test_kinds_of_a_config_that_was_read_from_json():
    base = ConfigDict({"data": training_config().data})
    check_kinds(as_json(base), base, "config.json")
    for change, message in (
        ({"image_size": "a word"}, r"data\.image_size = 'a word' must be of type int"),
        ({"image_size": True}, "must be of type int"),
        ({"image_size": None}, "must be of type int"),
        ({"phantom_findings": "nodule"}, "must be of type tuple"),
        ({"validation_fraction": [0.1]}, "must be of type float"),
    ):
        config = as_json(base)
        config.data = config.data.to_dict() | change
        with pytest.raises(UserError, match=message):
            check_kinds(config, base, "config.json")
    config = as_json(base)
    config.data.validation_fraction = 0.25
    config.data.path = None
    check_kinds(config, base, "config.json")
    del config.data["source"]
    with pytest.raises(UserError, match=r"config\.json has no data\.source"):
        check_kinds(config, base, "config.json")


@pytest.mark.parametrize("content", ["[1]", "[" * 100_000, '{"task": "diffusion", "data": 1}'])
def test_membership_of_no_run(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    assert main(["membership", "--workdir", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.data.image_size = 'large'", "line 5: TypeError"),
        ("config.data.image_size = no_such", "line 5: NameError"),
        ("config.no.such = 1", "line 5"),
        ("config.train.steps = 1 // 0", "line 5: ZeroDivisionError"),
    ],
)
def test_a_mistake_in_a_recipe_names_its_line(tmp_path, capsys, line, message):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from medsd_jax.config import training_config\n\n"
        "def get_config():\n    config = training_config()\n"
        f"    {line}\n    return config\n"
    )
    words = ["--config", str(recipe), "--workdir", str(tmp_path / "run")]
    assert exit_code(lambda: commands.train(words)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
