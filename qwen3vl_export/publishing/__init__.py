"""`publish` and `fetch`: a publication to a directory or to the Hugging Face Hub, and back.

An upload is one commit: files are sent first and become visible together, so that a broken upload leaves the repository
as it was, and the next attempt sends only what is missing. A download goes to huggingface_hub's cache, which resumes,
and becomes a directory only if every file matches manifest, evidence and provenance. huggingface_hub handles
credentials; this module never sees one.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..artifact import STATEMENT, open_artifact
from ..console import format_size
from ..errors import PublishError, SpaceError, errno_of, first_line
from ..hub import REPOSITORY, SCHEME, TIMEOUT
from ..output import FULL, link, remove_abandoned, workspace
from ..replaceable import check_output, whole_directory
from .demo import unloadable_precisions
from .provenance import sign
from .publication import Publication, prepare
from .verify_artifact import NOT_FETCHED, check_strangers, verify_artifact

UPLOADS = "qwen3vl-export-"  # prefix of temporary directories

Log = Callable[[str], None]


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub: `hf://org/name`, or `hf://org/name@revision`."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read `hf://org/name[@revision]`.

        Raises:
            PublishError: it is not the name of a repository.
        """
        name, _, revision = text.removeprefix(SCHEME).partition("@")
        malformed = not REPOSITORY.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", ".", "-"))
        if malformed or max(map(len, name.split("/"))) > 96:
            raise PublishError(f"{text}: is not the name of a repository", "Write hf://OWNER/NAME")
        return cls(name, revision or None)


def publish(
    root: Path,
    to: str,
    *,
    licence: Path | None = None,
    private: bool = False,
    dry_run: bool = False,
    signed: bool = False,
    force: bool = False,
    demo: bool = False,
    log: Log = print,
) -> None:
    """Publish an artifact.

    Args:
        to: a directory, or `hf://org/name`.
        private: make the repository private if it does not exist.
        dry_run: check everything and list what would be published; write and send nothing.
        signed: sign the provenance with sigstore.
        force: replace an artifact that is already there.
        demo: add the page that runs the artifact in a browser.

    Raises:
        Qwen3VLExportError: the artifact may not be published, or the target cannot be written.
    """
    repository = Repository.parse(to) if to.startswith(SCHEME) else None
    if repository and repository.revision:
        raise PublishError(f"{to}: publishing is always to the main branch", "Leave the revision out")
    inputs = [root] if licence is None else [root, licence]
    if repository is None:
        check_output(Path(to), force, inputs)
    publication = prepare(root, repository.name if repository else None, licence, demo)
    sizes = publication.sizes
    if dry_run:
        for name, count in sizes.items():
            log(f"{format_size(count):>10}  {name}")
    total = sum(count for name, count in sizes.items() if name not in publication.artifact.manifest.second_names)
    log(f"{root}: {len(sizes)} files, {format_size(total)}, proven and ready for {to}")
    for line in unloadable_precisions(publication.artifact) if demo else ():
        log(line)
    if dry_run:
        return
    if repository is None:
        with whole_directory(Path(to), force, inputs) as directory:
            write(publication, directory, signed)
        log(f"{to} is ready. Check it: qwen3vl-export verify-artifact {to}")
        if demo:
            log(f"Ask it in a browser: python -m http.server --directory {to}, then open http://localhost:8000/")
        return
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent, UPLOADS)
    with workspace(parent, UPLOADS) as folder:
        content = folder / "content"
        content.mkdir()
        write(publication, content, signed, refer=True)
        log(f"published: {upload(content, repository, private)}")


def write(publication: Publication, directory: Path, signed: bool, refer: bool = False) -> None:
    """Write every file of a publication into a directory.

    Args:
        refer: link to the artifact's files instead of copying them.
    """
    names = publication.artifact.manifest.second_names
    for name, source in sorted(publication.files.items(), key=lambda item: item[0] in names):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if refer:
            target.symlink_to(source.resolve())
        elif name in names:
            link(directory / names[name], target)
        else:
            shutil.copyfile(source, target)
    for name, data in publication.generated.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if signed:
        sign(directory)


