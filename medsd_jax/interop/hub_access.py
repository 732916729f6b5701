"""The Hugging Face hub: what is cached, whether it may be asked, its errors in one line each."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from medsd_jax.errors import UserError

_LOG = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the network."""
    # huggingface_hub reads the variable when it is imported; a notebook may set it later.
    value = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return huggingface_hub.constants.HF_HUB_OFFLINE or value in {"1", "ON", "YES", "TRUE"}


def cached(repo_id: str) -> Path | None:
    """The snapshot of a repository on this machine, whole or in part; None if there is none."""
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HFValidationError):
        return None


def cached_or_downloaded(
    name: str,
    incomplete: Callable[[Path], str],
    choose: Callable[[list[str]], list[str]],
    *,
    moved_to: str | None = None,
) -> Path:
    """The snapshot of a repository, whole; the network is asked only where none is here.

    Args:
        name: "org/name".
        incomplete: what a cached snapshot lacks, or nothing: another program may have fetched a
            part.
        choose: from all file names to those to fetch; may raise UserError before gigabytes are.
        moved_to: the repository that took its place, if any.

    Raises:
        UserError: also for every trouble with the hub or the network.
    """
    target, problem = moved_to or name, ""
    for candidate in dict.fromkeys((name, target)):
        if (folder := cached(candidate)) is None:
            continue
        if problem := incomplete(folder):
            continue
        if candidate != name:
            _LOG.info("%s was removed from the hub; using its copy %s", name, candidate)
        return folder
    if is_offline():
        raise UserError(
            f"{name} is neither a folder here nor whole in the hub's cache"
            f"{f' ({problem})' if problem else ''}, and HF_HUB_OFFLINE forbids to download it; "
            "check the path, or unset HF_HUB_OFFLINE"
        )
    if target != name:
        _LOG.warning("%s was removed from the hub; downloading its copy %s", name, target)
    with _errors_in_one_line(target):
        chosen = choose(_listed(target))
        _LOG.info("downloading %s (%d files)", target, len(chosen))
        return Path(huggingface_hub.snapshot_download(target, allow_patterns=chosen))


def holds(repo_id: str, name: str) -> bool:
    """Whether a repository, cached or on the hub, holds a file of this name.

    Raises:
        UserError: also for every trouble with the hub or the network.
    """
    folder = cached(repo_id)
    if folder is not None and (folder / name).is_file():
        return True
    if is_offline():
        return False
    with _errors_in_one_line(repo_id):
        return name in _listed(repo_id)


def _listed(repo_id: str) -> list[str]:
    info = huggingface_hub.HfApi().model_info(repo_id, timeout=20)
    return [file.rfilename for file in info.siblings or ()]


@contextlib.contextmanager
def _errors_in_one_line(repo_id: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f"{repo_id} is gated: accept its terms on https://huggingface.co/{repo_id}, then run "
            "`hf auth login`"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo_id} is neither a folder here nor a model on the hub; check the spelling, or "
            "run `hf auth login` if it is private"
        ) from error
    except Exception as error:  # which HTTP library's errors arrive depends on the hub's release
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{repo_id} is no folder here and could not be fetched from the hub ({reason}); check "
            "the path or the network, or copy the model here and give its folder"
        ) from error
