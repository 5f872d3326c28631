"""What happens in a fleet, as events: a line of JSON each for machines, and a call for whoever shows it.

    {"time": "…Z", "run": "…", "event": "task-ended", "task": "artifacts/tiny-…", "status": "made", "seconds": 12.1, …}

Events: run-started, workers, task-started, task-moved, task-ended, scheduler-lost, scheduler-back, run-ended. Knows
none of their meaning.
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
    """Hands every event to listeners and keeps its line.

    Args:
        path: file to which lines are appended as they come; None keeps them here only.
    """

    def __init__(self, path: Path | None = None, *listeners: Listener) -> None:
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
        self.path = path
        self.listeners = list(listeners)
        self.lines: list[str] = []

    def __call__(self, event: str, **values: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        made: Event = {"time": time, "run": self.run, "event": event, **values}
        line = json.dumps(made, ensure_ascii=False, default=str)
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        for listener in self.listeners:
            listener(made)

    def text(self) -> bytes:
        return "".join(line + "\n" for line in self.lines).encode()
