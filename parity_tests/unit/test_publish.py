"""`publish`, `fetch` and `verify-artifact`: what goes out, what comes back, and what is refused in one line."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from qwen3vl_export.artifact import JUNIT, MANIFEST, PARITY, open_artifact
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.publishing.publication import prepare

from ..faults import seal
from ..harness import HTML
from ..proven import prove
from .hub_server import Hub, running_hub
from .test_cli import ROOT, Ended, assert_one_line, end, invoke, start

WEIGHTS = "onnx/decoder_model_merged.onnx_data"


@pytest.fixture(scope="module")
def proven(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prove(tiny_artifact, tmp_path_factory.mktemp("proven") / "tiny")


@pytest.fixture
def copy(proven: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(proven, tmp_path / "tiny"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Callable[..., Ended]:
    """The command in a process that knows only this Hub; `token` is that of its user."""

    def call(*arguments: object, token: str = "writer") -> Ended:
        known = {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        return end(start(*map(str, arguments), env={**plain, **home, **known}))

    return call


def edit(root: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((root / name).read_text("utf-8"))
    change(values)
    (root / name).write_text(json.dumps(values), "utf-8")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


# To a directory and back.


def test_a_directory_holds_everything_and_comes_back_whole(proven: Path, tmp_path: Path) -> None:
    published, fetched = tmp_path / "published", tmp_path / "fetched"
    assert invoke("publish", str(proven), "--to", str(published)).exit_code == 0
    names = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    listed = set(open_artifact(proven).manifest.files)
    made = {"README.md", "parity.png", "sbom.cdx.json", "provenance.intoto.json"}
    assert names == listed | made | {MANIFEST, PARITY, JUNIT, HTML}
    assert "LICENSE" in names
    subjects = json.loads((published / "provenance.intoto.json").read_text())["subject"]
    assert {one["name"]: one["digest"]["sha256"] for one in subjects} == {
        name: sha256_file(published / name) for name in names - {"provenance.intoto.json"}
    }
    result = invoke("fetch", str(published), "--out", str(fetched))
    assert result.exit_code == 0, result
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()} == names
    checked = invoke("verify-artifact", str(fetched))
    assert [line.split()[0] for line in checked.stdout.splitlines()] == ["files", "contract", "parity", "provenance"]


def test_equal_artifacts_give_equal_publications(proven: Path, copy: Path) -> None:
    assert prepare(proven).made == prepare(copy).made


def test_an_artifact_that_was_not_published_can_be_checked(proven: Path) -> None:
    result = invoke("verify-artifact", str(proven))
    assert result.exit_code == 0
    assert "provenance  none: this artifact was not published" in result.stdout


def test_the_bill_of_materials_is_valid_cyclonedx(proven: Path) -> None:
    text = prepare(proven).made["sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    source = document["components"][0]
    assert source["type"] == "machine-learning-model"
    assert {file["name"] for file in source["components"]} >= {"config.json", "model.safetensors"}
    assert {"torch", "onnx"} <= {component["name"] for component in document["components"]}


def test_the_card_says_what_was_measured(proven: Path) -> None:
    card = prepare(proven, "me/tiny").made["README.md"].decode()
    evidence = json.loads((proven / PARITY).read_text("utf-8"))
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "tags: [onnx, onnxruntime, onnxruntime-genai, transformers.js, qwen3_vl]\n" in card
    assert f"### onnxruntime {open_artifact(proven).manifest.min_onnxruntime} or newer\n" in card
    assert f"{len(evidence['checks'])} of {evidence['planned']} checks" in card
    assert open_artifact(proven).manifest_sha256 in card
    assert card.count("me/tiny") >= 5 and "OWNER" not in card


# What is refused.

SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no parity": (lambda root: (root / PARITY).unlink(), "has no parity.json. Prove it: qwen3vl-export verify"),
    "not a report": (lambda root: (root / PARITY).write_text("[]"), "is not a parity report"),
    "failed": (
        lambda root: edit(root, PARITY, lambda values: values["checks"][0].update(passed=False)),
        "checks failed, prompt[minimum-64x64] first",
    ),
    "incomplete": (
        lambda root: edit(root, PARITY, lambda values: values.update(planned=99)),
        "of 99 checks were carried out",
    ),
    "compared nothing": (
        lambda root: edit(root, PARITY, lambda values: values.update(planned=0, checks=[])),
        "0 of 0 checks were carried out",
    ),
    "fewer cases than the recipe asks for": (
        lambda root: edit(root, PARITY, lambda values: values.update(matrix="quick")) or ask_for_standard(root),
        "is of the quick matrix, the recipe asks for standard",
    ),
    "another manifest": (
        lambda root: edit(root, PARITY, lambda values: values.update(manifest_sha256="0" * 64)),
        "is about another manifest.json",
    ),
    "edited after parity": (lambda root: append(root / WEIGHTS), f"{WEIGHTS}: was altered, its sha256 differs"),
    "rebuilt after parity": (lambda root: seal_again(root), "is about another manifest.json"),
    "file missing": (lambda root: (root / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
}


def ask_for_standard(root: Path) -> None:
    edit(root, MANIFEST, lambda values: values["recipe"]["parity"].update(matrix="standard"))
    edit(root, PARITY, lambda values: values.update(manifest_sha256=sha256_file(root / MANIFEST)))


def seal_again(root: Path) -> None:
    append(root / WEIGHTS)
    seal(open_artifact(root, check=False), [root / WEIGHTS])


@pytest.mark.parametrize("spoil, expected", SPOILED.values(), ids=SPOILED)
def test_an_unproven_artifact_is_refused(
    spoil: Callable[[Path], object], expected: str, copy: Path, tmp_path: Path
) -> None:
    spoil(copy)
    result = invoke("publish", str(copy), "--to", str(tmp_path / "out"))
    assert result.exit_code in (1, 2)
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def without_licence(root: Path) -> None:
    manifest = open_artifact(root, check=False).manifest
    (root / "LICENSE").unlink()
    files = {name: record for name, record in manifest.files.items() if name != "LICENSE"}
    (root / MANIFEST).write_text(replace(manifest, files=files).to_json(), "utf-8")
    edit(root, PARITY, lambda values: values.update(manifest_sha256=sha256_file(root / MANIFEST)))


def test_a_licence_is_needed_and_can_be_given(copy: Path, tmp_path: Path) -> None:
    without_licence(copy)
    out = tmp_path / "out"
    assert_one_line(invoke("publish", str(copy), "--to", str(out)), "no LICENSE, and a model is not published without")
    assert_one_line(invoke("publish", str(copy), "--to", str(out), "--license", "nowhere"), "nowhere: no LICENSE")
    assert_one_line(invoke("publish", str(copy), "--to", str(out), "--license", str(copy / WEIGHTS)), "is not a text")
    mine = tmp_path / "mine"
    mine.write_text("MIT License\n")
    assert invoke("publish", str(copy), "--to", str(out), "--license", str(mine)).exit_code == 0
    assert (out / "LICENSE").read_text() == "MIT License\n"
    assert "license: mit\n" in (out / "README.md").read_text()
    assert invoke("verify-artifact", str(out)).exit_code == 0


def test_build_stages_are_not_published(copy: Path, tmp_path: Path) -> None:
    manifest = open_artifact(copy, check=False).manifest
    (copy / "stages").mkdir()
    (copy / "stages" / "x.onnx").touch()
    record = {
        "stages/x.onnx": replace(manifest.files[WEIGHTS], bytes=0, sha256=sha256_file(copy / "stages" / "x.onnx"))
    }
    (copy / MANIFEST).write_text(replace(manifest, files={**manifest.files, **record}).to_json(), "utf-8")
    edit(copy, PARITY, lambda values: values.update(manifest_sha256=sha256_file(copy / MANIFEST)))
    assert_one_line(invoke("publish", str(copy), "--to", str(tmp_path / "out")), "holds every build stage")


@pytest.mark.parametrize(
    "target", ["hf://", "hf://tiny", "hf://me//tiny", "hf://me/a b", "hf://me/tiny.git", "hf://me/a--b", "hf://../x"]
)
def test_a_name_that_cannot_be_one_is_refused(target: str, proven: Path) -> None:
    assert_one_line(invoke("publish", str(proven), "--to", target), f"{target}: is not the name of a repository")
    assert_one_line(invoke("fetch", target), f"{target}: is not the name of a repository")


def test_a_taken_directory_stays_untouched(proven: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert_one_line(invoke("publish", str(proven), "--to", str(out)), "not empty. Choose another directory")
    assert (out / "mine").exists()
    assert invoke("publish", str(proven), "--to", str(out), "--force").exit_code == 0
    assert not (out / "mine").exists()


def test_a_full_disk_leaves_nothing(proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    invoke("publish", str(proven), "--to", str(tmp_path / "published"))
    monkeypatch.setattr("shutil.copyfile", full)
    assert_one_line(invoke("publish", str(proven), "--to", str(tmp_path / "out")), "disk full, nothing was written")
    monkeypatch.setattr("shutil.copytree", full)
    result = invoke("fetch", str(tmp_path / "published"), "--out", str(tmp_path / "out"))
    assert_one_line(result, "disk full, nothing was written")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


@pytest.mark.parametrize("name", [WEIGHTS, "README.md", "parity.png", "onnx/vision_encoder.onnx", "LICENSE"])
def test_a_tampered_file_is_named(name: str, proven: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    invoke("publish", str(proven), "--to", str(published))
    append(published / name)
    assert_one_line(invoke("fetch", str(published), "--out", str(tmp_path / "out")), f"{name}: was altered")
    assert_one_line(invoke("verify-artifact", str(published)), f"{name}: was altered")
    assert not (tmp_path / "out").exists()


def test_what_was_not_published_is_not_fetched(proven: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_line(invoke("fetch", str(proven), "--out", str(out)), "has no provenance.intoto.json")
    assert_one_line(invoke("fetch", str(tmp_path / "nowhere")), "no such directory")
    assert not out.exists()


def test_another_contract_is_told(copy: Path) -> None:
    edit(copy, MANIFEST, lambda values: values["graphs"]["decoder_model_merged"]["inputs"].pop("position_ids"))
    assert_one_line(invoke("verify-artifact", str(copy)), "inputs of decoder_model_merged are not those this version")


# To the Hub and back.


def test_the_hub_gets_everything_in_one_commit(
    proven: Path, hub: Hub, command: Callable[..., Ended], tmp_path: Path
) -> None:
    result = command("publish", proven, "--to", "hf://me/tiny", "--private")
    assert result.exit_code == 0, result
    assert hub.commits == {"me/tiny": 1} and hub.private == {"me/tiny"}
    held = hub.repositories["me/tiny"]
    assert held[WEIGHTS] == (proven / WEIGHTS).read_bytes()
    assert b"me/tiny" in held["README.md"]
    fetched = tmp_path / "fetched"
    result = command("fetch", "hf://me/tiny", "--out", fetched)
    assert result.exit_code == 0, result
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()} == set(held) - {
        ".gitattributes"
    }


def test_a_second_publication_sends_nothing_twice_and_drops_what_is_gone(
    proven: Path, hub: Hub, command: Callable[..., Ended]
) -> None:
    command("publish", proven, "--to", "hf://me/tiny")
    hub.repositories["me/tiny"]["old.bin"] = b"old"
    hub.requests.clear()
    assert command("publish", proven, "--to", "hf://me/tiny").exit_code == 0
    assert not [request for request in hub.requests if request.startswith("PUT")]
    assert "old.bin" not in hub.repositories["me/tiny"]
    assert ".gitattributes" in hub.repositories["me/tiny"]


def test_a_dry_run_sends_nothing(proven: Path, hub: Hub, command: Callable[..., Ended]) -> None:
    result = command("publish", proven, "--to", "hf://me/tiny", "--dry-run")
    assert result.exit_code == 0
    assert WEIGHTS in result.stdout and "provenance.intoto.json" in result.stdout
    assert hub.requests == []


@pytest.mark.parametrize(
    "token, expected",
    [
        ("reader", "me/tiny: you may not write there. Log in"),
        ("", "me/tiny: the Hub does not know who you are. Log in"),
    ],
)
def test_no_permission(token: str, expected: str, proven: Path, hub: Hub, command: Callable[..., Ended]) -> None:
    result = command("publish", proven, "--to", "hf://me/tiny", token=token)
    assert_one_line(result, expected)
    assert hub.repositories == {}


@pytest.mark.parametrize("where", ["PUT /lfs", "POST /api/models/me/tiny/commit"])
def test_a_broken_upload_leaves_the_repository_as_it_was_and_goes_on(
    where: str, proven: Path, hub: Hub, command: Callable[..., Ended]
) -> None:
    hub.repositories["me/tiny"] = before = {"README.md": b"before"}
    hub.break_at = where
    assert_one_line(command("publish", proven, "--to", "hf://me/tiny"), "me/tiny: the connection to the Hub failed")
    assert hub.repositories["me/tiny"] == before
    hub.break_at = ""
    hub.requests.clear()
    arrived = set(hub.blobs)
    assert command("publish", proven, "--to", "hf://me/tiny").exit_code == 0
    assert not {request.removeprefix("PUT /lfs/") for request in hub.requests} & arrived
    assert hub.repositories["me/tiny"][WEIGHTS] == (proven / WEIGHTS).read_bytes()


def test_a_broken_download_writes_nothing_and_goes_on(
    proven: Path, hub: Hub, command: Callable[..., Ended], tmp_path: Path
) -> None:
    command("publish", proven, "--to", "hf://me/tiny")
    hub.break_at = f"GET /me/tiny/resolve/{hub.sha('me/tiny')}/{WEIGHTS}"
    result = command("fetch", "hf://me/tiny", "--out", tmp_path / "out")
    assert_one_line(result, "me/tiny: the connection to the Hub failed")
    assert not (tmp_path / "out").exists()
    hub.break_at = ""
    assert command("fetch", "hf://me/tiny", "--out", tmp_path / "out").exit_code == 0


def test_a_file_tampered_with_on_the_hub_is_named(
    proven: Path, hub: Hub, command: Callable[..., Ended], tmp_path: Path
) -> None:
    command("publish", proven, "--to", "hf://me/tiny")
    hub.repositories["me/tiny"][WEIGHTS] += b"!"
    assert_one_line(command("fetch", "hf://me/tiny", "--out", tmp_path / "out"), f"{WEIGHTS}: was altered")
    assert not (tmp_path / "out").exists()


def test_what_the_hub_does_not_have(hub: Hub, command: Callable[..., Ended]) -> None:
    assert_one_line(command("fetch", "hf://me/nothing"), "me/nothing: the Hub has no such repository")
    hub.repositories["me/tiny"] = {"README.md": b""}
    assert_one_line(command("fetch", "hf://me/tiny@v9"), "me/tiny: has no such revision")
    hub.url = "http://127.0.0.1:9"  # nobody listens there
    assert_one_line(command("fetch", "hf://me/other"), "me/other: the connection to the Hub failed")


def test_a_token_is_never_printed(proven: Path, hub: Hub, command: Callable[..., Ended]) -> None:
    hub.break_at = "POST /api/models/me/tiny/commit"
    results = [command("publish", proven, "--to", "hf://me/tiny", token=token) for token in ("writer", "hf_secret")]
    assert all(result.exit_code for result in results)
    assert not any(token in one.stdout + one.stderr for one in results for token in ("writer", "hf_secret"))


# Signatures: sigstore's, if it is there.

FAKE_SIGSTORE = """\
import pathlib, sys
arguments = sys.argv[1:]
bundle = pathlib.Path(arguments[arguments.index("--bundle") + 1])
statement = pathlib.Path(arguments[-1]).read_text()
if arguments[0] == "sign":
    bundle.write_text(statement)
