"""A model folder whose text encoder is a BERT."""

from pathlib import Path
from typing import Any

from medsd_jax.interop.diffusers_folder import check_writable
from medsd_jax.workflows.models import load, save, swap_text_encoder


def write_swapped(
    model: str,
    encoder: str,
    output: Path,
    *,
    variant: str | None = None,
    **settings: Any,
) -> None:
    """Writes `model` with a BERT in the place of its text encoder.

    Args:
        model: diffusers folder, hub id, or training workdir.
        encoder: folder or hub id of a BERT.
        output: the folder to write.
        variant: of the model's weight files.
        settings: of `medsd_jax.swap_text_encoder`.

    Raises:
        UserError: one of them cannot be read, they do not fit, or `output` cannot be written.
    """
    check_writable(output)
    save(swap_text_encoder(load(model, variant=variant), encoder, **settings), output)
