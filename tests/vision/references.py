"""torchvision, torchxrayvision, pytorch-fid and clean-fid on the numbers of cases.py.

They stay outside the test environment: torchvision's wheels on PyPI are built for CUDA, and beside
torch's CPU build transformers cannot be imported any more. So their outputs are stored under
golden/, by this file:

    pip install --no-deps --target ORACLES torchvision==0.28.0 torchxrayvision==1.5.7 \
        pytorch-fid==0.3.0 clean-fid==0.1.35 pandas python-dateutil six
    PYTHONPATH=ORACLES:. python -m tests.vision.references

test_references.py repeats the comparison wherever the four can be imported.
"""

import importlib
import importlib.metadata
import json
import sys
import warnings

import numpy as np
import torch

from tests.vision import cases

PACKAGES = ("torchvision", "torchxrayvision", "pytorch-fid", "clean-fid")
_LIBRARY = []  # torch forgets an operator when its library object goes


def import_torchvision():
    """torchvision, also without its compiled operators, of which the networks use none."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.append(library)
    return importlib.import_module("torchvision")


def network(case: str) -> torch.nn.Module:
    """The reference's module in evaluation mode, without its published weights."""
    tv = import_torchvision()
    match case:
        case "inception_fid":
            from pytorch_fid import inception

            # It downloads its weights when built; the weights it has are as good.
            inception.load_state_dict_from_url = lambda *_, **__: {}
            load = torch.nn.Module.load_state_dict
            try:
                torch.nn.Module.load_state_dict = lambda *_, **__: None
                module = inception.fid_inception_v3()
            finally:
                torch.nn.Module.load_state_dict = load
        case "densenet121":
            module = tv.models.densenet121(weights=None)
        case "xrv_densenet121" | "xrv_tiny" | "groupnorm_tiny":
            import torchxrayvision

            shape = {} if case == "xrv_densenet121" else cases.TINY
            module = torchxrayvision.models.DenseNet(**shape)
            if case == "groupnorm_tiny":
                _replace_norms(module)
    return module.eval()


def with_weights(case: str) -> torch.nn.Module:
    """`network` with the weights of cases.py; counters and the auxiliary head stay as they are."""
    module = network(case)
    drawn = cases.draw_weights(used_shapes(shapes(module)))
    missing, extra = module.load_state_dict(
        {name: torch.from_numpy(x) for name, x in drawn.items()}, strict=False
    )
    assert not extra
    assert all("AuxLogits" in name or "num_batches_tracked" in name for name in missing)
    return module


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def used_shapes(listed: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Without what evaluation never reads."""
    return {
        name: shape
        for name, shape in listed.items()
        if not name.startswith("AuxLogits.") and not name.endswith("num_batches_tracked")
    }


def outputs(case: str) -> dict[str, np.ndarray]:
    """Features and class scores of the reference, and gradients where the case has them."""
    module = with_weights(case)
    x = torch.from_numpy(np.moveaxis(cases.images(case), -1, 1).copy())
    last = module.fc if hasattr(module, "fc") else module.classifier
    seen = []
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = module(x)
    handle.remove()
    out = {"features": seen[0].detach().numpy(), "logits": logits.detach().numpy()}
    if case.startswith("xrv"):
        features2 = module.features2(x).detach().numpy()
        assert np.array_equal(features2, out["features"])
    if case == cases.GRADIENT_CASE:
        weights = dict(module.named_parameters())
        weighting = torch.from_numpy(cases.weighting(out["logits"]))
        (logits * weighting).sum().backward()
        out |= {f"gradient/{name}": x.grad.numpy() for name, x in weights.items()}
    return out


def preprocessed(chain: str, name: str) -> np.ndarray:
    """The reference's network input for an image, [S, S, C] float32."""
    tv = import_torchvision()
    pixels = cases.image(name)
    rgb = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
    match chain:
        case "clean-fid":
            return (_clean_resize(rgb) - 128) / 128
        case "xrv-roentgen":
            x = torch.from_numpy(np.moveaxis(_clean_resize(rgb), -1, 0).copy())
            x = 2048 * (tv.transforms.functional.rgb_to_grayscale(x, 1) / 255) - 1024
            return _hwc(tv.transforms.Resize(224)(x))
    raise AssertionError(chain)


def _clean_resize(rgb: np.ndarray) -> np.ndarray:
    import_torchvision()
    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():
        # Pillow means to drop an argument that clean-fid gives.
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_resizer("clean")(rgb)


def _hwc(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.numpy(), 0, -1)


def _replace_norms(module: torch.nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            channels = child.num_features
            setattr(module, name, torch.nn.GroupNorm(cases.TINY_GROUPS[channels], channels))
        else:
            _replace_norms(child)


def main() -> None:
    """Writes golden/outputs.npz and golden/shapes.json."""
    arrays, listed = {}, {}
    for case in cases.CASES:
        listed[case] = shapes(network(case))
        arrays |= {f"{case}/{name}": x for name, x in outputs(case).items()}
    for chain in cases.CHAINS:
        for name in cases.IMAGES:
            arrays[f"{chain}/{name}"] = preprocessed(chain, name)[:: cases.EVERY, :: cases.EVERY]
    assert all(x.dtype == np.float32 for x in arrays.values())
    cases.GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(cases.GOLDEN / "outputs.npz", **arrays)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pillow", *PACKAGES)}
    text = json.dumps({"made_with": versions, "shapes": listed}, separators=(",", ":"))
    # One weight a line, so that a change can be read.
    (cases.GOLDEN / "shapes.json").write_text(text.replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
