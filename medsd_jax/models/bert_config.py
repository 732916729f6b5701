"""Shapes of a BERT text encoder and of the projection that may sit on top of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from medsd_jax.errors import UserError
from medsd_jax.models.config import check_transformer
from medsd_jax.models.json_config import TRANSFORMERS_NOTES, JsonConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextProjectionConfig(JsonConfig):
    """From an encoder's width to the width that the U-Net attends to.

    Attributes:
        in_features: the encoder's width.
        hidden_features: of the one hidden layer, which ends in an exact GELU; None: no such layer,
            the projection is linear.
        out_features: the context's width.
    """

    in_features: int
    hidden_features: int | None = None
    out_features: int

    _CLASS_NAME = "TextProjection"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertTextConfig(JsonConfig):
    """Shapes of transformers' BertModel, whose field names these are.

    Attributes:
        hidden_dropout_prob: kept for the way back to torch; nothing is dropped here.
        attention_probs_dropout_prob: likewise.
        projection: what stands between the last layer and the U-Net; no key of config.json, as
            transformers has no class for it.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int | None = 0
    initializer_range: float = 0.02
    projection: TextProjectionConfig | None = None

    _CLASS_NAME = "BertModel"
    _MAX: ClassVar[Mapping[str, int]] = {"num_hidden_layers": 200}
    _MAY_BE_ZERO = frozenset({"pad_token_id"})
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "add_cross_attention": (False,),
        "chunk_size_feed_forward": (0,),
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "model_type": ("bert",),
        "position_embedding_type": ("absolute",),
        "pruned_heads": (None, {}),
    }
    # Of heads, pooling variants and training runs: no hidden state depends on them.
    _NOTES = TRANSFORMERS_NOTES | frozenset(
        "_num_labels architectures bos_token_id classifier_dropout directionality eos_token_id "
        "num_labels output_past pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
        "pooler_size_per_head pooler_type".split()
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json") -> Self:
        """Builds the config from a parsed config.json; see `JsonConfig.from_dict`."""
        kind = values.get("model_type", "bert")
        if kind != "bert":
            raise UserError(
                f"{where}: model_type = {kind!r} is not supported; only 'bert' is (RoBERTa and its "
                "like count positions and cut words in other ways)"
            )
        return super().from_dict(values, where)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that transformers reads back to the same shapes."""
        values = super().to_dict()
        del values["_class_name"], values["projection"]
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "torch_dtype": "float32",
            **values,
        }

    def _check(self, where: str) -> None:
        check_transformer(self, where, ("gelu",))
