"""The Hugging Face Hub: which commit a revision is, and its files in the local cache.

Credentials and caching are huggingface_hub's own. Knows nothing about what is in a repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointError

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20.0  # seconds to wait for the Hub


def resolve_commit(source: str, revision: str, offline: str = "Try again when online") -> str:
    """The commit a revision of a Hub repository points at now.

    Args:
        offline: what to do where the Hub cannot be reached.

    Raises:
        CheckpointError: the Hub cannot be reached, or knows no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().model_info(source, revision=revision, timeout=TIMEOUT).sha
    except GatedRepoError:
        raise CheckpointError(f"{source}: access to it must be asked for", "Then: hf auth login") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{source}: has no revision {revision}", "Write revision: main") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{source}: the Hub has no such repository, or it is private", "Check the name, or: hf auth login"
        ) from None
    except Exception as error:  # which HTTP library raises depends on huggingface_hub's version
        raise CheckpointError(f"{source}: the Hugging Face Hub cannot be reached ({_reason(error)})", offline) from None
    if commit is None or not COMMIT.fullmatch(commit):
        raise CheckpointError(f"{source}: the Hub named no commit for {revision}", "Try again later")
    return commit


def download(source: str, revision: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """The files of a repository that match `patterns`: their directory, and the commit they are of.

    A revision that is a commit and already in the cache needs no network.

    Raises:
        CheckpointError: the repository, its revision or the Hub cannot be reached, or the download broke off.
    """
    from huggingface_hub import snapshot_download

    local = "Or pass a local copy with --checkpoint DIR"
    commit = (
        revision if COMMIT.fullmatch(revision) else resolve_commit(source, revision, f"Try again when online. {local}")
    )
    try:
        return Path(snapshot_download(source, revision=commit, allow_patterns=list(patterns))), commit
    except Exception as error:  # as in `resolve_commit`
        raise CheckpointError(
            f"{source}@{commit[:12]}: cannot be downloaded ({_reason(error)})",
            f"Try again: what has arrived is kept. {local}",
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
