"""Which pages of the site are generated, and from what."""

from pathlib import Path

import medsd_jax
from docs.generate import commands, config_keys, recipes, schemas
from medsd_jax import config

CONFIGS = {
    "training": ("Training", "training", config.training_config),
    "classifier": ("Classifier", "classifier", config.classifier_config),
    "downstream_utility": ("Downstream utility", "utility", config.downstream_utility_config),
    "projection": ("Textual projection", "projection", config.text_projection_config),
    "reconstruction": ("Reconstruction", "vae", config.reconstruction_config),
    "probe": ("Text probe", "probe", config.text_probe_config),
    "sampling": ("Sampling before an evaluation", "sampling", config.sampling_config),
}
"""Page -> its title, the module of medsd_jax/config/ that explains the keys, and the factory."""

SHARED = ("sections", "classifier", "training")
"""Modules that explain the keys which the page's own one leaves as they are."""


def generated(root: Path) -> dict[str, str]:
    """Path below docs/ -> Markdown of every generated page.

    Args:
        root: of the repository.
    """
    reports = sorted((root / "medsd_jax/reports/schemas").glob("*.json"))
    return {
        **config_pages(root),
        "reference/commands.md": commands.page(),
        "reference/python.md": python_page(),
        "reference/recipes.md": recipes.page(sorted((root / "configs").glob("*.py"))),
        "reference/reports.md": schemas.page(reports),
    }


def python_page() -> str:
    """What `import medsd_jax` offers, for mkdocstrings to fill in: functions, then classes."""
    names = sorted(medsd_jax.__all__, key=lambda name: (name[0].isupper(), name))
    text = [
        "# Python",
        "",
        "`import medsd_jax` is quick: what it offers is imported when it is first used.",
        "",
        *(f"::: medsd_jax.{name}\n" for name in names),
    ]
    return "\n".join(text)


def config_pages(root: Path) -> dict[str, str]:
    """Those of the configuration."""
    folder = root / "medsd_jax" / "config"
    pages = {}
    for name, (title, module, factory) in CONFIGS.items():
        modules = dict.fromkeys((module, *SHARED))
        comments = config_keys.read_comments(folder / f"{one}.py" for one in modules)
        pages[f"reference/config/{name}.md"] = config_keys.page(title, factory, comments)
    return pages