def upload(folder: Path, repository: Repository, private: bool) -> str:
    """Make a folder the whole content of the repository's main branch, in one commit; returns the commit's address.

    Raises:
        PublishError: no permission, no network, or the Hub refused.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(repository.name, "Publish again: what has arrived is not sent twice"):
        api.create_repo(repository.name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository.name,
            folder_path=folder,
            delete_patterns="*",  # files of an earlier publication that this one does not have
            commit_message="Publish an artifact with its proof",
        )
    return str(commit.commit_url)


def fetch(source: str, out: Path | None = None, force: bool = False, log: Log = print) -> Path:
    """Get a published artifact, whole and checked.

    Args:
        source: `hf://org/name[@revision]`, or a directory.
        out: directory to write; defaults to `artifacts/<name>`.
        force: replace an artifact that is already there.

    Returns:
        The directory.

    Raises:
        Qwen3VLExportError: it cannot be reached, or a file in it is wrong; nothing is written.
    """
    repository = Repository.parse(source) if source.startswith(SCHEME) else None
    if repository is None and not Path(source).is_dir():
        raise PublishError(f"{source}: no such directory", f"Give a directory, or {SCHEME}OWNER/NAME")
    name = repository.name.split("/")[1] if repository else Path(source).resolve().name
    out = out or Path("artifacts") / name
    check_output(out, force, () if repository else [Path(source)])
    published = download(repository) if repository else Path(source)
    if out.resolve().is_relative_to(published.resolve()):
        raise PublishError(f"{out}: lies inside {source}", "Choose another --out")
    if not (published / STATEMENT).is_file():
        raise PublishError(f"{source}: has no {STATEMENT}", "It was not published by qwen3vl-export publish")
    open_artifact(published, check=False)  # before a copy follows links
    check_strangers(published)
    with whole_directory(out, force, [published]) as directory:
        ignored = shutil.ignore_patterns(*NOT_FETCHED)
        shutil.copytree(published, directory, dirs_exist_ok=True, ignore=ignored)
        for line in verify_artifact(directory):
            log(line)
        link_second_names(directory)
    log(f"{out} is ready. Ask it: qwen3vl-export run {out} --prompt TEXT")
    return out


def link_second_names(directory: Path) -> None:
    """Store files once that a checked artifact has under two names."""
    manifest = open_artifact(directory, check=False).manifest
    for second, first in manifest.second_names.items():
        if first in manifest.files and manifest.files.get(second) == manifest.files[first]:
            (directory / second).unlink()
            link(directory / first, directory / second)


def download(repository: Repository) -> Path:
    """Download a repository into huggingface_hub's cache; returns its directory. What has arrived is not fetched twice.

    Raises:
        PublishError: no such repository or revision, no permission, or no network.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repository.name, "Fetch again: what has arrived is kept"):
        return Path(snapshot_download(repository.name, revision=repository.revision, etag_timeout=TIMEOUT))


@contextmanager
def hub_errors(name: str, advice: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into one line.

    Raises:
        PublishError: instead of the error it raised.
    """
    from huggingface_hub import errors

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # not its failed attempts; progress stays
    try:
        yield
    except errors.GatedRepoError:
        raise PublishError(f"{name}: access to it must be asked for", "Then: hf auth login") from None
    except errors.RevisionNotFoundError:
        raise PublishError(f"{name}: has no such revision", "Leave it out for the main branch") from None
    except errors.RepositoryNotFoundError:
        raise PublishError(
            f"{name}: the Hub has no such repository, or it is private", "Check the name, or: hf auth login"
        ) from None
    except errors.HFValidationError as error:
        raise PublishError(
            f"{name}: is not the name of a repository ({first_line(error)})", "Write hf://OWNER/NAME"
        ) from None
    except Exception as error:  # which HTTP library raises depends on huggingface_hub's version
        if errno_of(error) in FULL:
            raise SpaceError(f"{name}: disk full", f"Free some space. {advice}") from error
        if isinstance(error, OSError) and error.errno is not None:  # not HfHubHTTPError, which has none
            raise  # of the disk: read-only, not permitted
        raise refusal_of(name, error, advice) from None


def refusal_of(name: str, error: Exception, advice: str) -> PublishError:
    """The error for the Hub's status code, or for a failed connection."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return PublishError(f"{name}: the Hub does not know who you are", "Log in: hf auth login")
    if status == 403:
        return PublishError(f"{name}: you may not write there", "Log in as somebody who may: hf auth login")
    if status is not None:
        return PublishError(f"{name}: the Hub answered {status} ({first_line(error)})", advice)
    return PublishError(f"{name}: the connection to the Hub failed ({first_line(error)})", advice)
