"""Which files of a folder are a component's weights, told from their names alone.

Names, with `stem` "diffusion_pytorch_model" (U-Net, VAE) or "model" (text encoder):

    stem.safetensors                         stem.fp16.safetensors
    stem.safetensors.index.json              stem.safetensors.index.fp16.json
    stem-00001-of-00002.safetensors          stem-00001-of-00002.fp16.safetensors

and, where there is none of these, a former Flax model's, whose stems are in `FLAX_STEMS`:

    flax_stem.msgpack                        flax_stem.msgpack.index.json

Nothing else is opened: other formats are refused by name, with the reason and the way out.
"""

import itertools
import logging
import re
from collections.abc import Collection, Mapping

from medsd_jax.errors import UserError

_LOG = logging.getLogger(__name__)

WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Component -> the stem of its weight files."""

FLAX_STEMS = {"diffusion_pytorch_model": "diffusion_flax_model", "model": "flax_model"}
"""torch's stem -> that of the former Flax models; a table, since the two were named apart."""

PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
"""Suffixes of files that torch pickled."""


def choose_weights(
    names: Collection[str], stem: str, *, variant: str | None = None, where: str
) -> str:
    """Picks the weight file, or the index of its shards, among a folder's file names.

    Without a variant the plain file is preferred; then the fp16 file; then that of a former Flax
    model. A variant that this folder lacks gives way to them: published models have variants of
    single parts. `require_variant` asks whether any part has it.

    Args:
        names: the names of the files in the component's folder.
        stem: see `WEIGHT_STEMS`.
        variant: None, or the name of a variant such as "fp16" or "non_ema".
        where: the folder's name, for the error.

    Returns:
        One of `names`.

    Raises:
        UserError: there is no such file; says which other files are there and what to do.
    """
    spelt = [_spellings(stem, one) for one in dict.fromkeys((variant, None, "fp16"))]
    for candidate in (*itertools.chain(*spelt), *_flax_spellings(stem)):
        if candidate in names:
            return candidate
    raise UserError(f"{where}: {_why_no_weights(names, stem)}")


def require_variant(parts: Mapping[str, Collection[str]], variant: str, where: str) -> None:
    """Checks that a variant is there at all; logs which parts have it and which are read plain.

    Args:
        parts: component -> the names of the files in its folder, of all that are read.
        variant: such as "fp16" or "non_ema".
        where: the model's name, for the error.

    Raises:
        UserError: no component has it.
    """
    stems = {part: WEIGHT_STEMS.get(part, "model") for part in parts}
    having = [
        part for part, names in parts.items() if set(_spellings(stems[part], variant)) & set(names)
    ]
    if having:
        if others := [part for part in parts if part not in having]:
            _LOG.warning(
                "%s: only %s has the variant %r; %s: the usual files are read",
                where, " and ".join(having), variant, " and ".join(others),
            )  # fmt: skip
        return
    pickled = sorted(
        f"{part}/{name}".lstrip("/") for part, names in parts.items() for name in names
        if f".{variant}." in name and name.endswith(PICKLED)
    )  # fmt: skip
    if pickled:
        raise UserError(f"{where}: the variant {variant!r} is there as {_pickle_reason(pickled)}")
    there = sorted({v for part, names in parts.items() for v in _variants(names, stems[part])})
    known = f"there: {', '.join(there)}" if there else "there is none"
    raise UserError(
        f"{where}: no {variant!r} variant of the weights ({known}); name no variant for the "
        "plain files"
    )


def shard_files(names: Collection[str], stem: str, chosen: str) -> list[str]:
    """The shards that belong to what `choose_weights` chose among `names`; none where it is whole.

    For a listing of files that are not here yet: it goes by the names, not by the index.
    """
    if not chosen.endswith(".json"):
        return []
    # "model-00001-of-00002.safetensors"; of a variant, ".fp16" stands in one of two places.
    suffix = "safetensors" if ".safetensors" in chosen else "msgpack"
    stem = FLAX_STEMS[stem] if suffix == "msgpack" else stem
    mark = re.sub(rf"\.({suffix}|index|json)\b", "", chosen.removeprefix(stem))
    shards = [f"{stem}-N-of-N{mark}.{suffix}", f"{stem}{mark}-N-of-N.{suffix}"]
    return [name for name in sorted(names) if re.sub(r"\d{5}", "N", name) in shards]


def _flax_spellings(stem: str) -> list[str]:
    flax = FLAX_STEMS.get(stem, stem)
    return [f"{flax}.msgpack", f"{flax}.msgpack.index.json"]


def _spellings(stem: str, variant: str | None = None) -> list[str]:
    if variant is None:
        return [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    return [
        f"{stem}.{variant}.safetensors",
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.{variant}.safetensors.index.json",
    ]


def _variants(names: Collection[str], stem: str) -> list[str]:
    """The variants whose weights lie among these names."""
    marks = {
        mark
        for name in names
        for mark in re.findall(
            rf"^{re.escape(stem)}\.([\w-]+)\.safetensors(?:\.index\.json)?$", name
        )
        + re.findall(rf"^{re.escape(stem)}\.safetensors\.index\.([\w-]+)\.json$", name)
    }
    return sorted(marks)


def _why_no_weights(names: Collection[str], stem: str) -> str:
    if variants := _variants(names, stem):
        files = sorted(name for v in variants for name in _spellings(stem, v) if name in names)
        return (
            f"no {stem}.safetensors, but the variant {' or '.join(map(repr, variants))} "
            f"({', '.join(files)}); read it as the variant {variants[0]!r} (in a "
            "recipe: model.variant), or rename the file"
        )
    if pickled := sorted(name for name in names if name.endswith(PICKLED)):
        return f"only {_pickle_reason(pickled)}"
    if flax := sorted(name for name in names if name.endswith(".msgpack")):
        return (
            f"only weights of the former Flax models by another name ({', '.join(flax)}); rename "
            f"the file to {_flax_spellings(stem)[0]} if they are this part's"
        )
    if other := sorted(name for name in names if name.endswith(".safetensors")):
        return f"no {stem}.safetensors, but {', '.join(other)}; rename the file that you mean"
    return f"no weights; expected {stem}.safetensors, found {', '.join(sorted(names)) or 'nothing'}"


def _pickle_reason(pickled: Collection[str]) -> str:
    return (
        f"pickled weights ({', '.join(pickled)}): opening a pickle can run any code, so "
        "it is not read; where torch is installed, load the model with the library that wrote "
        "it (a pipeline with diffusers, an encoder with transformers) and write it with "
        "its save_pretrained(FOLDER), then give that FOLDER"
    )
