"""The Hugging Face Hub: resolves revisions to commits, and downloads files into the local cache.

Credentials and caching are those of huggingface_hub. Knows nothing about what is in a repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointError, first_line

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20.0  # seconds to wait for the Hub


def resolve_commit(source: str, revision: str, offline: str = "Try again when online") -> str:
    """The commit that a revision of a Hub repository currently points to.

    Args:
        offline: the advice in the error if the Hub cannot be reached.

    Raises:
        CheckpointError: the Hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

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
        raise CheckpointError(
            f"{source}: the Hugging Face Hub cannot be reached ({first_line(error)})", offline
        ) from None
    if commit is None or not COMMIT.fullmatch(commit):
        raise CheckpointError(f"{source}: the Hub returned no commit for {revision}", "Try again later")
    return commit


def download(source: str, revision: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """Download the files of a repository that match `patterns`: their directory, and their commit.

    A revision that is a commit and already in the cache needs no network.

    Raises:
        CheckpointError: the repository, its revision or the Hub cannot be reached, or the download failed.
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
            f"{source}@{commit[:12]}: cannot be downloaded ({first_line(error)})",
            f"Try again: the download resumes. {local}",
        ) from error
