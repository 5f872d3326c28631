"""Events of a fleet: a line of JSON each, and a call to each listener.

    {"time": "…Z", "run": "…", "event": "task-ended", "task": "artifacts/tiny-…", "status": "made", "seconds": 12.1, …}

Events: run-started, workers, task-started, task-moved, task-ended, scheduler-lost, scheduler-back, run-ended. Knows
nothing about their meaning.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Events:
    """Passes every event to listeners and stores its line.

    Args:
        path: file to which lines are appended at once; None keeps them in memory only.
    """

    def __init__(self, path: Path | None = None, *listeners: Listener) -> None:
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
        self.path = path
        self.listeners = list(listeners)
        self.lines: list[str] = []

    def __call__(self, event: str, **values: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        record: Event = {"time": time, "run": self.run, "event": event, **values}
        line = json.dumps(record, ensure_ascii=False, default=str)
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        for listener in self.listeners:
            listener(record)

    def text(self) -> bytes:
        return "".join(line + "\n" for line in self.lines).encode()
