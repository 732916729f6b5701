"""The adaptation of a run: what the config asks for becomes a pair of functions, and then files."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.adaptation.full import full
from medsd_jax.adaptation.lora import LoraSettings, lora
from medsd_jax.adaptation.textual_inversion import textual_inversion
from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.interop.learned_embeddings import (
    add_placeholder_token,
    token_rows,
    token_table,
    write_embeddings,
)
from medsd_jax.interop.lora_files import write_lora
from medsd_jax.models.stable_diffusion import StableDiffusion


def with_new_word(config: ConfigDict, model: StableDiffusion) -> StableDiffusion:
    """The model with the token that textual inversion shall learn; else the model as it is."""
    settings = config.adaptation
    if config.task != "diffusion" or settings.name != "textual_inversion":
        return model
    return add_placeholder_token(
        model,
        settings.placeholder_token,
        initializer_token=settings.initializer_token,
        num_vectors=settings.num_vectors,
    )


def check_word(config: ConfigDict, texts: Sequence[str]) -> None:
    """Raises UserError where a token shall be learnt that no caption holds."""
    placeholder_token = config.adaptation.placeholder_token
    if placeholder_token is not None and not any(placeholder_token in text for text in texts):
        raise UserError(
            f"adaptation.placeholder_token = {placeholder_token!r} is in no caption: nothing would "
            "be learnt; write it into few_shot.prompt_with and few_shot.prompt_without, or into "
            "the captions"
        )


def make_adaptation(config: ConfigDict, model: StableDiffusion) -> Adaptation:
    """The adaptation of the config, which `check_config` has seen, of this model."""
    settings = config.adaptation
    match settings.name:
        case "lora":
            return lora(
                LoraSettings(tuple(settings.train), settings.lora_rank, settings.lora_alpha)
            )
        case "textual_inversion":
            rows = token_rows(model.tokenizer, settings.placeholder_token, settings.num_vectors)
            return textual_inversion(token_table(model.params), rows)
        case _:
            return full(tuple(settings.train))


def save_adaptation(
    config: ConfigDict, workdir: Path, trainable: Params, trained: StableDiffusion
) -> None:
    """The small files of what was trained, beside the model that has it built in."""
    settings = config.adaptation
    if settings.name == "lora":
        write_lora(workdir / "lora", trainable, settings.lora_alpha)
    elif settings.name == "textual_inversion":
        write_embeddings(workdir, settings.placeholder_token, trained, settings.num_vectors)
