"""Our networks against the stored outputs of the references, with the same random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medsd_jax.errors import UserError
from medsd_jax.interop.torch_layout import from_torch, to_torch
from medsd_jax.models.params import abstract, bind
from medsd_jax.vision import inception
from medsd_jax.vision.densenet import DenseNet, DenseNetConfig, num_groups, random_params
from medsd_jax.vision.inception import InceptionV3
from medsd_jax.vision.layers import avg_pool
from tests.vision import cases

# Float32 sums in another order through up to 120 convolutions: 1e-7 to 2e-6 of the largest value
# was measured, in gradients too. Each wrong pool of InceptionV3 gives 1e4 times as much: see below.
TOLERANCE = 1e-5


def _avg_pool_over_padding(x):
    return avg_pool(x, 3, 1, 1)


@pytest.fixture(scope="module")
def golden():
    return cases.golden()


@functools.cache
def _network(case: str):
    """Structure and weights of cases.py in our layout."""
    make, _ = cases.CASES[case]
    graphdef, like = abstract(make)
    weights = from_torch(cases.draw_weights(cases.used_shapes(case)), like, "cases.py")
    return graphdef, {name: jax.device_put(np.array(x)) for name, x in weights.items()}


@functools.cache
def _outputs(case: str) -> tuple[np.ndarray, np.ndarray]:
    graphdef, weights = _network(case)

    @jax.jit
    def run(weights, images):
        module = bind(graphdef, weights)
        features = module.pooled_features(images)
        return features, module.classify(features)

    features, logits = run(weights, jnp.asarray(cases.images(case)))
    return np.asarray(features), np.asarray(logits)


def _error(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    assert np.asarray(ours).dtype == np.float32
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", cases.CASES)
def test_equals_reference(case, golden):
    features, logits = _outputs(case)
    errors = _error(features, golden[f"{case}/features"]), _error(logits, golden[f"{case}/logits"])
    print(f"{case}: features {errors[0]:.1e}, logits {errors[1]:.1e}")
    assert max(errors) <= TOLERANCE


@pytest.mark.parametrize("case", cases.CASES)
def test_references_tell_images_apart(case, golden):
    """Random weights could make every image look alike, and agreement would then mean nothing."""
    for kind in ("features", "logits"):
        first, second = golden[f"{case}/{kind}"]
        assert np.abs(first - second).max() > 0.01 * np.abs(first).max()


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("InceptionA", _avg_pool_over_padding),
        ("InceptionC", _avg_pool_over_padding),
        ("InceptionE", _avg_pool_over_padding),
        ("Mixed_7c", inception._avg_pool),
    ],
)
def test_a_wrong_pool_of_inception_is_far_beyond_the_tolerance(block, wrong, golden):
    """FID's network with the pools of torchvision's, one kind of block at a time."""
    graphdef, weights = _network("inception_fid")
    images = jnp.asarray(cases.images("inception_fid"))

    @jax.jit
    def run(weights, images):
        module = bind(graphdef, weights)
        for path, layer in nnx.iter_modules(module):
            if block in (type(layer).__name__, *path) and hasattr(layer, "pool"):
                layer.pool = wrong
        return module.pooled_features(images)

    features = np.asarray(run(weights, images))
    assert _error(features, golden["inception_fid/features"]) > 0.01


@pytest.mark.parametrize("case", cases.CASES)
def test_names_and_shapes_are_the_reference_s(case):
    make, _ = cases.CASES[case]
    _, like = abstract(make)
    # A broadcast scalar has every shape and holds one number.
    views = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in like.items()}
    ours = {name: x.shape for name, x in to_torch(views).items()}
    assert ours == cases.used_shapes(case)
    assert {x.dtype.name for x in like.values()} == {"float32"}


def test_gradients_equal_torch_autograd(golden):
    """Of a weighted sum of the scores, for every weight of the network with group norm."""
    case = cases.GRADIENT_CASE
    graphdef, weights = _network(case)
    weighting = cases.weighting(golden[f"{case}/logits"])

    def loss(weights, images):
        return jnp.sum(bind(graphdef, weights)(images) * weighting)

    grads = jax.jit(jax.grad(loss))(weights, jnp.asarray(cases.images(case)))
    ours = to_torch(grads)
    start = f"{case}/gradient/"
    theirs = {name.removeprefix(start): x for name, x in golden.items() if name.startswith(start)}
    assert ours.keys() == theirs.keys()
    errors = {name: _error(ours[name], theirs[name]) for name in ours}
    worst = max(errors, key=errors.get)
    print(f"worst gradient {worst}: {errors[worst]:.1e}")
    assert errors[worst] <= TOLERANCE, worst


def test_no_gradient_reaches_frozen_statistics():
    graphdef, weights = _network("xrv_tiny")
    images = jnp.asarray(cases.images("xrv_tiny")) / 1024
    grads = jax.jit(jax.grad(lambda w: jnp.sum(bind(graphdef, w)(images) ** 2)))(weights)
    for name, grad in grads.items():
        assert np.any(grad) != name.endswith((".mean", ".var")), name


def test_classifier_of_our_own_starts_sound():
    """Random weights: scores of an image do not depend on its batch, and every gradient is finite.

    Also for images without any contrast, whose group variance is zero.
    """
    config = DenseNetConfig(
        growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=3, in_channels=1
    )
    graphdef, _ = abstract(functools.partial(DenseNet, config))
    weights = jax.device_put(random_params(config, np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (3, 32, 32, 1)).astype(np.float32)
    images[2] = 0

    @jax.jit
    def scores(weights, images):
        return bind(graphdef, weights)(images)

    together = scores(weights, images)
    # The order of float32 sums may depend on the batch size.
    for i in range(3):
        np.testing.assert_allclose(scores(weights, images[i : i + 1])[0], together[i], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2

    grads = jax.grad(lambda w: jnp.sum(scores(w, images) ** 2))(weights)
    assert all(np.isfinite(x).all() for x in grads.values())
    assert all(np.any(x) for name, x in grads.items() if name.endswith(".kernel"))


def test_random_densenet121_is_neither_dead_nor_exploding():
    """One forward pass at full size; also the number of weights of the paper's network."""
    config = DenseNetConfig(norm="group")
    weights = random_params(config, np.random.default_rng(0))
    assert sum(x.size for x in weights.values()) == 7_978_856  # torchvision's densenet121
    graphdef, like = abstract(functools.partial(DenseNet, config))
    assert {n: x.shape for n, x in weights.items()} == {n: x.shape for n, x in like.items()}
    images = np.random.default_rng(1).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    features = jax.jit(lambda w, x: bind(graphdef, w).pooled_features(x))(weights, images)
    assert features.shape == (1, config.feature_size) == (1, 1024)
    assert 0.1 < float(features.std()) < 10


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 16), (128, 32), (1024, 32), (12, 2), (36, 4), (7, 1), (2, 1)]
)
def test_groups_divide_and_have_four_channels(channels, groups):
    assert num_groups(channels) == groups


