"""A CLIP tokenizer for a small vocabulary, trained on captions with the tokenizers library."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from medsd_jax.interop.tokenization import load_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# CLIP's own pre-tokenization: contractions, words, single digits, runs of other signs.
_WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def train_clip_tokenizer(texts: Iterable[str], *, num_merges: int, max_length: int = 77) -> Any:
    """Learns byte-pair merges and returns a transformers CLIPTokenizer.

    The vocabulary is laid out as CLIP's: the 256 bytes, the 256 bytes that end a word, the merges
    in order, start, end. Every text can be encoded, words that were never seen byte by byte.

    Args:
        texts: captions to learn from.
        num_merges: merges at most; fewer where the texts hold no more pairs.
        max_length: tokens per prompt, start and end included.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END, continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Of equally frequent pairs the library merges that of the smaller ids first, and it numbers the
    # letters that end a word in the order of a randomly seeded hash table. Named beforehand, they
    # have the same ids, and equal texts the same merges, in every process.
    endings = [letter + _WORD_END for letter in letters]
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(letters) + num_merges,
        end_of_word_suffix=_WORD_END,
        special_tokens=endings,
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [
        tuple(m) if not isinstance(m, str) else tuple(m.split(" "))
        for m in json.loads(tokenizer.to_str())["model"]["merges"]
    ][:num_merges]
    tokens = [*letters, *endings, *("".join(m) for m in merges), START, END]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        (folder / "vocab.json").write_text(
            json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8"
        )
        lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": max_length,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(folder)


def train_bert_vocabulary(texts: Iterable[str], *, size: int) -> list[str]:
    """Learns the words and word pieces of a small BERT; the special tokens come first.

    Args:
        texts: captions to learn from, lower-cased on the way.
        size: words at most, special tokens and single letters included.
    """
    texts = list(texts)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted(
        {x for text in texts for x in tokenizer.normalizer.normalize_str(text)} - {" "}
    )
    inside = ["##" + letter for letter in letters]  # named beforehand, as the endings above
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*special, *inside],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [*special, *sorted(set(tokenizer.get_vocab()) - set(special))]
