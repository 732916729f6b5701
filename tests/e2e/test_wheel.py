"""The wheel, built from a dirty clone, installed outside of it, and used there."""

import html
import importlib.metadata
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
"""What pip calls, without its network. In processes: setuptools changes the one that it runs in."""
LOOK = """
import contextlib, io, sys
from pathlib import Path
from medsd_jax.cli.main import COMMANDS, main
import medsd_jax
for words in ([], *(command.split() for command in COMMANDS)):
    message = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(message):
        main([*words, "--help"])
    assert message.getvalue().startswith(" ".join(["usage: medsd-jax", *words])), words
from medsd_jax.config.recipes import load_config, recipes_folder
assert recipes_folder().parent == Path(medsd_jax.__file__).parent
for name in sys.argv[2:]:
    assert len(load_config(name)) > 3, name
assert (recipes_folder().parent / "py.typed").is_file()
from medsd_jax.reports.page import page_template
assert page_template("demo.html.jinja").filename.startswith(str(recipes_folder().parent))
assert set(medsd_jax.__all__) <= set(dir(medsd_jax)), dir(medsd_jax)
for name in medsd_jax.__all__:
    getattr(medsd_jax, name)
clone = [m.__file__ for m in sys.modules.values() if Path(sys.argv[1]) in
         Path(getattr(m, "__file__", None) or "/").parents and ".venv" not in m.__file__]
assert not clone, clone
"""
JUNK = (
    "configs/mine.py", "configs/notes.txt", "configs/lora.py.orig", "runs/demo/model.safetensors",
    "medsd_jax/reports/templates/demo.html.jinja.orig", "build/lib/medsd_jax/gone.py",
)  # fmt: skip
"""Not committed, or left by an earlier build."""


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist of a copy of the clone that holds `JUNK`, too."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < 77:
        pytest.skip("building needs setuptools 77 or newer here: pip install 'medsd_jax[test]'")
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("this is no clone: git does not say which files belong to it")
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for words in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=copy, check=True, capture_output=True)
    for name in JUNK:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("raise SystemExit('this was not to be packed')\n")
    made = []
    for hook in ("build_wheel", "build_sdist"):
        words = [sys.executable, "-c", BUILD, hook, str(output)]
        done = subprocess.run(words, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append(output / done.stdout.split()[-1])
    return made


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """A virtual environment that holds the wheel; it borrows everything else from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Plain paths: the .pth files there, that of an editable medsd_jax among them, are not read.
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    python = folder / "bin" / "python"
    words = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [python, "-m", "pip", *words, "--ignore-installed", built[0]],
        capture_output=True, text=True,
    )  # fmt: skip
    if "No module named pip" in done.stderr:
        pytest.skip("installing needs pip in this environment")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def call(environment, tmp_path):
    """Runs a program of that environment, in a folder outside of the clone."""

    def run(*words):
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [environment / "bin" / words[0], *words[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_what_is_packed(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if ".dist-info/" not in name}
    tracked = git("ls-files", "medsd_jax", "configs").stdout.split()
    recipes = {name.replace("configs/", "medsd_jax/recipes/") for name in tracked}
    assert recipes <= packed
    data = {name for name in packed if not name.endswith(".py")}
    assert data <= recipes, "of package data, what is committed and nothing else"
    assert {name for name in packed if "/recipes/" in name} <= recipes
    assert all(name.startswith("medsd_jax/") for name in packed) and not _junk(packed)
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert set(tracked) | {"setup.py", "LICENSE", "README.md"} <= names
    assert not _junk(names) and not [name for name in names if name.startswith(("tests/", "runs/"))]


def _junk(names):
    ends = [name.rpartition("/")[2] for name in JUNK]
    return [name for name in names if name.rpartition("/")[2] in ends]


def test_everything_is_found_outside_of_the_clone(call):
    recipes = [path.stem for path in (ROOT / "configs").glob("*.py")]
    tracked = git("ls-files", "configs").stdout
    recipes = [name for name in recipes if f"configs/{name}.py\n" in tracked]
    assert len(recipes) > 30
    call("python", "-c", LOOK, str(ROOT), *recipes)
    assert call("medsd-jax", "train", "--help").startswith("usage: medsd-jax train")
    assert "medsd-jax demo" in call("python", "-m", "medsd_jax", "--help")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_and_what_it_says_to_do_next(call, tmp_path):
    """Two steps of each training; then its page's last words, which train on and report anew."""
    few = ["--vae_steps", "2", "--steps", "2", "--classifier_steps", "2", "--classified", "8"]
    call("medsd-jax", "demo", "--output", "demo", *few)  # a folder of a recipe's name
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    blocks = [html.unescape(b) for b in re.findall(r'class="shell">(.*?)</code>', page, re.DOTALL)]
    train_on, report_anew = blocks[-1].replace("\\\n", " ").strip().split("\n\n")
    (tmp_path / "demo" / "report.html").unlink()
    assert "demo/model" in call(*shlex.split(train_on))
    assert (tmp_path / "demo" / "checkpoints" / "4").is_dir()
    call(*shlex.split(report_anew), "--classified", "8")
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
