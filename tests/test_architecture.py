"""The layout and the import rules of the package, read from the contracts in pyproject.toml."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medsd_jax.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "medsd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = SETTINGS["tool"]["importlinter"]["contracts"]
MAX_LINES = 350
"""The house says about 300 lines; a file beyond this limit holds a second subject."""
MAX_LINES_OF_CLI = 2000
"""A command is flags, one call and what is printed: all commands together."""


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(file): file for file in FILES}


def _walk(node: ast.AST):
    """All nodes but those of `if TYPE_CHECKING:`, which nothing imports."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _walk(child)


@functools.cache
def _imports() -> frozenset[tuple[str, str]]:
    """All pairs (importer, imported) in the package, inside functions too."""
    pairs = set()
    for importer, file in MODULES.items():
        for node in _walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                pairs |= {(importer, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import in {file}"
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    pairs.add((importer, name if name in MODULES else node.module))
    return frozenset(pairs)


def _is_in(module: str, packages: list[str]) -> bool:
    """Whether the module is one of the packages, or inside one; `a.*` means every child of a."""
    patterns = [re.escape(package).replace(r"\*", r"[^.]+") for package in packages]
    return any(re.fullmatch(rf"{pattern}(\..*)?", module) for pattern in patterns)


def _is_ignored(importer: str, imported: str, rules: list[str]) -> bool:
    for rule in rules:
        left, right = (
            # import-linter: `*` is one name, `**` is one or more.
            re.escape(side).replace(r"\*\*", ".+").replace(r"\*", "[^.]+")
            for side in rule.split(" -> ")
        )
        # import-linter sees packages of others by their first name only.
        top = imported if imported.startswith("medsd_jax") else imported.split(".")[0]
        if re.fullmatch(left, importer) and re.fullmatch(right, top):
            return True
    return False


def _breaches(contract: dict, pairs) -> list[str]:
    ignored = contract.get("ignore_imports", [])
    result = []
    floors = {
        f"medsd_jax.{name}": number
        for number, row in enumerate(contract.get("layers", []))
        for name in row.split(" | ")
    }
    for importer, imported in sorted(pairs):
        if contract["type"] == "layers":
            one, other = (
                next((f for f in floors if _is_in(m, [f])), None) for m in (importer, imported)
            )
            breach = None not in (one, other) and one != other and floors[one] >= floors[other]
        elif contract["type"] == "protected":
            packages = contract["protected_modules"]
            allowed = [*packages, *contract["allowed_importers"]]
            breach = _is_in(imported, packages) and not _is_in(importer, allowed)
        else:
            sources = contract["source_modules"]
            breach = _is_in(importer, sources) and _is_in(imported, contract["forbidden_modules"])
        if breach and not _is_ignored(importer, imported, ignored):
            result.append(f"{importer} -> {imported}")
    return result


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["name"])
def test_import_contract(contract):
    assert not _breaches(contract, _imports())


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("medsd_jax.arrays", "medsd_jax.models.unet"),
        ("medsd_jax.diffusion.ddim", "medsd_jax.models.unet"),
        ("medsd_jax.interop.diffusers_folder", "medsd_jax.diffusion.schedule"),
        ("medsd_jax.training.loop", "medsd_jax.data.loader"),
        ("medsd_jax.models.unet", "medsd_jax.sampling"),
        ("medsd_jax.sampling.sampler", "medsd_jax.workflows.sample"),
        ("medsd_jax.adaptation.full", "medsd_jax.models.unet"),
        ("medsd_jax.sampling.sampler", "medsd_jax.cli.main"),
        ("medsd_jax.sampling.sampler", "torch"),
        ("medsd_jax.interop.torch_verify", "tensorflow"),
        ("medsd_jax.data.transforms", "jax.numpy"),
        ("medsd_jax.models.config", "ml_collections.config_dict"),
    ],
)
def test_contracts_catch(importer, imported):
    assert any(_breaches(contract, {(importer, imported)}) for contract in CONTRACTS)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("medsd_jax.interop.diffusers_folder", "medsd_jax.models.config"),
        ("medsd_jax.adaptation.full", "medsd_jax.models.params"),
        ("medsd_jax.data.loader", "jax"),
        ("medsd_jax.interop.torch_verify", "torch.nn"),
        ("medsd_jax.workflows.sample", "medsd_jax.sampling.sampler"),
        ("medsd_jax.cli.export", "medsd_jax.interop.diffusers_folder"),
        ("medsd_jax.training.loop", "ml_collections"),
    ],
)
def test_contracts_allow(importer, imported):
    assert not any(_breaches(contract, {(importer, imported)}) for contract in CONTRACTS)


