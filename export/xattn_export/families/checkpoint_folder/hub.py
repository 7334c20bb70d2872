"""Where a source lies on this machine: a local folder as it is, a Hugging Face hub id once it is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line

__all__ = ["hub_id", "local_folder"]

_HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "README.md")


def hub_id(source: Path) -> str | None:
    """`source` as a hub id, `org/name`, or None where it is a local path."""
    text = source.as_posix()
    return text if re.fullmatch(_HUB_ID, text) and not source.exists() else None


def local_folder(source: Path) -> Path:
    """The folder of `source`; a hub id is downloaded into the hub's cache, or found there.

    Safetensors are taken where the repository has them, else PyTorch pickles; nothing that could be run.

    Raises:
        CheckpointError: the hub cannot be reached, has no such model, or does not let us have it.
    """
    repository = hub_id(source)
    if repository is None:
        return source
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*_DESCRIPTIONS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*_DESCRIPTIONS, "*.bin"]))
    except Exception as error:  # the library passes on those of its network stack
        raise CheckpointError(
            f"{source}: expected a local folder, found none, and as a hub id it cannot be had: {_reason(error)}; "
            "check the path or the network, or download it elsewhere and name the folder"
        ) from error
    return folder


def _reason(error: Exception) -> str:
    """What went wrong, in a few words where the library's own are many."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "the hub is out of reach, and the model is not in its cache"
    if isinstance(error, errors.GatedRepoError):
        return "the hub gives this model only to those who log in and accept its terms"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or a private one"
    return f"{type(error).__name__}: {one_line(error)[:160]}"
