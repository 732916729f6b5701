import jax
import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.interop.torch_layout import from_torch, to_torch

SHAPES = {
    "conv.kernel": (3, 1, 4, 5),
    "conv.bias": (5,),
    "linear.kernel": (4, 6),
    "norm.scale": (7,),
    "token.embedding": (9, 2),
    "bn.mean": (7,),
    "bn.var": (7,),
    "embeddings.class_embedding": (7,),
    "embeddings.cls_token": (1, 1, 7),
    "embeddings.position_embeddings": (1, 5, 7),
    "layer_scale1.lambda1": (7,),
}
LIKE = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}


def _params():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def test_names_and_shapes_are_torch_s():
    assert {name: x.shape for name, x in to_torch(_params()).items()} == {
        "conv.weight": (5, 4, 3, 1),
        "conv.bias": (5,),
        "linear.weight": (6, 4),
        "norm.weight": (7,),
        "token.weight": (9, 2),
        "bn.running_mean": (7,),
        "bn.running_var": (7,),
        "embeddings.class_embedding": (7,),
        "embeddings.cls_token": (1, 1, 7),
        "embeddings.position_embeddings": (1, 5, 7),
        "layer_scale1.lambda1": (7,),
    }


def test_round_trip_is_exact_and_copies_nothing(same_bits):
    params = _params()
    back = from_torch(to_torch(params), LIKE, "here")
    same_bits(back, params)
    assert all(np.shares_memory(back[name], params[name]) for name in params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keeps_the_dtype_of_jax_arrays(dtype, same_bits):
    params = {name: jax.numpy.asarray(x, dtype) for name, x in _params().items()}
    same_bits(from_torch(to_torch(params), LIKE, "here"), params)


@pytest.mark.torch
def test_axes_mean_what_torch_means_by_them():
    import torch

    params = _params()
    tensors = {name: torch.from_numpy(x.copy()) for name, x in to_torch(params).items()}
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 8, 9, 4), np.float32)
    ours = jax.lax.conv_general_dilated(
        images, params["conv.kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(images).permute(0, 3, 1, 2), tensors["conv.weight"]
    )
    # float32 sums of 12 products
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-5)
    x = rng.standard_normal((2, 4), np.float32)
    theirs = torch.nn.functional.linear(torch.from_numpy(x), tensors["linear.weight"])
    np.testing.assert_allclose(x @ params["linear.kernel"], theirs, atol=1e-5)


def test_one_error_lists_every_misfit_sorted():
    tensors = to_torch(_params())
    del tensors["norm.weight"], tensors["conv.bias"]
    tensors["linear.weight"] = np.zeros((4, 6), np.float32)
    tensors["zzz.bias"] = tensors["lora.weight"] = np.zeros(1, np.float32)
    with pytest.raises(UserError) as error:
        from_torch(tensors, LIKE, "unet")
    assert str(error.value) == (
        "unet: the weights do not fit the config.json beside them ("
        "2 missing: conv.bias [5], norm.weight [7]; "
        "2 not expected: lora.weight [1], zzz.bias [1]; "
        "1 of the wrong shape: linear.weight [4, 6] instead of [6, 4]); "
        "take both from the same model"
    )


def test_error_names_the_owner_and_the_advice_it_is_given():
    tensors = to_torch(_params())
    del tensors["bn.running_var"]
    with pytest.raises(UserError) as error:
        from_torch(tensors, LIKE, "net.pth", owner="InceptionV3", advice="download it again")
    assert str(error.value) == (
        "net.pth: the weights do not fit InceptionV3 (1 missing: bn.running_var [7]); "
        "download it again"
    )


def test_a_thousand_misfits_are_counted_not_listed():
    tensors = {f"_a.{name}.{n}": x for name, x in to_torch(_params()).items() for n in range(99)}
    with pytest.raises(UserError) as error:
        from_torch(tensors, LIKE, "unet")
    message = str(error.value)
    assert "11 missing: bn.running_mean [7], bn.running_var [7], conv.bias [5], ...;" in message
    assert "1089 not expected: " in message and len(message) < 400


def test_a_weight_that_is_not_finite_is_named():
    tensors = to_torch(_params())
    tensors["linear.weight"] = tensors["linear.weight"].copy()
    tensors["linear.weight"][2, 1] = np.nan
    with pytest.raises(UserError, match=r"folder/unet: linear\.weight holds 1 of 24"):
        from_torch(tensors, LIKE, "folder/unet")


@pytest.mark.parametrize(
    "wrapped, carried, by",
    [
        (lambda name: f"_orig_mod.{name}", "_orig_mod.", "torch.compile"),
        (lambda name: f"module.{name}", "module.", "DataParallel"),
        (lambda name: f"module._orig_mod.{name}", "module._orig_mod.", "DataParallel"),
        (lambda name: f"{name.partition('.')[0]}._orig_mod.{name.partition('.')[2]}", "_orig_mod.",
         "torch.compile"),
        (lambda name: f"unet.{name}", "unet.", None),
        (lambda name: f"learner.model.{name}", "learner.model.", None),
    ],
)  # fmt: skip
def test_names_of_a_wrapped_model_are_named_by_what_they_carry(wrapped, carried, by):
    tensors = to_torch(_params())
    names = {wrapped(name): x for name, x in tensors.items()}
    with pytest.raises(UserError) as error:
        from_torch(names, LIKE, "unet")
    message = str(error.value)
    assert message.startswith(f"unet: 11 of 11 names carry '{carried}'")
    assert by is None or f"as {by} leaves it" in message
    assert "take the prefix off" in message and len(message) < 300 and "\n" not in message


def test_a_few_odd_names_are_no_wrapper():
    tensors = to_torch(_params())
    tensors["module.conv.bias"] = tensors.pop("conv.bias")
    with pytest.raises(UserError, match=r"1 missing: conv\.bias .*1 not expected: module\.conv"):
        from_torch(tensors, LIKE, "unet")


def test_a_name_of_any_length_is_cut():
    with pytest.raises(UserError) as error:
        from_torch({**to_torch(_params()), "x" * 10**6 + ".y": np.zeros(1)}, LIKE, "unet")
    assert len(str(error.value)) < 400
