"""The pages that are generated: a generator finds what it should, and misses nothing silently."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

import medsd_jax
from docs.generate import commands, config_keys, contributing, pages, recipes, results, schemas
from medsd_jax.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]

SOURCE = '''
def get_config():
    """What a test trains."""
    config = ConfigDict()
    # The title above
    # goes on here.
    config.title = "x"  # and ends behind
    config.data = ConfigDict()  # where images come from
    config.data.path = required(str)  # a folder
    config.data.findings = (
        "effusion",
    )  # what may be seen
    config.data.size = 512  # pixels, a * b
    # fmt: skip
    config.data.silent = 1  # noqa: E501
    return config
'''


def config() -> ConfigDict:
    """What a test trains."""
    made = ConfigDict({"title": "x", "data": {"findings": ("effusion",), "size": 512}})
    made.data.path = config_dict.required_placeholder(str)
    return made


def test_comments_above_and_behind_are_found():
    assert config_keys.source_comments(SOURCE) == {
        "title": "The title above goes on here. and ends behind",
        "data": "where images come from",
        "data.path": "a folder",
        "data.findings": "what may be seen",
        "data.size": "pixels, a * b",
    }


def test_a_key_has_its_default_and_the_source_gives_the_order():
    keys = config_keys.keys_of(config(), [config_keys.source_comments(SOURCE)], "Test")
    assert [(key.name, key.default) for key in keys] == [
        ("title", "'x'"),
        ("data.path", "required"),
        ("data.findings", "('effusion',)"),
        ("data.size", "512"),
    ]


def test_a_key_without_a_comment_is_refused():
    made = config()
    made.data.silent = 1
    comments = [config_keys.source_comments(SOURCE)]
    with pytest.raises(config_keys.MissingCommentError, match=r"^Test: .* data\.silent;"):
        config_keys.keys_of(made, comments, "Test")
    # The file that a section comes from may explain it.
    keys = config_keys.keys_of(made, [*comments, {"data.silent": "from elsewhere"}], "Test")
    assert ("data.silent", "from elsewhere") in [(key.name, key.meaning) for key in keys]


def test_the_page_of_a_config_escapes_what_markdown_would_eat():
    page = config_keys.page("Test", config, [config_keys.source_comments(SOURCE)])
    assert page.startswith("# Test\n\nWhat a test trains.\n")
    assert "## data\n\nWhere images come from\n" in page
    assert "`data.size` = `512`\n:   Pixels, a \\* b\n" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_its_help(command):
    text = commands.help_of(command)
    assert f" {command} [-h]" in text.partition("\n")[0]


def test_a_command_that_prints_no_help_is_refused():
    with pytest.raises(RuntimeError, match="--help printed ''"):
        commands.help_of("fly")


def test_a_schema_lists_every_key(tmp_path):
    schema = {
        "title": "test.json",
        "required": ["n"],
        "properties": {
            "n": {"type": "integer", "minimum": 0, "description": "how_many `a_b`"},
            "by_name": {"type": "object", "additionalProperties": {"$ref": "#/$defs/estimate"}},
            "hashes": {"type": "array", "items": {"$ref": "#/$defs/hash"}},
            "inner": {"type": "object", "properties": {"x": {"enum": ["a", 1]}}},
            "ends": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "null"}]},
            "maybe": {"oneOf": [{"type": "null"}, {"type": ["string", "number"]}]},
        },
        "$defs": {
            "estimate": {"properties": {"value": {"type": "number"}}, "description": "A value."},
            "hash": {"type": "string"},
        },
    }
    (tmp_path / "test.schema.json").write_text(json.dumps(schema))
    page = schemas.page([tmp_path / "test.schema.json"])
    for line in (
        "`n`: integer ≥ 0\n:   how\\_many `a_b`\n",
        "`by_name` (may be absent): name → [estimate](#test-estimate)\n",
        "`hashes` (may be absent): list of string\n",
        '`inner.x` (may be absent): `"a"` or `1`\n',
        "`ends` (may be absent): [number, null]\n",
        "`maybe` (may be absent): null or string or number\n",
        "### estimate { #test-estimate }\n\nA value.\n\n`value` (may be absent): number\n",
    ):
        assert line in page


def test_recipes_are_listed_with_their_headings(tmp_path):
    (tmp_path / "one.py").write_text('"""The one.\n\nCommand:   do it\nExpected:  done\n"""\n')
    (tmp_path / "base.py").write_text('"""Defaults, no recipe."""\n')
    page = recipes.page(sorted(tmp_path.glob("*.py")))
    assert "| [`one`](#one) | The one. |" in page
    assert "```text\nCommand:   do it\nExpected:  done\n```" in page
    assert "base" not in page


def test_the_table_of_adaptations_rounds_as_the_command_does(tmp_path):
    row = {
        "title": "U-Net",
        "fid": {"value": 2.061, "n": 9, "ci95": [0.734, 13.63]},
        "prompt_accuracy": {"value": 0.963, "ci95": [0.925, 0.9842]},
        "ms_ssim": {"value": 0.7031},
        "trained_parameters": 7181348,
    }
    claims = [{"claim": "It is better.", "result": "undecided"}]
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"rows": [row], "claims": claims}))
    assert results.table(file).splitlines()[-1] == (
        "| U-Net | 2.06 (0.73 to 13.63) | 96.3 % (92.5 to 98.4) | 0.703 | 7,181,348 |"
    )
    assert "| It is better. | do not tell: the intervals overlap |" in results.claims(file)


def test_a_section_of_another_page_ends_at_the_next_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## One\na\n\n### Deeper\nb\n\n## Two\nc\n")
    assert contributing.section(page, "One") == "a\n\n### Deeper\nb\n"
    assert contributing.section(page, "Two") == "c\n"
    with pytest.raises(ValueError, match="no heading '## Three'"):
        contributing.section(page, "Three")


def test_the_import_contracts_are_a_table(tmp_path):
    file = tmp_path / "pyproject.toml"
    contract = "[[tool.importlinter.contracts]]\n"
    file.write_text(
        f"{contract}type = 'layers'\nlayers = ['cli', 'models | data', 'files']\n"
        f"{contract}type = 'protected'\nprotected_modules = ['medsd_jax.models']\n"
        f"allowed_importers = ['medsd_jax.interop', 'medsd_jax.training']\n{contract}"
        "type = 'forbidden'\nsource_modules = ['medsd_jax']\n"
    )
    assert contributing.importers(file).splitlines()[2:] == ["| `models` | `interop`, `training` |"]
    for name in ("cli/__init__", "models/__init__", "data/__init__", "files"):
        module = tmp_path / f"medsd_jax/{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f'"""What {name[:3]} does\nin short.\n\nAnd more."""\n')
    assert contributing.floors(tmp_path).splitlines()[2:] == [
        "| `cli` | What cli does in short. |",
        "| `models` | What mod does in short. |",
        "| `data` | What dat does in short. |",
        "| `files` | What fil does in short. |",
    ]
    module.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"files\.py has no docstring"):
        contributing.floors(tmp_path)


def test_every_floor_says_what_it_holds():
    assert "| `models` | U-Net, VAE" in contributing.floors(ROOT)


def test_every_key_of_every_config_is_explained():
    """As `make docs` does; here it costs no site."""
    result = pages.config_pages(ROOT)
    assert set(result) == {f"reference/config/{name}.md" for name in pages.CONFIGS}
    assert (
        "`data.batch_size` = `64`\n:   Images per optimizer step"
        in (result["reference/config/classifier.md"])
    )
    listed = (ROOT / "mkdocs.yml").read_text()
    for path in result:
        assert path in listed, f"mkdocs.yml lists no {path}"


def test_the_python_page_lists_the_face():
    page = pages.python_page()
    assert "::: medsd_jax.load\n" in page and "::: medsd_jax.sample\n" in page
    assert page.count(":::") == len(medsd_jax.__all__)