def test_computes_in_the_given_dtype_and_returns_float32():
    make, _ = cases.CASES["xrv_tiny"]
    graphdef, _ = abstract(functools.partial(make, dtype=jnp.bfloat16))
    _, weights = _network("xrv_tiny")
    run = jax.jit(lambda w, x: bind(graphdef, w)(x))
    images = jnp.asarray(cases.images("xrv_tiny"))
    assert "bf16" in str(jax.make_jaxpr(run)(weights, images))
    error = _error(np.asarray(run(weights, images)), _outputs("xrv_tiny")[1])
    assert 1e-4 < error < 0.05  # bfloat16 keeps 8 bits


def test_feature_networks_ask_for_full_float32_products():
    """Otherwise a TPU multiplies in bfloat16 and a GPU in TF32, and distances change with them."""
    for case in ("inception_fid", "xrv_tiny"):
        graphdef, weights = _network(case)
        jaxpr = str(
            jax.make_jaxpr(lambda w, x, g=graphdef: bind(g, w)(x))(weights, cases.images(case))
        )
        products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
        highest = jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
        assert products == highest > 0


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (InceptionV3, (1, 74, 300, 3), "images of 74x300 are too small .* at least 75"),
        (InceptionV3, (1, 299, 299, 1), "images have 1 channels, but this network takes 3"),
        (functools.partial(DenseNet, cases.DENSENET121), (1, 28, 64, 3), "28x64 .* at least 29"),
        (functools.partial(DenseNet, cases.DENSENET121), (1, 64, 64, 1), "takes 3"),
    ],
)
def test_refuses_images_it_cannot_take(make, shape, message):
    graphdef, like = abstract(make)

    def run(weights, images):
        return bind(graphdef, weights).pooled_features(images)

    with pytest.raises(UserError, match=message):
        jax.eval_shape(run, like, jax.ShapeDtypeStruct(shape, np.float32))


@pytest.mark.parametrize("make", [InceptionV3, functools.partial(DenseNet, cases.DENSENET121)])
def test_takes_the_smallest_image(make):
    graphdef, like = abstract(make)
    size = 75 if make is InceptionV3 else cases.DENSENET121.smallest_image
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)

    def feature_map_positions(weights, images):
        module = bind(graphdef, weights)
        if make is InceptionV3:
            return module.pooled_features(images)
        return module.features(images)

    assert 0 not in jax.eval_shape(feature_map_positions, like, images).shape


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DenseNetConfig(norm="layer"), "'batch' or 'group', not 'layer'"),
        (lambda: DenseNetConfig(block_config=(6, 0)), r"at least 1: .*block_config=\(6, 0\)"),
        (lambda: DenseNetConfig(block_config=()), "at least 1"),
    ],
)
def test_wrong_configurations_are_users_mistakes(build, message):
    with pytest.raises(UserError, match=message):
        build()
