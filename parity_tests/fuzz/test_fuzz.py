"""The inputs of the first seed, a bounded number of each kind; and that what must not happen would be seen."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from qwen3vl_export.errors import InputError

from . import worker
from .campaign import make_inputs, run_campaign
from .guard import Guard
from .targets import TARGETS
from .targets.base import Target
from .worker import REFUSED, WORKS, Worker, try_input


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_works_or_ends_in_one_line(target: str, tiny_artifact: Path, tmp_path: Path) -> None:
    inputs = itertools.islice(make_inputs(target, tiny_artifact, seed=0), TARGETS[target].inputs)
    report = run_campaign(target, tiny_artifact, inputs, tmp_path)
    print(report)
    assert not report.failures, "\n".join(map(str, report.failures))
    assert report.kinds[REFUSED] and report.kinds[WORKS], report  # neither all valid nor all refused at once


@pytest.mark.parametrize("target", TARGETS)
def test_an_input_is_a_function_of_its_seed(target: str, tiny_artifact: Path) -> None:
    first, second = (TARGETS[target](tiny_artifact) for _ in range(2))
    second.make(Random("what came before does not matter"))
    assert [first.make(Random(seed)) for seed in range(30)] == [second.make(Random(seed)) for seed in range(30)]


def fail(error: BaseException) -> Callable[[bytes], object]:
    def feed(data: bytes) -> None:
        raise error

    return feed


class Silent(Guard):
    """Judges without watching: a hook of this process could not be removed again."""

    def attempt(self, event: str, *arguments: Any) -> None:
        """What happens in place of an event."""
        with suppress(OSError):  # refused, as it would be without a network
            self._audit(event, arguments)


@pytest.fixture
def guard(tmp_path: Path) -> Silent:
    for name in ("box", "outside"):
        (tmp_path / name).mkdir()
    return Silent(tmp_path / "box", tmp_path / "outside")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("no such file", "Check it"), REFUSED),
        (ValueError("a bug"), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(2), "SystemExit"),
        (MemoryError(), "MemoryError"),
        (InputError(""), "0 lines"),
    ],
)
def test_only_an_error_of_ours_is_a_refusal(error: BaseException, kind: str, guard: Silent) -> None:
    assert kind in try_input(fail(error), b"", guard).kind


def test_growth_is_reported(guard: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "megabytes", 20)
    peak = int(worker.peak_megabytes() - worker.resident_megabytes()) + 60
    outcome = try_input(lambda data: bytearray(os.urandom(1 << 20)) * peak, b"", guard)
    assert outcome.fails and "memory" in outcome.kind


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("outside/x", "w", os.O_WRONLY | os.O_CREAT)),
        ("open", ("box/../outside/secret.json", "r", os.O_RDONLY)),
        ("open", ("box/link/secret.json", "r", os.O_RDONLY)),
        ("os.remove", ("outside/x", -1)),
        ("os.rename", ("box/x", "outside/x", -1, -1)),
        ("os.rename", ("outside/x", "box/x", -1, -1)),
        ("os.symlink", ("x", "outside/x", -1)),
        ("shutil.rmtree", ("outside", None)),
        ("subprocess.Popen", ("id", ["id"], None, None)),
        ("socket.connect", (None, ("127.0.0.1", 80))),
        ("socket.connect", (None, ("::ffff:10.0.0.1", 80, 0, 0))),
        ("socket.connect", (None, ("64:ff9b::7f00:1", 80, 0, 0))),
    ],
)
def test_what_is_outside_is_out_of_reach(
    event: str, arguments: tuple[Any, ...], guard: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box" / "link").symlink_to(tmp_path / "outside")
    outcome = try_input(lambda data: guard.attempt(event, *arguments), b"", guard)
    assert outcome.fails and guard.escapes


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("box/x", "w", os.O_WRONLY | os.O_CREAT)),
        ("open", (os.devnull, "w", os.O_WRONLY)),
        ("open", ("/etc/hosts", "r", os.O_RDONLY)),
        ("os.remove", ("box/x", -1)),
        ("os.remove", ("box/link", -1)),
        ("socket.connect", (None, ("8.8.8.8", 80))),
        ("socket.getaddrinfo", ("example.org", 80, 0, 0, 0)),
    ],
)
def test_what_is_inside_is_not_reported(
    event: str, arguments: tuple[Any, ...], guard: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box" / "link").symlink_to(tmp_path / "outside")
    assert try_input(lambda data: guard.attempt(event, *arguments), b"", guard).kind == WORKS


@pytest.mark.parametrize("name", ["127.1", "0x7f.1", "::1", "8.8.8.8"])
def test_addresses_are_not_names(name: str, guard: Silent) -> None:
    guard._audit("socket.getaddrinfo", (name, 80, 0, 0, 0))
    with pytest.raises(socket.gaierror):
        guard._audit("socket.getaddrinfo", (f"{name}.example", 80, 0, 0, 0))


class Misbehaving(Target):
    name, inputs = "misbehaving", 0

    def make(self, random: Random) -> bytes:
        return b""

    def open(self, box: Path) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            if data == b"loop":
                while True:
                    pass
            if data == b"abort":
                os.abort()
            if data == b"write":
                (box.parent / "escaped").write_bytes(data)

        return read


def test_what_does_not_end_or_dies_is_the_outcome_and_the_next_input_is_tried(tmp_path: Path) -> None:
    with Worker(Misbehaving, tmp_path) as process:
        assert "CPU time" in process.try_input(b"loop").kind
        assert process.try_input(b"").kind == WORKS
        assert "SIGABRT" in process.try_input(b"abort").kind
        assert "outside its directory" in process.try_input(b"write").kind
        assert process.try_input(b"").kind == WORKS
