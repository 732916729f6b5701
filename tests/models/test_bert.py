"""BERT against transformers' BertModel: names, hidden states of every layer, masks, gradients."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.interop.torch_layout import from_torch, to_torch
from medsd_jax.models.bert import BertModel
from medsd_jax.models.bert_config import BertTextConfig, TextProjectionConfig
from medsd_jax.models.params import abstract, bind
from medsd_jax.models.text_encoder import context_width, text_encoder_module
from tests.tiny import networks

TINY = BertTextConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=20,
)
BASE = BertTextConfig()

# Float32 sums in another order: 4e-7 was measured at the tiny size and 7e-7 at full size. An
# approximate GELU gives 1e-4.
TOLERANCE = 1e-5


def torch_model(config: BertTextConfig):
    import torch
    from transformers import BertConfig
    from transformers import BertModel as TorchBertModel

    torch.manual_seed(0)
    values = {**config.to_dict(), "attn_implementation": "eager"}
    return TorchBertModel(BertConfig(**values)).eval()


@functools.cache
def with_torch_weights(config: BertTextConfig):
    """torch's model, and ours with the same weights, norms and biases disturbed."""
    import torch

    module = torch_model(config)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    graph, like = abstract(functools.partial(BertModel, config))
    tensors = {name: x.numpy() for name, x in module.state_dict().items()}
    weights = from_torch(tensors, like, "torch")
    return module, graph, {name: jax.device_put(np.array(x)) for name, x in weights.items()}


def prompts(config: BertTextConfig, tokens: int):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, config.vocab_size, (3, tokens), np.int32)
    mask = np.arange(tokens)[None] < np.array([[tokens], [tokens - 4], [2]])
    return ids, mask.astype(np.int32)


def largest(ours, theirs) -> float:
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.torch
@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        pytest.param(TINY, 12, id="tiny"),
        pytest.param(BASE, 77, id="base", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_every_layer_and_the_pooler_equal_transformers(config, tokens, masked):
    import torch

    module, graph, weights = with_torch_weights(config)
    ids, mask = prompts(config, tokens)
    with torch.inference_mode():
        theirs = module(
            torch.from_numpy(ids).long(),
            # With no mask at all, transformers sees every token.
            attention_mask=torch.from_numpy(mask).long() if masked else None,
            output_hidden_states=True,
        )
    run = jax.jit(lambda w, *args: bind(graph, w).outputs(*args))
    ours = run(weights, ids, mask) if masked else run(weights, ids)
    assert len(ours.hidden_states) == config.num_hidden_layers + 1
    for number, state in enumerate(theirs.hidden_states):
        assert largest(ours.hidden_states[number], state) <= TOLERANCE, number
    assert largest(ours.last_hidden_state, theirs.last_hidden_state) <= TOLERANCE
    assert largest(ours.pooler_output, theirs.pooler_output) <= TOLERANCE
    call = jax.jit(lambda w, *args: bind(graph, w)(*args))
    again = call(weights, ids, mask) if masked else call(weights, ids)
    np.testing.assert_allclose(again, ours.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.torch
def test_a_mask_changes_what_padded_prompts_give():
    _, graph, weights = with_torch_weights(TINY)
    ids, mask = prompts(TINY, 12)
    bert = bind(graph, weights)
    with_mask, without = bert(jnp.asarray(ids), jnp.asarray(mask)), bert(jnp.asarray(ids))
    np.testing.assert_allclose(with_mask[0], without[0], rtol=0, atol=1e-5)  # nothing is masked
    assert np.abs(with_mask[2] - without[2]).max() > 0.01


@pytest.mark.torch
@pytest.mark.parametrize("config", [TINY, BASE], ids=["tiny", "base"])
def test_names_and_shapes_equal_transformers(config):
    import torch

    with torch.device("meta"):
        theirs = {k: tuple(x.shape) for k, x in torch_model(config).state_dict().items()}
    _, like = abstract(functools.partial(BertModel, config))
    views = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in like.items()}
    assert {name: x.shape for name, x in to_torch(views).items()} == theirs
    if config is BASE:
        # bert-base-uncased's 109,482,240 weights, as its model card counts them.
        assert sum(math.prod(x.shape) for x in like.values()) == 109_482_240


@pytest.mark.torch
def test_norms_have_the_configs_epsilon():
    """1e-12 beside 1e-5 hides below any tolerance while variances are near 1."""
    from flax import nnx

    graph, like = abstract(functools.partial(BertModel, TINY))
    norms = [m for _, m in nnx.iter_modules(bind(graph, like)) if isinstance(m, nnx.LayerNorm)]
    assert len(norms) == 2 * TINY.num_hidden_layers + 1
    assert {m.epsilon for m in norms} == {1e-12}


@pytest.mark.torch
@pytest.mark.parametrize("hidden", [None, 24], ids=["linear", "mlp"])
def test_projection_is_torchs_sequential(hidden):
    import torch

    projection = TextProjectionConfig(in_features=32, hidden_features=hidden, out_features=20)
    config = dataclasses.replace(TINY, projection=projection)
    assert context_width(TINY) == 32 and context_width(config) == 20
    module, _, weights = with_torch_weights(TINY)
    graph, like = abstract(text_encoder_module(config))
    extra = {k: x for k, x in like.items() if k not in weights}
    assert set(extra) == {
        f"projection.{n}.{leaf}"
        for n in ((0,) if hidden is None else (0, 2))
        for leaf in ("kernel", "bias")
    }
    rng = np.random.default_rng(0)
    drawn = {k: rng.standard_normal(x.shape, np.float32) for k, x in extra.items()}
    layers = [torch.nn.Linear(32, 20)]
    if hidden is not None:
        layers = [torch.nn.Linear(32, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, 20)]
    sequential = torch.nn.Sequential(*layers)
    sequential.load_state_dict(
        {
            k.removeprefix("projection."): torch.from_numpy(np.ascontiguousarray(x))
            for k, x in to_torch(drawn).items()
        }
    )
    ids, _ = prompts(TINY, 12)
    with torch.inference_mode():
        theirs = sequential(module(torch.from_numpy(ids).long()).last_hidden_state)
    ours = bind(graph, {**weights, **drawn})(jnp.asarray(ids))
    assert largest(ours, theirs) <= TOLERANCE


@pytest.mark.torch
@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "mask"])
def test_gradients_equal_torch_autograd(masked):
    """Of a weighted sum of the last hidden state, for every weight; the pooler gets none."""
    import torch

    module, graph, weights = with_torch_weights(TINY)
    ids, mask = prompts(TINY, 12)
    weighting = np.random.default_rng(5).standard_normal((3, 12, 32), np.float32)
    module.zero_grad()
    kwargs = {"attention_mask": torch.from_numpy(mask).long()} if masked else {}
    out = module(torch.from_numpy(ids).long(), **kwargs).last_hidden_state
    (out * torch.from_numpy(weighting)).sum().backward()
    theirs = {k: x.grad for k, x in module.named_parameters()}
    args = (jnp.asarray(mask),) if masked else ()

    def loss(weights):
        return jnp.sum(bind(graph, weights)(jnp.asarray(ids), *args) * weighting)

    ours = to_torch(jax.jit(jax.grad(loss))(weights))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        if theirs[name] is None:
            assert name.startswith("pooler.") and not x.any()
            continue
        want = theirs[name].numpy().copy()
        if name == "embeddings.word_embeddings.weight":
            # torch's padding_idx gives [PAD]'s row no gradient; without a mask padding is text.
            want[0] = x[0]
        if name.endswith("key.bias"):
            # The softmax does not see what all scores have in common: zero, but for rounding.
            assert max(np.abs(x).max(), np.abs(want).max()) < 1e-3
            continue
        assert np.abs(x - want).max() <= TOLERANCE * np.abs(want).max(), name


