import builtins
import functools
import logging
import sys
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from medsd_jax.errors import UserError
from medsd_jax.interop.torch_layout import to_torch
from medsd_jax.models.params import abstract
from medsd_jax.vision.densenet import DenseNet, DenseNetConfig
from medsd_jax.vision.weights import load_weights, modernize
from tests.vision import cases

CONFIG = DenseNetConfig(**cases.TINY, norm="batch")
_, LIKE = abstract(functools.partial(DenseNet, CONFIG))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(x.shape, np.float32) for name, x in LIKE.items()}


def _tensors() -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(x) for name, x in to_torch(_params()).items()}


def _assert_equal(ours, expected):
    assert list(ours) == list(LIKE)
    for name, x in ours.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_reads_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(_tensors(), path)
    assert _tensors().keys() == cases.used_shapes("xrv_tiny").keys()
    _assert_equal(load_weights(path, LIKE, "DenseNet"), _params())


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_torch_files(tmp_path, torch, suffix, zipped):
    """The format of today and the one of before torch 1.6, in which many weights still lie."""
    path = tmp_path / f"net{suffix}"
    state = {name: torch.from_numpy(x) for name, x in _tensors().items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    _assert_equal(load_weights(path, LIKE, "DenseNet"), _params())


@pytest.mark.torch
def test_half_precision_is_widened(tmp_path, torch):
    path = tmp_path / "net.pth"
    torch.save({name: torch.from_numpy(x).half() for name, x in _tensors().items()}, path)
    expected = {name: x.astype(np.float16).astype(np.float32) for name, x in _params().items()}
    _assert_equal(load_weights(path, LIKE, "DenseNet"), expected)


def test_old_names_and_what_is_no_weight(tmp_path, caplog):
    old = {}
    for name, x in _tensors().items():
        for number in "12":
            for kind in ("norm", "conv"):
                if "denselayer" in name:
                    name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
        old[name] = x
    assert "features.denseblock1.denselayer1.norm.1.running_mean" in old
    assert "features.transition1.norm.weight" in old
    old["features.norm0.num_batches_tracked"] = np.int64(3)
    old["features.denseblock1.denselayer1.norm.1.num_batches_tracked"] = np.int64(3)
    old["op_threshs"] = np.full(5, np.nan, np.float32)
    path = tmp_path / "old.safetensors"
    save_file({name: np.asarray(x) for name, x in old.items()}, path)
    with caplog.at_level(logging.INFO):
        _assert_equal(load_weights(path, LIKE, "DenseNet"), _params())
    assert f"{path}: DenseNet does not use: 2 num_batches_tracked, 1 op_threshs" in caplog.text


def test_inception_takes_the_names_of_its_file():
    kept, left_out = modernize({name: 0 for name in cases.golden_shapes()["inception_fid"]})
    assert kept.keys() == cases.used_shapes("inception_fid").keys()
    assert left_out == {"num_batches_tracked": 94}


def test_the_auxiliary_head_of_inception_is_left_out():
    """In files that torchvision's class wrote; with its two counters it is one kind."""
    kept, left_out = modernize(
        {"AuxLogits.fc.weight": 0, "AuxLogits.conv0.bn.bias": 0, "fc.bias": 1}
    )
    assert (kept, left_out) == ({"fc.bias": 1}, {"AuxLogits.*": 2})


def test_one_error_lists_every_misfit(tmp_path):
    tensors = _tensors()
    del tensors["features.norm0.running_var"]
    tensors["classifier.weight"] = np.zeros((18, 32), np.float32)
    tensors["head.weight"] = np.zeros(2, np.float32)
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        load_weights(path, LIKE, "DenseNet-tiny")
    assert str(error.value) == (
        f"{path}: the weights do not fit DenseNet-tiny ("
        "1 missing: features.norm0.running_var [16]; "
        "1 not expected: head.weight [2]; "
        "1 of the wrong shape: classifier.weight [18, 32] instead of [5, 40]); "
        "take the file that belongs to this network"
    )


def _module_of(torch, package: str):
    """A module whose class says that it comes from `package`."""
    net = type("DenseNet", (torch.nn.Linear,), {"__module__": package})
    module = types.ModuleType(package)
    module.DenseNet = net
    return module, net(2, 2)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("package", "way_out"),
    [
        ("torchxrayvision.models", "s.save_file(m.state_dict(), 'xrv.safetensors')"),
        ("somebody.nets", "write its state_dict() with safetensors.torch.save_file"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # of a class made here
def test_pickled_module_is_refused(tmp_path, torch, monkeypatch, package, way_out, zipped):
    path = tmp_path / "best.pt"
    module, net = _module_of(torch, package)
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setitem(sys.modules, package.split(".")[0], types.ModuleType("parent"))
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as error:
        load_weights(path, LIKE, "DenseNet")
    message = str(error.value)
    assert f"({package}.DenseNet)" in message
    assert way_out in message
    assert "\n" not in message


def test_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inception/data.pkl", b"")
        archive.writestr("inception/constants.pkl", b"")
    with pytest.raises(UserError, match=r"TorchScript .* pt_inception-2015-12-05-6726825d\.pth"):
        load_weights(path, LIKE, "DenseNet")


@pytest.mark.torch
def test_training_checkpoint_is_refused_by_its_keys(tmp_path, torch):
    path = tmp_path / "last.pth"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(UserError, match="a dict of epoch, state_dict, not a state dict"):
        load_weights(path, LIKE, "DenseNet")


@pytest.mark.torch
@pytest.mark.parametrize("content", [b"", b"hello, this is no weight file", b"PK\x03\x04junk"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_file_is_said_to_be(tmp_path, torch, content, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged") as error:
        load_weights(path, LIKE, "DenseNet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "there is no such file"),
        ("net.h5", "weights are read from .safetensors, .pth or .pt, not .h5"),
    ],
)
def test_other_files(tmp_path, name, message):
    (tmp_path / "net.h5").touch()
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / name, LIKE, "DenseNet")


def test_without_torch_the_way_out_is_said(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    path.touch()
    real = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(UserError, match="read with torch, which is not installed"):
        load_weights(path, LIKE, "DenseNet")
