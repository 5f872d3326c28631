"""What a process that tries hostile input may touch: its own directory, and no network.

An audit hook of Python (PEP 578) sees every file that Python code opens, writes, renames or removes, every process it
starts and every connection it makes, before it happens. What compiled libraries do by themselves it does not see.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {  # events that change the file system -> which of their arguments are paths
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **dict.fromkeys(("shutil.rmtree", "os.setxattr", "os.removexattr"), (0,)),
    **dict.fromkeys(("os.rename", "shutil.move"), (0, 1)),
    **dict.fromkeys(("os.link", "os.symlink", "shutil.copyfile", "shutil.copytree"), (1,)),
}
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
PUBLIC = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC = tuple(  # IANA's special-purpose registries, and what hides an IPv4 address
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *(
                "203.0.113.0/24",
                "224.0.0.0/3",
                "2001::/32",
                "2001:2::/48",
                "2001:db8::/32",
                "2001:10::/28",
                "3fff::/20",
            ),
        ),
    )
)


class Escape(BaseException):
    """An attempt to touch what is outside; not an `Exception`, so that no handler takes it for damaged input."""


class Guard:
    """Watches the process from `watch` on, for good.

    Attributes:
        escapes: what was attempted since the last `clear`, one line each, also if a handler swallowed the `Escape`.
    """

    def __init__(self, box: Path, secrets: Path | None) -> None:
        """`box` may be written to; nothing in `secrets` may be read."""
        self.box, self.secrets = os.path.realpath(box), os.path.realpath(secrets) if secrets else None
        self.escapes: list[str] = []
        self._inside = threading.local()

    def watch(self) -> None:
        sys.addaudithook(self._audit)

    def clear(self) -> None:
        self.escapes.clear()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            if event == "open":
                self._check_open(*arguments)
            elif event in CHANGES:
                for index in CHANGES[event]:
                    self._check_change(event, arguments[index])
            elif event in PROCESSES:
                self._escape(f"{event} {arguments[:2]!r}")
            elif event == "socket.getaddrinfo":
                refuse_name(str(arguments[0]))
            elif event == "socket.connect" and isinstance(arguments[1], tuple):
                self._check_connection(str(arguments[1][0]))
        finally:
            self._inside.busy = False

    def _check_open(self, path: Any, mode: Any, flags: int) -> None:
        if isinstance(path, int):
            return
        if flags & WRITING:
            self._check_change("open to write", path)
        elif self.secrets and is_inside(path, self.secrets):
            self._escape(f"open to read {path!r}")

    def _check_change(self, event: str, path: Any) -> None:
        if not isinstance(path, int) and os.fspath(path) != os.devnull and not is_inside(path, self.box):
            self._escape(f"{event} {path!r}")

    def _check_connection(self, host: str) -> None:
        if not is_public(host):
            self._escape(f"connect to {host}")
        raise ConnectionRefusedError(f"no network: {host}")

    def _escape(self, what: str) -> None:
        self.escapes.append(what)
        raise Escape(what)


def is_inside(path: Any, directory: str) -> bool:
    """Whether a path, with its links resolved except the last one, is in a directory."""
    text = os.fsdecode(os.fspath(path))
    resolved = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(text))), os.path.basename(text))
    return any(name == directory or name.startswith(directory + os.sep) for name in (resolved, os.path.realpath(text)))


def refuse_name(host: str) -> None:
    """Let addresses through, in any notation; names would be asked of the network."""
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError) as error:
        raise socket.gaierror(socket.EAI_NONAME, "no network") from error


def is_public(host: str) -> bool:
    """Whether an address may be connected to; written apart from the runtime's own rule, which it checks."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if hidden is None and address in ipaddress.IPv6Network("64:ff9b::/96"):
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return is_public(str(hidden))
        return address in PUBLIC and not any(address in network for network in NOT_PUBLIC)
    return not any(address in network for network in NOT_PUBLIC)
