"""Which pages of the site are generated, and from what."""

from pathlib import Path

from docs.generate import commands, config_keys, recipes, schemas

CONFIGS = {
    "training": ("Training", "get_config"),
    "classifier": ("Classifier", "get_classifier_config"),
    "downstream_utility": ("Downstream utility", "get_compare_training_config"),
    "projection": ("Textual projection", "get_text_projection_config"),
    "reconstruction": ("Reconstruction", "get_vae_audit_config"),
    "probe": ("Text probe", "get_text_probe_config"),
    "sampling": ("Sampling before an evaluation", "get_sampling_config"),
}
"""Page -> its title, and the factory of the config that it explains."""


def generated(root: Path) -> dict[str, str]:
    """Path below docs/ -> Markdown of every generated page.

    Args:
        root: of the repository.
    """
    reports = sorted((root / "medsd_jax/cli/templates").glob("*.schema.json"))
    return {
        **config_pages(root),
        "reference/commands.md": commands.page(),
        "reference/recipes.md": recipes.page(sorted((root / "configs").glob("*.py"))),
        "reference/reports.md": schemas.page(reports),
    }


def config_pages(root: Path) -> dict[str, str]:
    """Those of the configuration."""
    from configs import base

    comments = config_keys.read_comments([root / "configs/base.py"])
    return {
        f"reference/config/{name}.md": config_keys.page(title, getattr(base, factory), comments)
        for name, (title, factory) in CONFIGS.items()
    }
