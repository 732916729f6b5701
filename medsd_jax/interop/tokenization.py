"""Tokenizers on disk, and prompts as token ids.

The tokenizer is transformers' own (decision D9), which needs no torch. Its folder is written in
both shapes in use: tokenizer.json for transformers 5, and vocab.json, merges.txt (CLIP) or
vocab.txt (BERT), special_tokens_map.json, added_tokens.json for every release before it.
"""

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.files import write_json

_LOG = logging.getLogger(__name__)

_ENCODED_AT_ONCE = 1024  # bounds the memory that the tokenizer's own objects take
_SHOWN_CUTS = 10  # a caption file may hold thousands of long reports
_UNSTATED_LENGTH = 10**6  # transformers puts 1e30 where no file states a length
_MARKS = 2  # the tokens of start and end that each prompt has
_LOAD_TRACES = ("is_local", "local_files_only", "name_or_path", "backend")


_TRIAL_TEXTS = (
    "AP chest radiograph: small left-sided effusion, 2.5 cm;  no pneumothorax!",
    "Straße, déjà vu, 12 µm and 'don't' <|endoftext|> [SEP] 肺",
)
_VOCABULARY = {"CLIPTokenizer": ("vocab.json", "merges.txt"), "BertTokenizer": ("vocab.txt",)}
"""Tokenizer of transformers -> the files that hold its vocabulary."""


def load_tokenizer(folder: Path, class_name: str = "CLIPTokenizer") -> Any:
    """Reads a tokenizer: vocab.json and merges.txt (BERT: vocab.txt), or tokenizer.json.

    The pad token is special_tokens_map.json's where that file names one: SD 1 pads with
    <|endoftext|>, some copies of SD 2 with "!", and a model knows only the one it was trained with.

    Args:
        folder: the tokenizer folder of a diffusers folder, or the folder of a BERT.
        class_name: "CLIPTokenizer" or "BertTokenizer".

    Returns:
        A transformers tokenizer of that class.

    Raises:
        UserError: files are missing or cannot be read.
    """
    import transformers  # 0.7 s that commands without a model need not wait

    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    needed = _VOCABULARY[class_name]
    if "tokenizer.json" not in names and not set(needed) <= names:
        raise UserError(
            f"{folder}: no tokenizer; expected {' and '.join(needed)} (or tokenizer.json), "
            f"found {', '.join(sorted(names)) or 'nothing'}"
        )
    if "tokenizer.json" not in names:
        for name in needed:
            if not (folder / name).stat().st_size:  # an empty merges.txt would cut into letters
                raise UserError(f"{folder / name} is empty; download or write it again")
    try:
        tokenizer = getattr(transformers, class_name).from_pretrained(
            str(folder), local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions on damaged files
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: the tokenizer cannot be read ({reason}); download or write it again"
        ) from error
    length = tokenizer.model_max_length
    if type(length) not in (int, float) or not length > _MARKS or length % 1:  # also NaN
        raise UserError(
            f"{folder}: the tokenizer's model_max_length = {str(length)[:40]!r} must be a whole "
            f"number above {_MARKS}, such as the text encoder's 77; correct tokenizer_config.json"
        )
    tokenizer.model_max_length = int(length)
    if tokenizer.pad_token is None:
        raise UserError(
            f"{folder}: the tokenizer names no pad_token, which short prompts are filled up with; "
            "correct special_tokens_map.json or tokenizer_config.json"
        )
    try:
        # A vocabulary may lack what unknown words become: told now, not at the first one.
        tokenizer.backend_tokenizer.encode_batch(list(_TRIAL_TEXTS))
    except Exception as error:
        raise UserError(
            f"{folder}: the tokenizer cuts no texts ({' '.join(str(error).split())}); download or "
            "write it again"
        ) from error
    return tokenizer


