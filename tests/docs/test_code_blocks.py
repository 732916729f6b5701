"""What the documentation says works: its Python runs, and its commands are understood.

Python blocks run page by page, in their order and in one namespace, in a folder that holds what the
guides' commands would have left, from a model of random weights. Blocks that say `needs-weights`
are compiled only. Commands are parsed by their own parsers, recipes and their keys included.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import medsd_jax
from docs.generate.commands import help_of
from docs.generate.recipes import docstring
from medsd_jax.adaptation.lora import LoraSettings, lora
from medsd_jax.cli import flags
from medsd_jax.cli.main import COMMANDS, main
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.sources.folder import write_image_folder
from medsd_jax.interop.learned_embeddings import add_placeholder_token, write_embeddings
from medsd_jax.interop.lora_files import write_lora
from tests.docs.blocks import Block, code_blocks, command_lines, commands_in_text
from tests.tiny.classifier import write_classifier
from tests.tiny.pipeline import SIZE, tiny_pipeline

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in code_blocks(page)]
LANGUAGES = {"bash", "csv", "python", "text"}
MARKS = {"needs-weights", "needs-torch"}
PROMPTS = ("A photo of a lung xray", "Chest X-ray. Large left pleural effusion.")
OTHERS = {
    "cd",
    "gcloud",
    "git",
    "make",
    "mpirun",
    "pip",
    "printf",
    "python",
    "python3",
    "source",
    "srun",
}
"""Programs that the guides call beside ours."""


def where(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def test_every_block_says_what_it_is():
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{where(block)}: language {block.language!r}"
        assert set(block.marks) <= MARKS, f"{where(block)}: marks {block.marks}"


# Python


def pages_with_python() -> list[Path]:
    return sorted({block.page for block in BLOCKS if block.language == "python"})


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Machine code is optimised for hours, and runs for seconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder as the guides' commands leave it."""
    folder = tmp_path_factory.mktemp("project")
    model = tiny_pipeline()
    for name in ("demo/model", "demo/vae/model", "mine/model", "export"):
        medsd_jax.save(model, folder / "runs" / name)
    noise = np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE, 3), np.uint8)
    (folder / "runs/look").mkdir()
    rows = []
    for i, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"runs/look/{i:05}.png")
        rows.append({"file": f"{i:05}.png", "prompt": PROMPTS[i % 2], "seed": i})
    (folder / "runs/look/samples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    records = phantom_records(24, image_size=32)
    write_image_folder(records, folder / "my_images", progress=False)
    write_classifier(folder / "runs/classifier", SIZE)
    matrices = lora(LoraSettings((r"^unet\..*\.to_q\.",), 2, 2.0)).init(
        model.params, jax.random.key(0)
    )
    write_lora(folder / "runs/lora/lora", matrices, 2.0)
    word = "<lung-xray>"
    (folder / "runs/inversion").mkdir()
    write_embeddings(
        folder / "runs/inversion",
        word,
        add_placeholder_token(tiny_pipeline(), word, initializer_token="a"),
        1,
    )
    return folder


@pytest.mark.parametrize("page", pages_with_python(), ids=lambda page: page.stem)
def test_python_runs(page, project, monkeypatch):
    monkeypatch.chdir(project)
    images = np.random.default_rng(1).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    names = {"my_batches": [(images, ["A photo of a lung xray"] * 8)] * 2}
    for block in code_blocks(page):
        if block.language != "python":
            continue
        # The line numbers of the page, for the traceback.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if "needs-weights" in block.marks:
            continue
        if "needs-torch" in block.marks:
            pytest.importorskip("diffusers")
        exec(code, names)


# Commands


class Parsed(BaseException):
    """A command has understood its words, and would begin."""


def ours(words: list[str]) -> list[str] | None:
    """Of a command line, what follows `medsd-jax`, whatever starts it; None for other programs."""
    for i, word in enumerate(words):
        if word == "medsd-jax":
            return words[i + 1 :]
        if word == "python":
            first = words[i + 1 : i + 3]
            if first == ["-m", "medsd_jax"]:
                return words[i + 3 :]
            if first[0] in ("train.py", "sample.py"):
                return [first[0].removesuffix(".py"), *words[i + 2 :]]
    return None


COMMAND_LINES = [
    pytest.param(words, id=f"{where(block)}-{' '.join(words)[:40]}")
    for block in BLOCKS
    if block.language == "bash"
    for words in command_lines(block.code)
] + [
    pytest.param(words, id=f"{recipe.name}-{' '.join(words)[:40]}")
    for recipe in sorted((ROOT / "configs").glob("*.py"))
    for words in commands_in_text(docstring(recipe))
]


@pytest.fixture
def parse_only(monkeypatch):
    """Commands stop where their work would begin."""
    whole, missing = flags.ArgumentParser.parse_args, flags.missing_keys

    def parse_args(self, args=None, namespace=None):
        parsed = whole(self, args, namespace)
        if "--config.SECTION.KEY" in self._option_string_actions:
            return parsed  # the recipe comes next
        raise Parsed

    def missing_keys(config):
        if result := missing(config):
            return result
        raise Parsed

    monkeypatch.setattr(flags.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(flags, "missing_keys", missing_keys)


def run(words: list[str]) -> None:
    try:
        code = main(words)
    except SystemExit as e:
        code = e.code
    raise AssertionError(f"refused with exit code {code}")


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_commands_are_understood(words, parse_only, monkeypatch, tmp_path):
    argv = ours(words)
    if argv is None:
        program = next(word for word in words if word != "&&")
        assert program.rpartition("/")[2] in OTHERS, f"unknown program {program}"
        if program == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        if program == "python":
            assert (ROOT / words[1]).is_file()
        return
    monkeypatch.chdir(ROOT)
    if ("..." in argv) and not argv[argv.index("...") - 1].startswith("--"):
        # The reader's own flags stand there.
        known = {"--config": "finetune", "--workdir": "runs/x", "--config.model.path": "FOLDER"}
        argv = [word for word in argv if word != "..."]
        for flag, value in known.items():
            if flag not in argv:
                argv += [flag, value]
    with pytest.raises(Parsed):
        run(argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_understood(command, parse_only, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, result, examples = help_of(command).partition("\nexample")
    assert result
    for words in commands_in_text(examples):
        if "--help" in words:
            continue
        with pytest.raises(Parsed):
            run(ours(words))


def test_a_renamed_flag_or_key_is_found(parse_only, monkeypatch, capsys):
    """The three tests above can fail: each of these words is wrong by one letter."""
    monkeypatch.chdir(ROOT)
    recipe = ["train", "--config", "configs/finetune.py", "--workdir", "x"]
    for wrong in (
        ["export", "--model", "a", "--outptu", "b"],
        [*recipe, "--config.model.path=a", "--config.data.patch=b"],
        ["train", "--config", "configs/finetun.py", "--workdir", "x"],
        recipe,  # model.path is required
    ):
        with pytest.raises(AssertionError, match="refused with exit code 2"):
            run(wrong)
    assert "--outptu" in capsys.readouterr().err


def test_blocks_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```bash\nx --a 'b c' \\\n    --d  # no\ny | z\n```\n"
        "-   item\n\n    ```{.python .needs-weights}\n    if x:\n        y\n    ```\n"
    )
    bash, python = code_blocks(page)
    assert (bash.language, bash.marks, bash.line) == ("bash", (), 3)
    assert command_lines(bash.code) == [["x", "--a", "b c", "--d"], ["y"], ["z"]]
    assert (python.language, python.marks) == ("python", ("needs-weights",))
    assert python.code == "if x:\n    y\n"
    page.write_text("```bash\nx\n")
    with pytest.raises(AssertionError, match="does not end"):
        code_blocks(page)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
