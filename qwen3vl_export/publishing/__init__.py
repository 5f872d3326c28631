"""`publish` and `fetch`: a publication to a directory or to the Hugging Face Hub, and back.

An upload is one commit: files go up first and become visible together, so that a broken upload leaves the repository
as it was, and the next try sends only what has not arrived. A download lands in huggingface_hub's cache, which resumes,
and becomes a directory only when everything in it is as manifest, evidence and provenance say. Credentials are
huggingface_hub's own; this module never sees one.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..artifact import STATEMENT, open_artifact
from ..console import format_size
from ..errors import PublishError, first_line
from ..hub import TIMEOUT
from ..output import link, whole_directory
from ..replaceable import check_output
from .provenance import sign
from .publication import Publication, prepare
from .verify_artifact import verify_artifact

Log = Callable[[str], None]
SCHEME = "hf://"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub: `hf://org/name`, or `hf://org/name@revision`."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read `hf://org/name[@revision]`.

        Raises:
            PublishError: it is none.
        """
        name, _, revision = text.removeprefix(SCHEME).partition("@")
        bad = not REPOSITORY.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", ".", "-"))
        if bad or max(map(len, name.split("/"))) > 96:
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
        private: a repository that has to be made is private.
        dry_run: check everything and say what would be published where; write and send nothing.
        signed: sign the provenance with sigstore.
        force: replace an artifact that is already there.
        demo: also the page that asks the artifact in a browser.

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
    if dry_run:
        return
    if repository is None:
        with whole_directory(Path(to), force, inputs) as directory:
            write(publication, directory, signed)
        log(f"{to} is ready. Check it: qwen3vl-export verify-artifact {to}")
        if demo:
            log(f"Ask it in a browser: python -m http.server --directory {to}, then open http://localhost:8000/")
        return
    with tempfile.TemporaryDirectory(prefix="qwen3vl-export-") as folder:
        write(publication, Path(folder), signed, refer=True)
        log(f"published: {upload(Path(folder), repository, private)}")


def write(publication: Publication, directory: Path, signed: bool, refer: bool = False) -> None:
    """Every file of a publication into a directory.

    Args:
        refer: refer to the artifact's files instead of copying them.
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
    for name, data in publication.made.items():
        (directory / name).write_bytes(data)
    if signed:
        sign(directory)


def upload(folder: Path, repository: Repository, private: bool) -> str:
    """The folder as the whole content of the repository's main branch, in one commit; returns the commit's address.

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
            delete_patterns="*",  # what an earlier publication had and this one has not
            commit_message="Publish an artifact with its proof",
        )
    return str(commit.commit_url)


def fetch(source: str, out: Path | None = None, force: bool = False, log: Log = print) -> Path:
    """Get a published artifact, whole and checked.

    Args:
        source: `hf://org/name[@revision]`, or a directory.
        out: directory to write; `artifacts/<name>` unless given.
        force: replace an artifact that is already there.

    Returns:
        The directory.

    Raises:
        Qwen3VLExportError: it cannot be reached, or something in it is not as it should be; nothing is written then.
    """
    repository = Repository.parse(source) if source.startswith(SCHEME) else None
    if repository is None and not Path(source).is_dir():
        raise PublishError(f"{source}: no such directory", f"Give a directory, or {SCHEME}OWNER/NAME")
    name = repository.name.split("/")[1] if repository else Path(source).resolve().name
    out = out or Path("artifacts") / name
    check_output(out, force, () if repository else [Path(source)])
    found = download(repository) if repository else Path(source)
    if out.resolve().is_relative_to(found.resolve()):
        raise PublishError(f"{out}: lies inside {source}", "Choose another --out")
    with whole_directory(out, force, [found]) as directory:
        ignored = shutil.ignore_patterns(".git*", ".cache")
        shutil.copytree(found, directory, dirs_exist_ok=True, ignore=ignored)
        if not (directory / STATEMENT).is_file():
            raise PublishError(f"{source}: has no {STATEMENT}", "It was not published by qwen3vl-export publish")
        for line in verify_artifact(directory):
            log(line)
        share(directory)
    log(f"{out} is ready. Ask it: qwen3vl-export run {out} --prompt TEXT")
    return out


def share(directory: Path) -> None:
    """Store once what a checked artifact has under two names."""
    manifest = open_artifact(directory, check=False).manifest
    for second, first in manifest.second_names.items():
        if first in manifest.files and manifest.files.get(second) == manifest.files[first]:
            (directory / second).unlink()
            link(directory / first, directory / second)


def download(repository: Repository) -> Path:
    """The repository's files in huggingface_hub's cache; what has arrived is not fetched twice.

    Raises:
        PublishError: no such repository or revision, no permission, or no network.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repository.name, "Fetch again: what has arrived is kept"):
        return Path(snapshot_download(repository.name, revision=repository.revision, etag_timeout=TIMEOUT))


@contextmanager
def hub_errors(name: str, again: str) -> Iterator[None]:
    """Say in one line what huggingface_hub ran into.

    Raises:
        PublishError: in place of whatever it raised.
    """
    from huggingface_hub import errors

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # not its tries before the last; progress stays
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
    except OSError as error:  # HfHubHTTPError and the HTTP library's errors among them
        if error.errno is not None:
            raise  # the disk's: full, read-only, not permitted
        raise refusal(name, error, again) from None
    except Exception as error:  # which HTTP library raises depends on huggingface_hub's version
        raise refusal(name, error, again) from None


def refusal(name: str, error: Exception, again: str) -> PublishError:
    """What the Hub's status code means, else that it was out of reach."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return PublishError(f"{name}: the Hub does not know who you are", "Log in: hf auth login")
    if status == 403:
        return PublishError(f"{name}: you may not write there", "Log in as somebody who may: hf auth login")
    if status is not None:
        return PublishError(f"{name}: the Hub answered {status} ({first_line(error)})", again)
    return PublishError(f"{name}: the connection to the Hub failed ({first_line(error)})", again)
