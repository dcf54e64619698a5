"""Models by name, folder or Hugging Face hub id; and checkpoint folders up to the hub. Offline unless allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from radglint.checkpoint import CARD, FILES, Checkpoint, load_checkpoint
from radglint.errors import CheckpointError, OutputError
from radglint.registry import locate

ONLINE_VARIABLE = "RADGLINT_ONLINE"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def from_pretrained(
    name: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool | None = None
) -> Checkpoint:
    """Load a model by name, from a folder, or by hub id, in this order.

    Args:
        name: shipped or imported name, checkpoint folder, or hub id `owner/name`.
        revision: branch, tag or commit of a hub id.
        local_files_only: True never opens a connection; False may. None means True, unless the environment variable
            `RADGLINT_ONLINE` is 1.

    Raises:
        CheckpointError: not found, not allowed to ask the hub, or not a valid checkpoint.
    """
    text = os.fspath(name)
    try:
        folder = locate(text)
    except CheckpointError:
        if Path(text).expanduser().exists() or not _HUB_ID.fullmatch(text):
            raise
        folder = _from_hub(text, revision, local_files_only)
    return load_checkpoint(folder)


def _from_hub(repo_id: str, revision: str | None, local_files_only: bool | None) -> Path:
    """Exactly the files of a checkpoint, from the hub or its local cache."""
    from huggingface_hub import snapshot_download

    offline = os.environ.get(ONLINE_VARIABLE) != "1" if local_files_only is None else local_files_only
    try:
        folder = snapshot_download(repo_id, revision=revision, local_files_only=offline, allow_patterns=list(FILES))
    except Exception as error:  # the hub's own, the HTTP client's and the file system's errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = f"offline by default: set {ONLINE_VARIABLE}=1 or pass local_files_only=False to allow the download"
        raise CheckpointError(
            f"model {repo_id!r}: {advice if offline else f'cannot be had from the hub ({reason})'}"
        ) from error
    return Path(folder)


def push_to_hub(
    folder: str | os.PathLike[str], repo_id: str, *, private: bool = True, token: str | None = None,
    revision: str | None = None,
) -> str:  # fmt: skip
    """Upload a checkpoint folder, after checking that it loads. Only the files of the format are sent.

    Args:
        folder: a checkpoint folder.
        repo_id: `owner/name`; made if it does not exist.
        private: for a new repository.
        token: the hub's access token; None takes the one that is logged in.
        revision: branch to commit to.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the folder is not a valid checkpoint.
        OutputError: the hub refused.
    """
    from huggingface_hub import HfApi

    checkpoint = load_checkpoint(folder)
    if not (checkpoint.folder / CARD).is_file():
        raise CheckpointError(f"{checkpoint.folder}: lacks {CARD}; a published model needs its card")
    try:
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=str(checkpoint.folder), allow_patterns=list(FILES), revision=revision,
            commit_message=f"radglint {checkpoint.name} {checkpoint.fingerprint}",
        )  # fmt: skip
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutputError(f"{repo_id}: upload failed: {reason}; check the name and the access token") from error
    return str(commit)
