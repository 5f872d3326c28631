"""Downloads over http and https, with limits on address, size, time and redirects.

A name is resolved once for each connection, its addresses are checked, and the connection is made to a checked address,
so DNS rebinding gains nothing. Redirects are checked like the first request. One deadline covers everything from the
first look-up to the last byte. Proxies configured in the environment are not used, because the address behind one
cannot be checked. Standard library only.

Knows addresses and HTTP; nothing about pictures.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ...errors import InputError

SCHEMES = ("http://", "https://")
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 65536  # bytes read at a time
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only block that IANA assigns addresses of hosts from
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: IPv4 addresses, as an IPv6-only network sees them
# Blocks that some versions of `ipaddress` take for public: protocol assignments (RFC 6890), 6to4 relays (RFC 7526)
# and documentation (RFC 9637).
SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
SAFE_IN_URLS = "!#$%&'()*+,/:;=?@[]~"  # the reserved characters of RFC 3986, and % of what is quoted already

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class UrlRules:
    """Limits for one URL, and whether it may lead to this machine or its network."""

    max_bytes: int = 64 * 2**20
    timeout: float = 30.0  # seconds in total: name resolution, connections, redirects, content
    max_redirects: int = 5
    allow_private: bool = False  # also loopback, link-local and every other address that is not public


PUBLIC = UrlRules()


def fetch(url: str, rules: UrlRules = PUBLIC) -> bytes:
    """The content of a URL.

    Raises:
        InputError: an address that is not public, a status other than 200, too many redirects, more than `max_bytes`,
            more than `timeout` seconds, or no connection.
    """
    deadline = time.monotonic() + rules.timeout
    location = url
    for _ in range(rules.max_redirects + 1):
        result = send_request(location, rules, deadline)
        if isinstance(result, bytes):
            return result
        location = redirect_target(url, location, result)
    raise InputError(f"{redact(url)}: more than {rules.max_redirects} redirects", "Use the URL they end at")


def redirect_target(url: str, base: str, location: str) -> str:
    """Where a redirect of `base` leads, for a request that began with `url`.

    Raises:
        InputError: not to an http or https URL.
    """
    try:
        target = urllib.parse.urljoin(base, location)
        scheme = urllib.parse.urlsplit(target).scheme
    except ValueError:  # [ without ]
        scheme = ""
    if scheme not in ("http", "https"):
        raise InputError(f"{redact(url)}: redirects to {location[:60]!r}", "Use an http or https URL")
    return target


def send_request(url: str, rules: UrlRules, deadline: float) -> bytes | str:
    """One GET request: the content, or the location it redirects to."""
    connection: Connection | None = None
    response: http.client.HTTPResponse | None = None
    try:
        parts = urllib.parse.urlsplit(url)
        connection_type = SecureConnection if parts.scheme == "https" else Connection
        if not parts.hostname:
            raise InputError(f"{redact(url)}: no host in this URL", "Expected https://host/path")
        connection = connection_type(parts.hostname, parts.port, rules, deadline)
        target = urllib.parse.quote(urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, "")), SAFE_IN_URLS)
        headers = {"User-Agent": f"qwen3vl-export/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in REDIRECTS:
            if location is None:
                raise InputError(f"{redact(url)}: redirects without saying where", "Check the URL")
            return location
        if response.status != http.client.OK:
            reason = f"{response.status} {response.reason}".strip()
            raise InputError(f"{redact(url)}: the server answered {reason}", "Check the URL")
        return read_body(url, response, rules, deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        check_deadline(url, rules, deadline, error)
        raise InputError(
            f"{redact(url)}: {describe_error(error)}", "Check the URL, or download it and pass the file"
        ) from error
    finally:
        if response is not None:
            response.close()
        if connection is not None:
            connection.shut_down()


def read_body(url: str, response: http.client.HTTPResponse, rules: UrlRules, deadline: float) -> bytes:
    """The whole body of a response."""
    body = bytearray()
    announced = response.length or 0
    while max(announced, len(body)) <= rules.max_bytes and (part := response.read1(CHUNK)):
        body += part
        check_deadline(url, rules, deadline)
    if max(announced, len(body)) > rules.max_bytes:
        raise InputError(
            f"{redact(url)}: over {rules.max_bytes} bytes", "Use a smaller file, or download it and pass that"
        )
    check_deadline(url, rules, deadline)
    if response.length:
        raise InputError(f"{redact(url)}: the connection ended {response.length} bytes early", "Try again")
    return bytes(body)


def check_deadline(url: str, rules: UrlRules, deadline: float, cause: Exception | None = None) -> None:
    """Report a timeout once the deadline has passed, whatever else went wrong."""
    if time.monotonic() >= deadline or isinstance(cause, TimeoutError):
        raise InputError(
            f"{redact(url)}: not finished after {rules.timeout:g} seconds", "Download it and pass the file"
        ) from cause


class Connection(http.client.HTTPConnection):
    """A connection to a checked address that is shut down at `deadline`, whatever it is doing.

    A socket timeout bounds a single operation, and a server that sends a byte now and then never reaches it; so a timer
    shuts the socket down.
    """

    def __init__(self, host: str, port: int | None, rules: UrlRules, deadline: float) -> None:
        super().__init__(host, port)
        self.rules = rules
        self.deadline = deadline
        self._socket: socket.socket | None = None  # `sock` becomes None once the response owns it
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._cut)
        self._timer.daemon = True

    def connect(self) -> None:
        self._timer.start()
        self.sock = self._socket = connect(self.host, self.port, self.rules, self.deadline)
        if time.monotonic() >= self.deadline:
            self._cut()  # the timer ran before there was a socket

    def _cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # already closed
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not SSLSocket's, which drops the cipher state

    def shut_down(self) -> None:
        """Close the connection and cancel its timer, which `close` leaves running."""
        self._timer.cancel()
        self.close()
        if self._socket is not None:
            self._socket.close()


class SecureConnection(Connection):
    """As `Connection`, with TLS and the system's certificate authorities."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        wrapped = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = self._socket = wrapped
        wrapped.do_handshake()  # now that the timer can reach it