def test_every_package_has_a_contract_and_a_floor():
    packages = {f"medsd_jax.{folder.parent.name}" for folder in PACKAGE.glob("*/__init__.py")}
    protected = {name for c in CONTRACTS for name in c.get("protected_modules", [])}
    assert packages <= protected
    (floors,) = (c["layers"] for c in CONTRACTS if c["type"] == "layers")
    above = {f"medsd_jax.{name}" for row in floors for name in row.split(" | ")}
    assert above >= {".".join(m.split(".")[:2]) for m in MODULES if "." in m} - {
        "medsd_jax.__main__"
    }


def test_the_command_line_is_thin():
    lines = {
        file.name: len(file.read_text().splitlines()) for file in (PACKAGE / "cli").glob("*.py")
    }
    assert sum(lines.values()) <= MAX_LINES_OF_CLI, lines


@pytest.mark.parametrize("module", sorted(m for m in MODULES if not m.startswith("medsd_jax.cli")))
def test_nothing_below_the_command_line_knows_of_argv(module):
    """No parser, no Namespace, no word of the command line reaches a function for notebooks."""
    text = MODULES[module].read_text()
    if module == "medsd_jax.__main__":
        return
    assert not re.search(r"\bargparse\b|\bNamespace\b|\bsys\.argv\b", text)


_FLAG = re.compile(r"(?<![\w-])--[a-z]\w+")
_ON_COMMANDS = ("medsd_jax.studies.demo.commands", "medsd_jax.parallel.launch")
"""Their subject is command lines: those of the demo's report, and of processes on several hosts."""


def _texts(tree: ast.Module):
    """All strings of a module with their lines, but not its own docstring; f-strings as one."""
    if ast.get_docstring(tree) is not None:
        tree.body.pop(0)
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= set(map(id, node.values))
            parts = [x.value if isinstance(x, ast.Constant) else "{}" for x in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inside:
                yield node.lineno, node.value


def _flags(source: str) -> list[str]:
    """What a module says of flags; commands of the hub's tool are not ours."""
    return [
        f"line {line}: {flag}"
        for line, text in _texts(ast.parse(source))
        for flag in _FLAG.findall(re.sub(r"`hf [^`]*`", "", text))
    ]


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if not m.startswith("medsd_jax.cli") and m not in _ON_COMMANDS],
)
def test_no_message_below_the_command_line_speaks_of_flags(module):
    """From a notebook nobody can give them; the message names the thing itself."""
    assert _flags(MODULES[module].read_text()) == []


def test_flags_are_found():
    """In plain strings and in f-strings, but neither in a module's docstring nor in the hub's."""
    source = '''"""Example: sample.py --model M"""
ADVICE = "use another --workdir"
def f(x):
    raise ValueError(f"{x} is too small: give another "
                     "--image_size" f" than {x}; `hf download {x} --local-dir FOLDER` leaves it")
RULE = "a -- b ---- c"
'''
    assert _flags(source) == ["line 2: --workdir", "line 4: --image_size"]


def test_every_command_file_is_listed():
    def is_command(file) -> bool:
        return any(f"\ndef {name}(" in file.read_text() for name in ("add_parser", "run_words"))

    files = {f.stem for f in (PACKAGE / "cli").glob("*.py") if is_command(f)}
    assert files == {re.sub("[- ]", "_", name) for name in COMMANDS}


@pytest.mark.parametrize("file", FILES, ids=_module)
def test_file_has_one_subject(file):
    assert file.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert len(file.read_text().splitlines()) <= MAX_LINES


def test_everything_imports_without_torch_or_tensorflow():
    """What `pip install medsd_jax` brings is enough to import every module."""
    names = sorted(set(MODULES) - {"medsd_jax.__main__"})
    code = (
        "import importlib, importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "def is_absent(name):\n"
        "    return name.split('.')[0] in 'torch diffusers accelerate pytest'.split()\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if is_absent(name):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "importlib.util.find_spec = lambda name, *a: None if is_absent(name) else find(name, *a)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
