"""To the Hub and back: one commit or nothing, resumed where it broke, and no token in sight."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen3vl_export.artifact import open_artifact

from ...fixtures.commands import CommandResult, assert_one_line, end, start
from ...fixtures.hub_server import Hub, running_hub
from ...fixtures.paths import ROOT
from ...fixtures.spoiling import WEIGHTS

# Read by every Python that starts with its directory on the path. huggingface_hub tries five times again, and waits 23
# seconds in all.
HASTY = "import time\n\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(seconds / 20)\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Callable[..., CommandResult]:
    """The command in a process that knows only this Hub, and for which waiting passes quickly; `token` is that of its
    user."""
    (tmp_path / "hasty").mkdir()
    (tmp_path / "hasty" / "sitecustomize.py").write_text(HASTY)
    path = os.pathsep.join([str(tmp_path / "hasty"), str(ROOT)])

    def call(*arguments: object, token: str = "writer") -> CommandResult:
        known = {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        return end(start(*map(str, arguments), env={"PYTHONPATH": path, **plain, **home, **known}))

    return call


def test_the_hub_gets_everything_in_one_commit(
    proven: Path, hub: Hub, command: Callable[..., CommandResult], tmp_path: Path
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
    proven: Path, hub: Hub, command: Callable[..., CommandResult]
) -> None:
    command("publish", proven, "--to", "hf://me/tiny")
    hub.repositories["me/tiny"]["old.bin"] = b"old"
    hub.requests.clear()
    assert command("publish", proven, "--to", "hf://me/tiny").exit_code == 0
    assert not [request for request in hub.requests if request.startswith("PUT")]
    assert "old.bin" not in hub.repositories["me/tiny"]
    assert ".gitattributes" in hub.repositories["me/tiny"]


def test_a_dry_run_sends_nothing(proven: Path, hub: Hub, command: Callable[..., CommandResult]) -> None:
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
def test_no_permission(
    token: str, expected: str, proven: Path, hub: Hub, command: Callable[..., CommandResult]
) -> None:
    result = command("publish", proven, "--to", "hf://me/tiny", token=token)
    assert_one_line(result, expected)
    assert hub.repositories == {}


def test_weights_that_precisions_share_are_stored_and_fetched_once(
    proven_precisions: Path, hub: Hub, command: Callable[..., CommandResult], tmp_path: Path
) -> None:
    shared = open_artifact(proven_precisions).manifest.second_names
    assert command("publish", proven_precisions, "--to", "hf://me/tiny").exit_code == 0
    assert set(shared) <= set(hub.repositories["me/tiny"])
    hub.requests.clear()
    assert command("fetch", "hf://me/tiny", "--out", tmp_path / "fetched").exit_code == 0
    second = "onnx/vision_encoder_q4.onnx_data"
    got = [request for request in hub.requests if request.endswith((f"/{second}", f"/{shared[second]}"))]
    assert len([request for request in got if request.startswith("GET")]) == 1, got
    assert (tmp_path / "fetched" / second).samefile(tmp_path / "fetched" / shared[second])


@pytest.mark.parametrize("where", ["PUT /lfs", "POST /api/models/me/tiny/commit"])
def test_a_broken_upload_leaves_the_repository_as_it_was_and_goes_on(
    where: str, proven: Path, hub: Hub, command: Callable[..., CommandResult]
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
    proven: Path, hub: Hub, command: Callable[..., CommandResult], tmp_path: Path
) -> None:
    command("publish", proven, "--to", "hf://me/tiny")
    hub.break_at = f"GET /me/tiny/resolve/{hub.sha('me/tiny')}/{WEIGHTS}"
    result = command("fetch", "hf://me/tiny", "--out", tmp_path / "out")
    assert_one_line(result, "me/tiny: the connection to the Hub failed")
    assert not (tmp_path / "out").exists()
    hub.break_at = ""
    assert command("fetch", "hf://me/tiny", "--out", tmp_path / "out").exit_code == 0


def test_a_file_tampered_with_on_the_hub_is_named(
    proven: Path, hub: Hub, command: Callable[..., CommandResult], tmp_path: Path
) -> None:
    command("publish", proven, "--to", "hf://me/tiny")
    hub.repositories["me/tiny"][WEIGHTS] += b"!"
    assert_one_line(command("fetch", "hf://me/tiny", "--out", tmp_path / "out"), f"{WEIGHTS}: was altered")
    assert not (tmp_path / "out").exists()


def test_what_the_hub_does_not_have(hub: Hub, command: Callable[..., CommandResult], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert_one_line(command("fetch", "hf://me/nothing", *out), "me/nothing: the Hub has no such repository")
    hub.repositories["me/tiny"] = {"README.md": b""}
    assert_one_line(command("fetch", "hf://me/tiny@v9", *out), "me/tiny: has no such revision")
    hub.url = "http://127.0.0.1:9"  # nobody listens there
    assert_one_line(command("fetch", "hf://me/other", *out), "me/other: the connection to the Hub failed")


def test_a_token_is_never_printed(proven: Path, hub: Hub, command: Callable[..., CommandResult]) -> None:
    hub.break_at = "POST /api/models/me/tiny/commit"
    results = [command("publish", proven, "--to", "hf://me/tiny", token=token) for token in ("writer", "hf_secret")]
    assert all(result.exit_code for result in results)
    assert not any(token in one.stdout + one.stderr for one in results for token in ("writer", "hf_secret"))
