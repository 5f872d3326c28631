"""The Hugging Face Hub: resolves revisions to commits, and downloads files into the local cache.

Credentials and caching are those of huggingface_hub. Knows nothing about what is in a repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointError, first_line

SCHEME = "hf://"  # before the name of a repository, where it could be taken for a directory
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
ADAPTER_CONFIG = "adapter_config.json"  # of a repository or a directory with a PEFT adapter
COMMIT = re.compile(r"[0-9a-f]{40}")
SUBFOLDERS = "*/*"  # a trainer's checkpoint-500/, original/, onnx/: none is read
TIMEOUT = 20.0  # seconds to wait for the Hub


def split_revision(source: str, default: str = "main") -> tuple[str, str]:
    """The name of a repository and its revision: of `org/name@commit`, `org/name`, and either after `hf://`."""
    name, _, revision = source.removeprefix(SCHEME).partition("@")
    return name, revision or default


def resolve_commit(source: str, revision: str, offline: str = "Try again when online") -> str:
    """The commit that a revision of a Hub repository currently points to; with `HF_HUB_OFFLINE`, the one in the cache.

    Args:
        offline: the advice in the error if the Hub cannot be reached.

    Raises:
        CheckpointError: the Hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        commit = cached_commit(source, revision)
        if commit is None:
            raise CheckpointError(
                f"{source}: revision {revision} is not in the cache, and HF_HUB_OFFLINE is set", f"Unset it. {offline}"
            )
        return commit
    try:
        commit = HfApi().model_info(source, revision=revision, timeout=TIMEOUT).sha
    except GatedRepoError:
        raise CheckpointError(
            f"{source}: access to this repository must be requested", "Request it on its page, then: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{source}: has no revision {revision}", "Set revision: main") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{source}: the Hub has no such repository, or it is private", "Check the name, or: hf auth login"
        ) from None
    except Exception as error:  # the HTTP library that raises depends on huggingface_hub's version
        if cached_commit(source, revision) is not None:
            offline = f"Use the copy in the cache: HF_HUB_OFFLINE=1. {offline}"
        raise CheckpointError(
            f"{source}: the Hugging Face Hub cannot be reached ({first_line(error)})", offline
        ) from None
    if commit is None or not COMMIT.fullmatch(commit):
        raise CheckpointError(f"{source}: the Hub returned no commit for {revision}", "Try again later")
    return commit


def cached_commit(source: str, revision: str) -> str | None:
    """The commit of a revision in the local cache, as of the last time it was downloaded; None if it never was."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", ADAPTER_CONFIG):
        path = try_to_load_from_cache(source, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def download(
    source: str, revision: str, patterns: Sequence[str], optional: Sequence[str] = (), option: str = "--checkpoint"
) -> tuple[Path, str]:
    """Download the files of a repository that match `patterns`: their directory, and their commit.

    Only files at the top of the repository. A revision that is in the cache needs no network if it is a commit, or with
    `HF_HUB_OFFLINE`.

    Args:
        optional: patterns of further files, which a cached copy need not have.
        option: of the command line that takes a local copy, for errors.

    Raises:
        CheckpointError: the repository, its revision or the Hub cannot be reached, or the download failed.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    local = f"Or pass a local copy with {option} DIR"
    commit = (
        revision if COMMIT.fullmatch(revision) else resolve_commit(source, revision, f"Try again when online. {local}")
    )

    def snapshot(*chosen: str) -> Path:  # by the name of the revision, so that the cache knows it when offline
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(chosen),
                ignore_patterns=[SUBFOLDERS],
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )

    try:
        try:
            root = snapshot(*patterns, *optional)
        except LocalEntryNotFoundError:  # offline: what another tool left in the cache may lack them
            root = snapshot(*patterns)
    except Exception as error:  # as in `resolve_commit`
        raise CheckpointError(
            f"{source}@{commit[:12]}: cannot be downloaded ({first_line(error)})",
            f"Try again: the download resumes. {local}",
        ) from error
    return root, root.name if COMMIT.fullmatch(root.name) else commit
