"""A local server that fails as servers and networks do: files that are missing, altered or cut off in the middle.

Knows HTTP; nothing about pages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from ..site import Quiet

ARRIVAL = 0.3  # seconds until what was sent was read: Chromium drops what it holds when a connection is cut


@dataclass
class Faults:
    """What goes wrong, by the end of a path, and which files were asked for.

    Attributes:
        statuses: the answer in place of a file.
        altered: what becomes of a file's bytes.
        cuts: after how many bytes each of the next connections is cut, the first one first; further ones are not.
        requested: the names of the files asked for.
    """

    statuses: dict[str, HTTPStatus] = field(default_factory=dict)
    altered: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)

    def clear(self) -> None:
        for entries in (self.statuses, self.altered, self.cuts, self.requested):
            entries.clear()


def faulty(faults: Faults) -> type[Quiet]:
    """A handler with these faults; it serves ranges that are open at their end."""

    class Faulty(Quiet):
        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            faults.requested.append(path.name)
            if path.name in faults.statuses:
                return self.send_error(faults.statuses[path.name])
            if not path.is_file():
                return super().do_GET()
            data = path.read_bytes()
            if path.name in faults.altered:
                data = faults.altered[path.name](data)
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Type", self.guess_type(str(path)))
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            cuts = faults.cuts.get(path.name)
            self.wfile.write(data[start : start + cuts.pop(0)] if cuts else data[start:])
            if path.name in faults.cuts:
                time.sleep(ARRIVAL)
            return None

    return Faulty
