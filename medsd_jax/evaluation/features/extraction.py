"""Feature networks by name, and the features of a whole set of images, kept on disk.

inception=FILE      InceptionV3 of the FID literature, 2048 wide, fed as clean-fid does
xrv=FILE            torchxrayvision's DenseNet-121, 1024 wide, fed as RoentGen's script does
classifier=FOLDER   the classifier that train-classifier wrote
clip=FOLDER         CLIP's projected image embedding, 512 wide in openai/clip-vit-base-patch32
rad-dino=FOLDER     DINOv2's class token, 768 wide in microsoft/rad-dino, as CheXGenBench measures
latent=MODEL        the VAE's posterior mean of a Stable Diffusion model: for near copies, and rough
thumbnail           8 x 8 grey cells: rough, needs no weights
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from medsd_jax.classifier.model import load_classifier, network_input, structure, to_grey
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features.latent import open_latent_space
from medsd_jax.evaluation.features.rough import (
    LATENT,
    THUMBNAIL,
    THUMBNAIL_CHAIN,
    Thumbnail,
    part_means,
    thumbnails,
)
from medsd_jax.evaluation.features.specs import kind_and_path
from medsd_jax.evaluation.images.image_sets import ImageSet, resize_to_square
from medsd_jax.files import atomic_write, read_array
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.models.params import abstract, bind
from medsd_jax.models.stable_diffusion import weights_fingerprint
from medsd_jax.parallel.batching import batch_rows, over_devices
from medsd_jax.parallel.mesh import batch_sharding
from medsd_jax.vision.densenet import XRV_DENSENET121, DenseNet, DenseNetConfig
from medsd_jax.vision.inception import InceptionV3
from medsd_jax.vision.preprocessing import CLEAN_FID, XRV_ROENTGEN
from medsd_jax.vision.transformers_folder import open_tower
from medsd_jax.vision.weights import load_weights

KINDS = ("inception", "xrv", "classifier", "clip", "rad-dino", LATENT, THUMBNAIL)
_IMAGES_AT_ONCE = 32  # on each device
_PIXELS_AT_ONCE = 8 * 518**2
"""Likewise, of transformers and VAEs: 0.7 GB of attention scores in RAD-DINO."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network with its weights and its input chain.

    Attributes:
        kind: one of `KINDS`.
        prepare: images of any sizes -> the network's input [B, H, W, C].
        chain: the input chain in words, part of the protocol.
        graphdef: structure.
        params: weights on the host.
        settings: what else the features depend on, such as the number of heads.
        images_at_once: that each device has the memory for.
        map_shape: (h, w, C) of features that are a flattened map, too wide for distances of sets;
            None of all others.
    """

    kind: str
    prepare: Callable[[list[np.ndarray]], np.ndarray]
    chain: str
    graphdef: nnx.GraphDef
    params: Mapping[str, Any]
    settings: str = ""
    images_at_once: int = _IMAGES_AT_ONCE
    map_shape: tuple[int, int, int] | None = None

    def for_distances(self, features: np.ndarray) -> np.ndarray:
        """Features [n, D] as FID and the like take them: a map's are means of its parts."""
        return features if self.map_shape is None else part_means(features, self.map_shape)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the network, its settings, weights and input chain."""
        protocol = f"{self.kind} {self.chain}{self.settings}"
        weights = weights_fingerprint(self.params)
        return hashlib.blake2b(f"{protocol}{weights}".encode(), digest_size=8).hexdigest()


def open_network(spec: str) -> FeatureNetwork:
    """Reads ``kind=path``.

    Raises:
        UserError: another kind, or the weights cannot be read.
    """
    if spec == THUMBNAIL:
        graphdef, _ = abstract(Thumbnail)
        return FeatureNetwork(spec, thumbnails, THUMBNAIL_CHAIN, graphdef, {})
    with_path = [name for name in KINDS if name != THUMBNAIL]
    problem = f"feature space {spec!r} is not known: write {THUMBNAIL}, or write one of"
    kind, where = kind_and_path(spec, with_path, problem)
    if kind == LATENT:
        space = open_latent_space(where)
        size = space.image_size // space.config.downscale
        return FeatureNetwork(
            kind, space.batch, space.steps, space.graphdef, space.params,
            repr(space.config), _that_fit(space.image_size),
            (size, size, space.config.latent_channels),
        )  # fmt: skip
    path = Path(where).expanduser()
    if kind in ("clip", "rad-dino"):
        tower = open_tower(kind, path)
        return FeatureNetwork(
            kind, tower.chain.batch, tower.chain.steps, tower.graphdef, tower.params,
            repr(tower.config), _that_fit(tower.chain.size),
        )  # fmt: skip
    if kind == "classifier":
        classifier = load_classifier(path)
        size, mode = classifier.image_size, classifier.resize_mode
        shape = classifier.network
        graphdef, _ = structure(shape)
        to_own = "" if shape.input_range == "unit" else f"; to the range of {shape.input_range}"
        return FeatureNetwork(
            kind, functools.partial(_square_images, size=size, mode=mode, network=shape),
            f"grey repeated to RGB; bilinear to {size}x{size}, {mode}; mean of the channels; "
            f"x / 127.5 - 1{to_own}", graphdef, classifier.params,
        )  # fmt: skip
    make, chain = {
        "inception": (InceptionV3, CLEAN_FID),
        "xrv": (functools.partial(DenseNet, XRV_DENSENET121), XRV_ROENTGEN),
    }[kind]
    graphdef, like = abstract(make)
    return FeatureNetwork(kind, chain.batch, chain.steps, graphdef, load_weights(path, like, kind))


def make_extractor(
    network: FeatureNetwork, mesh: Mesh, num_images: int
) -> Callable[[Sequence[np.ndarray] | np.ndarray], np.ndarray]:
    """Returns ``extract(images) -> [n, d] float32``, which compiles at its first call only.

    Images are [H, W] or [H, W, 3] uint8 of any sizes. All processes call it with all of them.

    Args:
        network: from `open_network`.
        mesh: the devices.
        num_images: that are expected at a time; batches are no larger.
    """
    run = jax.jit(
        lambda params, x: bind(network.graphdef, params).pooled_features(x),
        out_shardings=batch_sharding(mesh),
    )
    measure = over_devices(run, network.params, mesh)
    size = _images_at_once(network, num_images, mesh)

    def extract(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        starts = range(0, len(images), size)
        batches = (network.prepare(list(images[start : start + size])) for start in starts)
        return np.concatenate([measure(prepared, size) for prepared in batches])

    return extract


def _images_at_once(network: FeatureNetwork, num_images: int, mesh: Mesh) -> int:
    most = min(_IMAGES_AT_ONCE, network.images_at_once)
    return batch_rows(num_images, most, mesh)


def features_of(
    network: FeatureNetwork, images: ImageSet, cache: Path | None, mesh: Mesh
) -> np.ndarray:
    """Features of every image, computed over all devices, or read from an earlier run.

    Args:
        network: from `open_network`.
        images: the set.
        cache: folder of .npy files, named by the content of images and network; if None,
            nothing is read or kept.
        mesh: the devices.

    Returns:
        [n, d] float32 in the set's order.
    """
    name = f"{network.kind}-{network.fingerprint}-{images.fingerprint}.npy"
    path = None if cache is None else cache / name
    if path is not None and path.is_file():
        again = f"remove {path}, and it is computed again"
        result = read_array(path, again)
        if result.ndim != 2 or len(result) != len(images) or result.dtype != np.float32:
            raise UserError(f"{path} holds {result.dtype} {list(result.shape)}; {again}")
        return result
    extract = make_extractor(network, mesh, len(images))
    result = []
    with tqdm(total=len(images), unit="image", desc=f"{network.kind} features") as bar:
        for batch in images.batches(_images_at_once(network, len(images), mesh)):
            stop_if_asked()
            result.append(extract(batch))
            bar.update(len(batch))
    features = np.concatenate(result)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            np.save(part, features)
    return features


def _that_fit(size: int) -> int:
    """Images of size x size that a device works on at once."""
    return max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // size**2))


def _square_images(
    images: list[np.ndarray], *, size: int, mode: str, network: DenseNetConfig
) -> np.ndarray:
    """The classifier's input [B, size, size, C], prepared as in its training."""
    return np.asarray(network_input(network, to_grey(resize_to_square(images, size, mode))))
