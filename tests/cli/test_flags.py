"""Config flags: the syntax of ml_collections, and one line for every mistake."""

import pytest
from ml_collections import ConfigDict

from medsd_jax.cli.flags import ArgumentParser, parse_train_flags, positive_int
from medsd_jax.cli.main import exit_code
from medsd_jax.errors import UserError

RECIPE = """
from ml_collections import ConfigDict, config_dict

def get_config():
    return ConfigDict({
        "steps": 100,
        "resume": None,
        "optim": {
            "learning_rate": 1e-4,
            "min_snr_gamma": config_dict.placeholder(float),
            "schedule": "constant",
        },
        "training": {"remat": False, "patterns": ("unet.*",), "mesh": (2, 4)},
    })
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def parse(recipe, tmp_path):
    def parse_words(*words):
        argv = ["--config", str(recipe), "--workdir", str(tmp_path / "run"), *words]
        return parse_train_flags(argv)

    return parse_words


def _get(config, key):
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--config.steps=7"], "steps", 7),
        (["--config.steps", "7"], "steps", 7),
        (["-config.steps=7"], "steps", 7),
        (["--config.steps=7", "--config.steps=8"], "steps", 8),
        (["--config.optim.learning_rate=1e-5"], "optim.learning_rate", 1e-5),
        (["--config.optim.learning_rate=1"], "optim.learning_rate", 1.0),
        (["--config.optim.learning_rate", "-1"], "optim.learning_rate", -1.0),
        (["--config.optim.schedule=a=b"], "optim.schedule", "a=b"),
        (["--config.optim.schedule=None"], "optim.schedule", "None"),
        (["--config.optim.min_snr_gamma=5"], "optim.min_snr_gamma", 5.0),
        (
            ["--config.optim.min_snr_gamma=5", "--config.optim.min_snr_gamma=none"],
            "optim.min_snr_gamma",
            None,
        ),
        (["--config.training.remat"], "training.remat", True),
        (["--config.training.remat=true"], "training.remat", True),
        (["--config.training.remat=True", "--noconfig.training.remat"], "training.remat", False),
        (["--config.training.patterns=vae.*"], "training.patterns", ("vae.*",)),
        (["--config.training.patterns=('a', 'b')"], "training.patterns", ("a", "b")),
        (["--config.training.mesh=(8, 1)"], "training.mesh", (8, 1)),
        (["--config.resume=runs/a"], "resume", "runs/a"),
        (["--config.resume=3"], "resume", 3),
        (["--config.resume=none"], "resume", None),
    ],
)
def test_override(parse, words, key, value):
    flags = parse(*words)
    result = _get(flags.config, key)
    assert result == value and type(result) is type(value)
    assert flags.overrides == {key: value}


def test_what_is_not_overridden_stays(parse, recipe, tmp_path):
    flags = parse("--config.steps=7")
    assert flags.config.optim.learning_rate == 1e-4
    assert flags.recipe == str(recipe) and flags.workdir == tmp_path / "run"
    assert isinstance(flags.config, ConfigDict) and flags.config.is_locked
    assert not flags.workdir.exists()


def test_equals_form_and_order_of_the_plain_flags(recipe, tmp_path):
    flags = parse_train_flags([f"--workdir={tmp_path}", "--config.steps=3", f"--config={recipe}"])
    assert flags.config.steps == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.optim.learning_rat=1"], "did you mean optim.learning_rate?"),
        (["--config.optm.learning_rate=1"], "no key 'optm' (did you mean optim.learning_rate?)"),
        (["--config.learning_rate=1"], "did you mean optim.learning_rate?"),
        (["--config.steps.x=1"], "steps has no key 'x'"),
        (["--config.=1"], "has no key ''"),
        (["--config.optim=1"], "is a section; set one of its keys: learning_rate"),
        (["--config.steps=many"], "--config.steps=many: expected a value of type int"),
        (["--config.steps=1.5"], "expected a value of type int"),
        (["--config.steps=none"], "expected a value of type int"),
        (["--config.steps="], "expected a value of type int"),
        (["--config.steps"], "--config.steps needs a value"),
        (["--config.optim.learning_rate=fast"], "expected a value of type float"),
        (["--config.optim.min_snr_gamma=x"], "expected a value of type float"),
        (["--config.training.remat=maybe"], "expected a value of type bool"),
        (["--config.training.patterns=(a, "], "expected a value of type tuple"),
        (["--wrokdir=x"], "unknown argument --wrokdir (did you mean --workdir?)"),
        (["--steps=3"], "unknown argument --steps"),
        (["extra"], "unknown argument extra"),
    ],
)
def test_wrong_words(parse, words, message, capsys):
    assert exit_code(lambda: parse(*words) and None) == 2
    err = capsys.readouterr().err
    assert err.startswith("medsd_jax: error: ") and err.count("\n") == 1
    assert message in err


def test_missing_flags(recipe):
    with pytest.raises(UserError, match="required: --workdir, --config"):
        parse_train_flags([])
    with pytest.raises(UserError, match="required: --workdir"):
        parse_train_flags(["--config", str(recipe)])
    with pytest.raises(UserError, match=r"unknown argument --confg \(did you mean --config\?\)"):
        parse_train_flags(["--confg", str(recipe)])  # says more than "--config is required"
    with pytest.raises(UserError, match="--config: expected one argument"):
        parse_train_flags(["--workdir", "x", "--config"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (", r"line 1: "),
        ("x = 1", r"has no function get_config"),
        ("def get_config(): return {}", r"returns a dict, not a ConfigDict"),
        (None, r"does not exist \(did you mean .*recipe.py\?\)"),
    ],
)
def test_wrong_config_file(tmp_path, recipe, content, message):
    path = tmp_path / "recipes.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        parse_train_flags(["--config", str(path), "--workdir", str(tmp_path)])


def test_config_that_is_no_python_file(tmp_path):
    with pytest.raises(UserError, match="is not a Python file"):
        parse_train_flags(["--config", str(tmp_path), "--workdir", str(tmp_path)])


def test_user_error_of_a_recipe_passes_through(recipe, tmp_path):
    recipe.write_text(
        "from medsd_jax.errors import UserError\n"
        "def get_config():\n    raise UserError('this recipe needs a TPU')\n"
    )
    with pytest.raises(UserError, match=r"^this recipe needs a TPU$"):
        parse_train_flags(["--config", str(recipe), "--workdir", str(tmp_path)])


def test_required_placeholder(recipe, tmp_path):
    recipe.write_text(
        "from ml_collections import ConfigDict, config_dict\n"
        "def get_config():\n"
        "    return ConfigDict({'data': {'path': config_dict.required_placeholder(str)}})\n"
    )
    argv = ["--config", str(recipe), "--workdir", str(tmp_path)]
    with pytest.raises(UserError, match=r"this recipe needs --config\.data\.path=VALUE"):
        parse_train_flags(argv)
    flags = parse_train_flags([*argv, "--config.data.path=x"])
    assert flags.config.data.path == "x"


def test_workdir_that_is_a_file(recipe):
    with pytest.raises(UserError, match=r"--workdir .* is a file"):
        parse_train_flags(["--config", str(recipe), "--workdir", str(recipe)])


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "x", ""])
def test_positive_int_refuses(text):
    parser = ArgumentParser(prog="medsd-jax sample")
    parser.add_argument("--num_steps", type=positive_int)
    with pytest.raises(UserError, match=r"argument --num_steps: must be a whole number"):
        parser.parse_args([f"--num_steps={text}"])
    assert parser.parse_args(["--num_steps=2"]).num_steps == 2


def test_train_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as leave:
        parse_train_flags(["--help"])
    assert leave.value.code == 0
    assert "example: medsd-jax train --config" in capsys.readouterr().out
