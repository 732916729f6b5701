"""Strict reading and writing of config.json.

A key is either a field of the dataclass, or it must hold the one value that this code implements
(``_FIXED``), or it is a note that changes no computation (``_NOTES``). Anything else is an error:
a config value that is ignored is a model that is wrong without saying so.

A value may be spelt as the torch libraries also read it: a list of equal values, one for each level
of a U-Net, is that value; two equal sides are one; null is false, and of a side, what is not said.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from medsd_jax.errors import UserError

# The second line is what diffusers' EMAModel leaves in the config of the weights it saves.
NOTES = frozenset(
    "_class_name _diffusers_version _name_or_path "
    "decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup".split()
)
TRANSFORMERS_NOTES = frozenset(
    "_name_or_path transformers_version torch_dtype dtype return_dict output_hidden_states "
    "output_attentions id2label label2id problem_type use_cache torchscript attn_implementation "
    "_attn_implementation_autoset _commit_hash cross_attention_hidden_size finetuning_task "
    "gradient_checkpointing prefix task_specific_params tf_legacy_loss tie_encoder_decoder "
    "tie_word_embeddings tokenizer_class use_bfloat16 "
    # Of generation: releases up to 4.3x wrote them into every nested config.
    "bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty "
    "forced_bos_token_id forced_eos_token_id length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores "
    "remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id "
    "suppress_tokens temperature top_k top_p typical_p".split()
)
"""What transformers writes for every model and what no encoding depends on."""


_MAX = 10**7  # entries of one axis: a hundred times the largest vocabulary of a text encoder
_MAX_SHOWN = 200  # characters of a value


def _listed(values) -> tuple:
    return tuple(values) if isinstance(values, (list, tuple)) else values


def _entries(value: Any) -> tuple:
    value = _listed(value)
    return value if isinstance(value, tuple) else (value,)


def _shown(value: Any) -> str:
    """The value for a message of one line; a file may hold anything."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the annotated type. A bool is no int here, an int is a float."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    return type(value) in ((int, float) if hint is float else (hint,))


class JsonConfig:
    """Strict reading and writing of one component's config.json."""

    _CLASS_NAME = ""
    _FIXED: ClassVar[Mapping[str, tuple]] = {}
    _NOTES = NOTES
    _MAY_BE_ZERO: frozenset[str] = frozenset()
    _ABOVE_ZERO: frozenset[str] = frozenset()
    _MAX: ClassVar[Mapping[str, int]] = {}
    # Keys that diffusers takes as one value or as a list with one for each of block_out_channels.
    _ONE_A_LEVEL: frozenset[str] = frozenset()
    _SIDES: frozenset[str] = frozenset()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json") -> Self:
        """Builds the config from a parsed config.json.

        Args:
            values: the JSON object.
            where: the file's name, for error messages.

        Raises:
            UserError: a key is unknown, or its value is not implemented, or no model can have it.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        hints = get_type_hints(cls)
        levels = values.get("block_out_channels", getattr(cls, "block_out_channels", ()))
        chosen = {}
        for key, given in values.items():
            given = _listed(given)
            value = cls._as_one_value(key, given, len(_entries(levels)))
            if key in fields:
                if value is None and key in cls._SIDES:
                    continue
                value = False if value is None and hints[key] is bool else value
                if why := cls._problem(key, value, hints[key]):
                    raise UserError(f"{where}: {key} = {_shown(given)} is not supported ({why})")
                chosen[key] = value
            elif key in cls._FIXED:
                allowed = cls._FIXED[key]
                if value not in allowed and not (
                    value is None and any(one is False for one in allowed)
                ):
                    only = " or ".join(repr(v) for v in allowed)
                    raise UserError(
                        f"{where}: {key} = {_shown(given)} is not supported (only {only})"
                    )
            elif key not in cls._NOTES and key[:1] != "_":  # the libraries' own marks
                raise UserError(
                    f"{where}: unknown key {_shown(key)} (value {_shown(given)}) for "
                    f"{cls._CLASS_NAME}"
                )
        missing = [
            name
            for name, f in fields.items()
            if f.default is dataclasses.MISSING and name not in chosen
        ]
        if missing:
            raise UserError(f"{where}: {cls._CLASS_NAME} needs {', '.join(missing)}")
        config = cls(**chosen)
        config._check(where)
        return config

    @classmethod
    def _as_one_value(cls, key: str, value: Any, levels: int) -> Any:
        """A list of equal entries as the value that it repeats; what is none, as it is."""
        count = levels if key in cls._ONE_A_LEVEL else 2 if key in cls._SIDES else 0
        if not isinstance(value, tuple) or not value or len(value) != count:
            return value
        first = value[0]
        same = all(type(one) is type(first) and one == first for one in value)
        return first if same else value

    @classmethod
    def _problem(cls, key: str, value: Any, hint: Any) -> str:
        """What is wrong with the value of a field, or nothing."""
        if not _fits(value, hint):
            if isinstance(value, tuple) and key in cls._ONE_A_LEVEL:
                return "expected one value for all levels"
            if isinstance(value, tuple) and key in cls._SIDES:
                return "expected int, the side of a square"
            return f"expected {hint.__name__ if isinstance(hint, type) else hint}"
        if hint is float:
            # Not finite, or not in float32, is neither: a comparison with NaN is false.
            if key in cls._ABOVE_ZERO and not 1e-30 <= value <= 1e30:
                return "expected a positive number"
            return "" if 0 <= value <= 1e30 else "expected a number of at least 0"
        for number in _entries(value):
            if type(number) is int and number < 1 and key not in cls._MAY_BE_ZERO:
                return "at least 1"
            if type(number) is int and number > cls._MAX.get(key, _MAX):
                return f"at most {cls._MAX.get(key, _MAX)}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that diffusers or transformers reads back to the same shapes."""
        values = {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }
        return {"_class_name": self._CLASS_NAME, **values}

    def _check(self, where: str) -> None:
        """Raises UserError where fields contradict each other."""