def resolve(host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
    """What `socket.getaddrinfo` says about a host.

    It runs in a thread, because a resolver that never answers cannot be interrupted.

    Raises:
        TimeoutError: no answer by the deadline.
        OSError, UnicodeError: no such host, or no name of one.
    """
    answer: queue.SimpleQueue[list[tuple[Any, ...]] | OSError | UnicodeError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        result = answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError("no answer from the resolver") from None
    if isinstance(result, Exception):
        raise result
    return result


def connect(host: str, port: int, rules: UrlRules, deadline: float) -> socket.socket:
    """A socket connected to the first allowed address of `host` that accepts."""
    refused: list[str] = []
    failure: OSError | None = None
    for family, kind, protocol, _, socket_address in resolve(host, port, deadline):
        address = ipaddress.ip_address(socket_address[0])
        if not (rules.allow_private or is_public(address)):
            refused.append(str(address))
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(socket_address)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    if refused and failure is None:
        raise InputError(
            f"{host}: {refused[0]} is not a public address",
            "Pass the file, or allow private addresses: --allow-private-urls, UrlRules(allow_private=True)",
        )
    raise failure or OSError("no address")


def is_public(address: Address) -> bool:
    """Whether an address, and the IPv4 address embedded in it, belongs to the public internet.

    IPv6 addresses are public only in the block of global unicast. That excludes every other notation and tunnel in one
    rule: IPv4-compatible ::/96, site-local fec0::/10, locally defined NAT64 64:ff9b:1::/48, segment routing 5f00::/16.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if (mapped := ipv4_of(address)) is not None:
            return is_public(mapped)
        embedded = [address.sixtofour, *(address.teredo or ())]
        if address not in GLOBAL_UNICAST or not all(is_public(inner) for inner in embedded if inner is not None):
            return False
    special = address.is_multicast or any(address in block for block in SPECIAL)
    return address.is_global and not special


def ipv4_of(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address only spells differently: IPv4-mapped, or translated by NAT64."""
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address.ipv4_mapped


def redact(url: str) -> str:
    """A URL for error messages: shortened, and without user name, password and query, which may hold a key."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"[:120]


def describe_error(error: Exception) -> str:
    """What went wrong with a request, in a few words."""
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, http.client.InvalidURL):  # an HTTPException, of a request that was never sent
        return f"not a URL ({error})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection ({error.reason})"
    if isinstance(error, http.client.HTTPException):
        return f"not an HTTP answer ({type(error).__name__})"
    if isinstance(error, OSError):
        return f"no connection ({error.strerror or error})"
    return f"not a URL ({error})"
