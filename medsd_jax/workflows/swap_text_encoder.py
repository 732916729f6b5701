"""``python -m medsd_jax swap-text-encoder``: a BERT in the place of a model's text encoder."""

from pathlib import Path
from typing import Any


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
        settings: of `models.text_encoder_swap.swap_text_encoder`.

    Raises:
        UserError: one of them cannot be read, they do not fit, or `output` cannot be written.
    """
    from medsd_jax.interop.bert_dir import load_bert
    from medsd_jax.interop.pipeline_dir import check_writable
    from medsd_jax.models.text_encoder_swap import swap_text_encoder
    from medsd_jax.workflows.models import load, save

    check_writable(output)
    bert = load_bert(encoder)
    swapped = swap_text_encoder(load(model, variant=variant), *bert, **settings)
    save(swapped, output)