def check_same_ids(tokenizer: Any, folder: Path) -> None:
    """Checks a tokenizer that was read as one family against the tokenizer.json beside it.

    For folders that name transformers' class of any tokenizer: its rules stand in that file alone.

    Args:
        tokenizer: what `load_tokenizer` read from the folder.
        folder: the tokenizer folder.

    Raises:
        UserError: the two cut the same text into other ids.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        stored = tokenizers.Tokenizer.from_file(str(path))
        stored.no_padding()
        stored.no_truncation()
        expected = [stored.encode(text).ids for text in _TRIAL_TEXTS]
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}); download it again"
        ) from error
    ours = tokenizer.backend_tokenizer  # a call of the tokenizer itself warns of long texts
    ours.no_padding()
    ours.no_truncation()
    if expected != [ours.encode(text).ids for text in _TRIAL_TEXTS]:
        raise UserError(
            f"{path} cuts texts otherwise than {type(tokenizer).__name__} does, so the text "
            "encoder would read other words; take the tokenizer that the model was trained with"
        )


def require_known_ids(tokenizer: Any, vocab_size: int, folder: Path) -> None:
    """Raises UserError where a tokenizer gives ids that its text encoder has no row for.

    They would be read as the last row: jax clamps where torch raises.
    """
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens but the text encoder only "
            f"{vocab_size}; take both from the same model"
        )
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[last] >= vocab_size:
        raise UserError(
            f"{folder}: the tokenizer's token {last[:40]!r} is number {vocabulary[last]}, but the "
            f"text encoder's last one is {vocab_size - 1}; take both from the same model"
        )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer so that today's and older transformers read it alike.

    Args:
        tokenizer: a transformers tokenizer.
        folder: created where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The last call's padding and truncation are stored otherwise, and read back as settings.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(str(folder))
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # No escapes: OpenAI's vocabulary comes out byte for byte as published.
    write = functools.partial(write_json, escape=False)
    write(config_path, {k: v for k, v in config.items() if k not in _LOAD_TRACES})
    special = {
        role: token
        for role, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    write(folder / "special_tokens_map.json", special)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "BPE":
        write(folder / "vocab.json", model["vocab"])
        # tokenizers before 0.20 write a merge as "a b", later ones as ["a", "b"].
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        text = "\n".join(["#version: 0.2", *merges]) + "\n"
        (folder / "merges.txt").write_text(text, encoding="utf-8", newline="\n")
    elif model["type"] == "WordPiece":
        words = sorted(model["vocab"], key=model["vocab"].__getitem__)
        text = "\n".join(words) + "\n"
        (folder / "vocab.txt").write_text(text, encoding="utf-8", newline="\n")
    added = {t: i for t, i in tokenizer.get_added_vocab().items() if t not in model["vocab"]}
    if added:
        write(folder / "added_tokens.json", added)


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> np.ndarray:
    """Turns prompts into token ids, padded to the tokenizer's length.

    A longer prompt is cut; a log line shows what was lost, as a long report loses its end. Each
    different prompt is encoded, and reported, once.

    Args:
        tokenizer: a transformers tokenizer with a stated `model_max_length` S.
        prompts: n texts.

    Returns:
        [n, S] int32 ids in [0, vocabulary size).

    Raises:
        UserError: a prompt is not text, or the tokenizer states no length.
    """
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list of texts, not the one text {prompts!r}")
    prompts = [spelled_out(tokenizer, prompt) for prompt in prompts]
    length = tokenizer.model_max_length
    if length > _UNSTATED_LENGTH:
        raise UserError(
            "the tokenizer states no model_max_length; set it to the text encoder's length, e.g. 77"
        )
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(f"prompt {number} is {prompt!r}, not a text; leave it out or write ''")
    if not prompts:
        return np.zeros((0, length), np.int32)
    first_use: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        first_use.setdefault(prompt, number)
    distinct = list(first_use)
    ids, lost = [], {}
    for start in range(0, len(distinct), _ENCODED_AT_ONCE):
        some = distinct[start : start + _ENCODED_AT_ONCE]
        some_ids, some_lost = _encode(tokenizer, some, length)
        ids.append(some_ids)
        lost |= {first_use[some[row]]: tokens for row, tokens in some_lost.items()}
    _report_cuts(tokenizer, lost, length)
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    return np.concatenate(ids)[[row_of[prompt] for prompt in prompts]]


def spelled_out(tokenizer: Any, prompt: str) -> str:
    """Writes all tokens of each learnt word: "<x>" as "<x> <x>_1 <x>_2" where there are three.

    The word is found as the tokenizer finds it: in capitals or not, where it makes no difference.
    """
    added = tokenizer.get_added_vocab()
    words = {}
    for token in added:
        more = 1
        while f"{token}_{more}" in added:
            more += 1
        words[token] = " ".join([token, *(f"{token}_{i}" for i in range(1, more))])
    if not isinstance(prompt, str) or all(token == spelled for token, spelled in words.items()):
        return prompt
    normalizer = tokenizer.backend_tokenizer.normalizer
    lowers = normalizer is not None and normalizer.normalize_str("A") == "a"
    several = {
        token.lower() if lowers else token: spelled
        for token, spelled in words.items()
        if token != spelled
    }
    # The longest word at each place, as the tokenizer finds them: "bad" is no part of "bad-hands".
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))

    def spell(match: re.Match) -> str:
        return several.get(match[0].lower() if lowers else match[0], match[0])

    return re.sub(pattern, spell, prompt, flags=re.IGNORECASE if lowers else 0)


def _encode(
    tokenizer: Any, prompts: list[str], length: int
) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Ids [n, length] int32, and the ids that did not fit by the prompt's number."""
    encoded = tokenizer(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
    )
    kept: dict[int, list[int]] = {}
    lost: dict[int, list[int]] = {}
    rows = zip(
        encoded["overflow_to_sample_mapping"],
        encoded["input_ids"],
        encoded["special_tokens_mask"],
        strict=True,
    )
    for number, ids, special in rows:  # the rows after a prompt's first are what did not fit
        if number not in kept:
            kept[number] = ids
        else:
            tail = (token for token, mark in zip(ids, special, strict=True) if not mark)
            lost.setdefault(number, []).extend(tail)
    return np.asarray([kept[number] for number in range(len(prompts))], np.int32), lost


def _report_cuts(tokenizer: Any, lost: Mapping[int, list[int]], length: int) -> None:
    for number, ids in list(lost.items())[:_SHOWN_CUTS]:
        _LOG.warning(
            "prompt %d is longer than %d tokens; its last %d were cut: %r",
            number, length, len(ids), tokenizer.decode(ids),
        )  # fmt: skip
    if len(lost) > _SHOWN_CUTS:
        _LOG.warning(
            "%d more prompts are longer than %d tokens and were cut",
            len(lost) - _SHOWN_CUTS, length,
        )  # fmt: skip