elif bundle.read_text() != statement or "me@example.org" not in arguments:
    sys.exit("FAIL: not the one who signed")
"""


def test_signing_is_left_to_sigstore(proven: Path, tmp_path: Path) -> None:
    (tmp_path / "sigstore").mkdir()
    (tmp_path / "sigstore" / "__init__.py").touch()
    (tmp_path / "sigstore" / "__main__.py").write_text(FAKE_SIGSTORE)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    out = tmp_path / "out"
    assert end(start("publish", str(proven), "--to", str(out), "--sign", env=environment)).exit_code == 0
    good = ["verify-artifact", str(out), "--identity", "me@example.org", "--issuer", "https://example.org"]
    result = end(start(*good, env=environment))
    assert "signature   me@example.org, by https://example.org" in result.stdout, result
    assert "check it with --identity" in end(start("verify-artifact", str(out), env=environment)).stdout
    other = [argument.replace("me@", "you@") for argument in good]
    assert_one_line(end(start(*other, env=environment)), "sigstore verify failed (FAIL: not the one who signed)")


def test_signatures_that_cannot_be_checked(proven: Path, tmp_path: Path) -> None:
    if shutil.which("sigstore"):
        pytest.fail("these tests want an environment without sigstore")
    assert_one_line(invoke("publish", str(proven), "--to", str(tmp_path / "out"), "--sign"), "which is not installed")
    signer = ("--identity", "me@example.org", "--issuer", "https://example.org")
    assert_one_line(invoke("verify-artifact", str(proven), *signer), "is not signed. Publish it with --sign")
    assert_one_line(invoke("verify-artifact", str(proven), *signer[:2]), "Give --identity and --issuer")
