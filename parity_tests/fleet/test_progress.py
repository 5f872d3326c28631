"""What a person and what a machine is told while a fleet runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qwen3vl_export.fleet import progress
from qwen3vl_export.fleet.events import Events

BUILD = {"kind": "build", "recipe": "tiny", "task": "artifacts/tiny-0"}
PART = {"kind": "verify", "recipe": "tiny", "task": "parts/tiny-0.json"}


def happen(events: Events) -> None:
    """One of each event."""
    events("run-started", tasks={"build": 1, "verify": 2}, workers=2)
    events("workers", count=2, new=["tcp://a", "tcp://b"], lost=[])
    events("task-started", **BUILD)
    events("task-moved", **BUILD, worker="tcp://a", message="disk full on tcp://a")
    events("task-started", **BUILD)
    events("task-ended", **BUILD, status="made", seconds=12.34, notices=["store: x is back"])
    events("workers", count=1, new=[], lost=["tcp://a"])
    events("scheduler-lost", scheduler="tcp://s")
    events("scheduler-back", scheduler="tcp://s")
    events("task-started", **PART)
    events("task-ended", **PART, status="there", seconds=0.0)
    events("task-ended", **PART, status="failed", seconds=1.0, message="KeyError: [/]")


def test_a_pipe_gets_a_line_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.ProgressDisplay({"build": 1, "verify": 2}) as shown:
        happen(Events(None, shown))
    assert capsys.readouterr().out.splitlines() == [
        "workers: 2",
        "build tiny: goes to another worker: disk full on tcp://a",
        "[1/3] build tiny: 12.3 s (store: x is back)",
        "workers: 1, lost tcp://a",
        "scheduler: lost",
        "scheduler: back",
        "[2/3] verify tiny: was there",
        "[3/3] verify tiny: FAILED: KeyError: [/]",
    ]


def test_a_terminal_gets_bars_and_only_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: console)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with progress.ProgressDisplay({"build": 1, "verify": 2}) as shown:
        happen(Events(None, shown))
        shown.bars.refresh()
        bars = screen.getvalue()
    assert "builds" in bars and "1/1" in bars
    assert "shards" in bars and "2/2" in bars
    assert "disk full on tcp://a" in bars and "scheduler: lost" in bars and "KeyError: [/]" in bars
    assert "12.3 s" not in bars


def test_the_log_is_a_line_of_json_for_each_event(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    events = Events(tmp_path / "log.jsonl", heard.append)
    happen(events)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines == heard == [json.loads(line) for line in events.text().splitlines()]
    assert {line["run"] for line in lines} == {events.run}
    assert all({"time", "event"} <= set(line) for line in lines)
    assert lines[3]["message"] == "disk full on tcp://a"
