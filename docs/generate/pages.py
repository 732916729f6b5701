"""Which pages of the site are generated, and from what."""

from pathlib import Path

from docs.generate import commands, config_keys, recipes, schemas

CONFIGS = {
    "training": ("Training", "training_config"),
    "classifier": ("Classifier", "classifier_config"),
    "downstream_utility": ("Downstream utility", "downstream_utility_config"),
    "projection": ("Textual projection", "text_projection_config"),
    "reconstruction": ("Reconstruction", "reconstruction_config"),
    "probe": ("Text probe", "text_probe_config"),
    "sampling": ("Sampling before an evaluation", "sampling_config"),
}
"""Page -> its title, and the factory of the config that it explains."""


def generated(root: Path) -> dict[str, str]:
    """Path below docs/ -> Markdown of every generated page.

    Args:
        root: of the repository.
    """
    reports = sorted((root / "medsd_jax/reports/schemas").glob("*.json"))
    return {
        **config_pages(root),
        "reference/commands.md": commands.page(),
        "reference/recipes.md": recipes.page(sorted((root / "configs").glob("*.py"))),
        "reference/reports.md": schemas.page(reports),
    }


def config_pages(root: Path) -> dict[str, str]:
    """Those of the configuration."""
    import medsd_jax.config

    comments = config_keys.read_comments(sorted((root / "medsd_jax/config").glob("*.py")))
    return {
        f"reference/config/{name}.md": config_keys.page(
            title, getattr(medsd_jax.config, factory), comments
        )
        for name, (title, factory) in CONFIGS.items()
    }