def test_bfloat16_gives_float32_near_it():
    graph, like = abstract(text_encoder_module(TINY))
    half, _ = abstract(text_encoder_module(TINY, dtype=jnp.bfloat16))
    rng = np.random.default_rng(0)
    weights = {k: jnp.asarray(0.2 * rng.standard_normal(x.shape)) for k, x in like.items()}
    ids = jnp.asarray(prompts(TINY, 12)[0])
    one, two = bind(graph, weights)(ids), bind(half, weights)(ids)
    assert two.dtype == jnp.float32 and not np.array_equal(one, two)
    assert np.abs(one - two).max() <= 0.05 * np.abs(one).max()  # 8 bits a product, three layers


def test_prompts_beyond_the_positions_are_refused():
    graph, like = abstract(text_encoder_module(TINY))
    ids = jax.ShapeDtypeStruct((1, 21), jnp.int32)
    with pytest.raises(UserError, match="prompts of 21 tokens: this text encoder knows 20"):
        jax.eval_shape(lambda w, x: bind(graph, w)(x), like, ids)


@pytest.mark.torch
def test_config_of_todays_transformers_is_read_and_written():
    from transformers import BertConfig

    values = BertConfig(hidden_size=96, num_hidden_layers=2).to_dict()
    config = BertTextConfig.from_dict(values)
    assert (config.hidden_size, config.num_hidden_layers) == (96, 2)
    assert BertTextConfig.from_dict(config.to_dict()) == config
    assert BertConfig(**config.to_dict()).hidden_size == 96
    assert networks.CLIP_SD1.to_dict()["model_type"] != config.to_dict()["model_type"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "roberta"}, r"'roberta' is not supported; only 'bert' is \(RoBERTa"),
        ({"model_type": "distilbert"}, "'distilbert' is not supported"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new' is not supported"),
        ({"is_decoder": True}, "is_decoder = True is not supported"),
        ({"embedding_size": 128}, "unknown key 'embedding_size'"),
        ({"num_attention_heads": 5}, "5 does not divide hidden_size = 32"),
        ({"vocab_size": "many"}, "vocab_size = 'many'"),
        ({"projection": {"out_features": 3}}, "projection = "),
    ],
)
def test_what_is_not_implemented_is_refused(changes, why):
    with pytest.raises(UserError, match=why):
        BertTextConfig.from_dict({**TINY.to_dict(), **changes}, "X/config.json")


def test_configs_of_2019_have_no_model_type():
    values = TINY.to_dict()
    for name in ("model_type", "architectures", "torch_dtype", "pad_token_id"):
        del values[name]
    assert BertTextConfig.from_dict(values) == TINY
