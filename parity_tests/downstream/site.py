"""A local web server with what a browser is to load: artifacts, pages and npm packages, as folders of one directory.

Knows HTTP; nothing about what is in the files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Quiet(SimpleHTTPRequestHandler):
    """Serves modules as scripts and does not log."""

    def guess_type(self, path: Any) -> str:
        return "text/javascript" if str(path).endswith((".js", ".mjs")) else super().guess_type(path)

    def log_message(self, *arguments: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # transformers.js asks for a file's size and hangs up
            super().copyfile(source, outputfile)


@dataclass(frozen=True)
class Site:
    """A running server and the directory it serves; what is put there later is served, too."""

    url: str
    root: Path

    @property
    def packages(self) -> str:
        """The part of the demo page's address that says where the npm packages are, seen from one level down."""
        npm = "../node_modules"
        return f"library={npm}/@huggingface/transformers&wasm={npm}/onnxruntime-web/dist"


@contextmanager
def serve(root: Path, folders: Mapping[str, Path], handler: type[Quiet] = Quiet) -> Iterator[Site]:
    """A server of a directory with links to these folders, by the name of each."""
    for name, target in folders.items():
        (root / name).symlink_to(target)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Site(f"http://127.0.0.1:{server.server_address[1]}", root)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
