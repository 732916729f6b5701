"""A DenseNet with batch norm in evaluation mode, from a state dict, in torch's own operations."""

import torch
from torch.nn import functional as F


def _norm_relu(weights, name, x):
    stats = (weights[f"{name}.running_mean"], weights[f"{name}.running_var"])
    return F.relu(
        F.batch_norm(x, *stats, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)
    )


def feature_maps(weights: dict[str, torch.Tensor], block_config, x: torch.Tensor):
    """Images [B, C, H, W] in the network's own range -> maps [B, D, h, w] of every stage."""
    x = F.conv2d(x, weights["features.conv0.weight"], stride=2, padding=3)
    maps = [_norm_relu(weights, "features.norm0", x)]
    x = F.max_pool2d(maps[0], 3, 2, 1)
    for block, layers in enumerate(block_config, 1):
        if block > 1:
            name = f"features.transition{block - 1}"
            x = _norm_relu(weights, f"{name}.norm", x)
            x = F.avg_pool2d(F.conv2d(x, weights[f"{name}.conv.weight"]), 2, 2)
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            new = _norm_relu(weights, f"{name}.norm1", x)
            new = F.conv2d(new, weights[f"{name}.conv1.weight"])
            new = _norm_relu(weights, f"{name}.norm2", new)
            new = F.conv2d(new, weights[f"{name}.conv2.weight"], padding=1)
            x = torch.cat([x, new], 1)
        maps.append(x)
    return [*maps[:-1], _norm_relu(weights, "features.norm5", x)]


def pooled_features(weights: dict[str, torch.Tensor], block_config, x: torch.Tensor):
    """Images [B, C, H, W] in the network's own range -> [B, D]."""
    return feature_maps(weights, block_config, x)[-1].mean(dim=(2, 3))
