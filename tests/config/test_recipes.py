"""Recipes: found and run from anywhere; flags over recipe over defaults; mistakes in one line."""

import argparse
import os
import subprocess
import sys

import pytest

from medsd_jax.cli import evaluate, probe_text, reconstruct, sampling_flags
from medsd_jax.cli.main import main
from medsd_jax.cli.recipe_flags import settings_of
from medsd_jax.config import reconstruction_config, sampling_config, text_probe_config
from medsd_jax.config.recipes import find_recipe, load_config, recipes_folder
from medsd_jax.errors import UserError
from tests.tiny.run import ROOT

COMMANDS = [
    (evaluate, sampling_config, sampling_flags.RECIPE),
    (reconstruct, reconstruction_config, reconstruct.RECIPE),
    (probe_text, text_probe_config, probe_text.RECIPE),
]


def no_flags(module):
    """The flags of a command, none of the optional ones given."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    module.add_parser(subparsers)
    (parser,) = subparsers.choices.values()
    return argparse.Namespace(**{action.dest: action.default for action in parser._actions})


@pytest.mark.parametrize(("module", "factory", "recipe"), COMMANDS)
def test_flag_over_recipe_over_defaults(module, factory, recipe):
    args = no_flags(module)
    defaults = factory()
    assert settings_of(args, factory, recipe) == defaults.lock()
    args.config = recipe
    assert settings_of(args, factory, recipe) == load_config(args.config).lock()
    for name, value in defaults.items(preserve_field_references=True):
        given = {"sampler": "euler", "pooling": "cls", "resize_mode": "crop"}.get(name)
        if name in ("prompts", "labels"):
            setattr(args, name, ["a", "b"])
            assert settings_of(args, factory, recipe)[name] == ("a", "b")
            continue
        if given is None:
            given = not value if isinstance(value, bool) else 5
        setattr(args, name, given)
        assert settings_of(args, factory, recipe)[name] == given, name


@pytest.mark.parametrize(("module", "factory", "recipe"), COMMANDS)
def test_the_recipe_of_another_command_is_refused(module, factory, recipe):
    for other in {"few_shot", *(entry[2] for entry in COMMANDS)} - {recipe}:
        args = no_flags(module)
        args.config = other
        with pytest.raises(
            UserError, match=f"which would not be read here.*{factory.__name__}, such as {recipe}"
        ):
            settings_of(args, factory, recipe)


def test_a_misspelt_key_of_a_recipe_is_named(tmp_path, capsys):
    """Setting a key that is not there adds it, without a word of ml_collections."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from medsd_jax.config import training_config\n\n"
        "def get_config():\n    config = training_config()\n"
        "    config.model.path = 'x'\n    config.optim.lerning_rate = 1e-4\n    return config\n"
    )
    words = ["--config", str(recipe)]
    assert main(["train", *words, "--workdir", str(tmp_path / "run")]) == 2
    assert main(["plan", *words, "--topology", "v5e:2x2"]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert "'optim.lerning_rate' (did you mean optim.learning_rate?)" in line


@pytest.mark.parametrize("command", ["train", "plan", "train-classifier", "downstream-utility"])
def test_trainings_refuse_recipes_that_train_nothing(tmp_path, capsys, command):
    for name in ("reconstruction", "text_probe", "out_of_the_box"):
        words = ["--config", str(ROOT / "configs" / f"{name}.py")]
        if command != "plan":
            words += ["--workdir", str(tmp_path / "run")]
        words += ["--topology", "v5e:2x2"] if command == "plan" else []
        assert main([command, *words]) == 2
        assert f"{name}.py has a key" in capsys.readouterr().err.splitlines()[-1]


def test_recipes_go_by_name_from_anywhere(tmp_path):
    """And one recipe may start from another, wherever the command is called."""
    (tmp_path / "mine.py").write_text(
        "from medsd_jax.config.recipes import load_config\n\n"
        "def get_config():\n    return load_config('few_shot_lora')\n"
    )
    code = (
        "from medsd_jax.config.recipes import load_config\n"
        "one, other = (load_config(x).adaptation for x in ('mine.py', 'few_shot_lora'))\n"
        "assert one == other\nprint('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "read"


def test_a_recipe_s_name_is_no_folder_of_the_user(tmp_path, monkeypatch):
    """After `medsd-jax demo --output demo`, the recipe `demo` must still be one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    assert find_recipe("lora") == recipes_folder() / "lora.py" == ROOT / "configs" / "lora.py"
    with pytest.raises(UserError, match="recipe lora is not a Python file"):
        find_recipe("./lora")
    (tmp_path / "lora.py").touch()
    assert find_recipe("lora.py").samefile(tmp_path / "lora.py")


def test_mistakes(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import no_such_module\n")
    with pytest.raises(UserError, match=r"wrong.py: No module named 'no_such_module'"):
        load_config(wrong)
    with pytest.raises(UserError, match="is no folder of recipes"):
        load_config("lora", tmp_path / "absent")
    with pytest.raises(UserError, match=r"'few_shoot' is neither a file .*mean few_shot\?"):
        load_config("few_shoot")
