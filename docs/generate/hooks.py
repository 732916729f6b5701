"""What mkdocs calls while it builds the site: adds the generated pages, and checks the result.

`mkdocs.yml` names this file under ``hooks``. The generators beside it know nothing of mkdocs.
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from docs.generate import contributing, pages, results  # noqa: E402  the line above makes the import work

_FRAGMENT = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_OUTSIDE = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?(https?:)?//[^>]*>"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the reference."""
    for path, text in pages.generated(ROOT).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts generated parts where a page asks for them."""
    del page, config, files
    numbers = ROOT / "docs" / "experiments" / "results.json"
    rules = ROOT / "CONTRIBUTING.md"
    parts = {
        "adaptations": lambda: results.table(numbers),
        "claims": lambda: results.claims(numbers),
        "house_rules": lambda: contributing.section(rules, "House rules"),
        "proof": lambda: contributing.section(rules, "A change proves its worth"),
        "style": lambda: contributing.section(rules, "How it reads"),
        "floors": lambda: contributing.floors(ROOT),
        "importers": lambda: contributing.importers(ROOT / "pyproject.toml"),
    }
    return _FRAGMENT.sub(lambda result: parts[result[1]](), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuses a page that loads anything from elsewhere: the site works without a network.

    Raises:
        PluginError: such a page.
    """
    del config
    result = _OUTSIDE.search(output)
    if result and "canonical" not in result[0]:
        raise PluginError(f"{page.file.src_uri} loads {result[0]} from outside of the site")
    return output
