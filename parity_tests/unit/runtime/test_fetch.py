"""URLs: what is fetched, and one clear error for each way a server can misbehave."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime.pictures import fetch as fetching
from qwen3vl_export.runtime.pictures.fetch import UrlRules, fetch, is_public, redact
from qwen3vl_export.runtime.pictures.images import open_image

from ...fixtures.image_files import EPS
from ...harness.cases.picture_kinds import PHOTOGRAPH

LOCAL = UrlRules(allow_private=True, timeout=60.0)
DRIP = 0.05  # seconds between two bytes of a server that never ends


class Server(BaseHTTPRequestHandler):
    """Answers by the requested path."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, dict[str, str]]] = []  # noqa: RUF012 - of all requests

    def do_GET(self) -> None:
        self.requests.append((self.path, dict(self.headers)))
        kind, _, rest = self.path[1:].partition("/")
        {"photo": self.photo, "eps": self.eps, "chunked": self.chunked, "to": self.to, "loop": self.loop,
         "status": self.status, "early": self.early, "huge": self.huge, "lying": self.lying, "drip": self.drip,
         "header": self.header, "crumbs": self.crumbs, "nowhere": self.nowhere,
         }[kind](rest)  # fmt: skip

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def photo(self, rest: str) -> None:
        data = PHOTOGRAPH.read_bytes()
        self.head(Content_Length=len(data))
        self.wfile.write(data)

    def eps(self, rest: str) -> None:
        self.head(Content_Type="image/png", Content_Length=len(EPS))
        self.wfile.write(EPS)

    def chunked(self, rest: str) -> None:
        self.head(Transfer_Encoding="chunked")
        for _ in range(3):
            self.wfile.write(b"5\r\nhello\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def to(self, rest: str) -> None:
        self.head(302, Location=rest, Content_Length=0)

    def nowhere(self, rest: str) -> None:
        self.head(301, Content_Length=0)

    def crumbs(self, rest: str) -> None:
        """A hundred thousand chunks of a byte."""
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")

    def loop(self, rest: str) -> None:
        self.head(307, Location=f"/loop/{rest}x", Content_Length=0)

    def status(self, rest: str) -> None:
        self.head(int(rest), Content_Length=0)

    def early(self, rest: str) -> None:
        self.head(Content_Length=100)
        self.wfile.write(b"only this")
        self.close_connection = True

    def huge(self, rest: str) -> None:
        self.head(Content_Length=10**12)

    def lying(self, rest: str) -> None:
        """More than is announced: nothing is."""
        self.close_connection = True
        self.head(Connection="close")
        for _ in range(200):
            self.wfile.write(bytes(1024))

    def drip(self, rest: str) -> None:
        self.head(Content_Length=10**6, Connection=rest or "keep-alive")
        self.forever(b"x")

    def header(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.forever(b"x")

    def forever(self, data: bytes) -> None:
        self.close_connection = True
        try:
            while True:
                self.wfile.write(data)
                time.sleep(DRIP)
        except OSError:
            return  # the client has gone

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what these tests are about."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = QuietServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def secure_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with a certificate for `localhost`, from an authority that this system trusts."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    server = QuietServer(("127.0.0.1", 0), Server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_over_tls(secure_site: str, site: str) -> None:
    assert fetch(f"{secure_site}/photo", LOCAL) == PHOTOGRAPH.read_bytes()
    assert fetch(f"{site}/to/{secure_site}/photo", LOCAL) == PHOTOGRAPH.read_bytes()  # a redirect into it


def test_a_certificate_must_be_for_the_host_and_from_a_known_authority(
    secure_site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"certificate is not valid \(IP address mismatch"):
        fetch(f"{secure_site.replace('localhost', '127.0.0.1')}/photo", LOCAL)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(InputError, match=r"certificate is not valid \(unable to get local issuer"):
        fetch(f"{secure_site}/photo", LOCAL)


def test_a_picture_from_a_url(site: str) -> None:
    assert fetch(f"{site}/photo", LOCAL) == PHOTOGRAPH.read_bytes()
    assert open_image(f"{site}/photo", LOCAL).size == (451, 300)
    assert fetch(f"{site}/chunked", LOCAL) == b"hello" * 3


def test_postscript_from_a_url_runs_nothing(site: str, ghostscript: Path) -> None:
    with pytest.raises(InputError, match="begins as EPS files do, which are not read") as caught:
        open_image(f"{site}/eps/cat.png", LOCAL)
    assert "\n" not in str(caught.value)
    assert not ghostscript.exists()


def test_a_request_is_written_as_it_must_be(site: str) -> None:
    Server.requests.clear()
    fetch(f"{site}/photo/a b/é?q=1&r=%20#top", LOCAL)
    ((path, headers),) = Server.requests
    assert path == "/photo/a%20b/%C3%A9?q=1&r=%20"
    assert headers["Host"] == site.removeprefix("http://") and headers["User-Agent"].startswith("qwen3vl-export/")


def test_a_body_in_very_many_pieces_is_read_in_time(site: str) -> None:
    assert fetch(f"{site}/crumbs", LOCAL) == b"x" * 100_000


def test_redirects_are_followed(site: str) -> None:
    assert fetch(f"{site}/to/{site.replace('http', 'HTTP')}/photo", LOCAL) == PHOTOGRAPH.read_bytes()
    assert fetch(f"{site}/to//photo", LOCAL) == PHOTOGRAPH.read_bytes()  # a relative location
    assert fetch(f"{site}/to/{site}/to//photo", LOCAL) == PHOTOGRAPH.read_bytes()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/status/404", "/status/404: the server answered 404 Not Found"),
        ("/status/204", "the server answered 204"),
        ("/nowhere", "/nowhere: redirects without saying where"),
        ("/loop/", "more than 5 redirects"),
        ("/to/ftp://example.org/cat.png", "redirects to 'ftp://example.org/cat.png'"),
        ("/to/javascript:alert(1)", "redirects to 'javascript:alert"),
        ("/to/http://[::1", r"redirects to 'http://\[::1'"),
        ("/to/http://host:99999999/", "not a URL"),
        ("/to/file:///etc/passwd", "redirects to 'file:///etc/passwd'"),
        ("/to/https:///cat.png", "no host in this URL"),
        ("/early", "the connection ended 91 bytes early"),
        ("/huge", "over 100000 bytes"),
        ("/lying", "over 100000 bytes"),
    ],
)
def test_answers_that_are_no_picture(site: str, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fetch(f"{site}{path}", UrlRules(allow_private=True, timeout=60.0, max_bytes=100_000))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["/drip", "/drip/close", "/header"])
def test_a_url_that_never_ends(site: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"{path}: not finished after 0\.4 seconds\. Download it"):
        fetch(f"{site}{path}", UrlRules(allow_private=True, timeout=0.4))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_says_nothing(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(InputError, match=r"not finished after 0\.3 seconds"):
            fetch(f"{scheme}://127.0.0.1:{port}/cat.png", UrlRules(allow_private=True, timeout=0.3))


def test_no_server(site: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(InputError, match="no connection"):
        fetch(f"http://127.0.0.1:{port}/", LOCAL)
    with pytest.raises(InputError, match="no secure connection"):
        fetch(f"https{site.removeprefix('http')}/photo", LOCAL)  # speaks no TLS


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http:///cat.png", "no host"),
        ("http://a b/cat.png", "not a URL"),
        ("http://" + "a" * 300 + "/", "not a URL|no such host"),
        ("http://[::1/cat.png", "not a URL"),
        ("http://host:99999999/", "not a URL"),
        ("http://" + "a" * 70 + ".example/", "not a URL|no such host"),
    ],
)
def test_what_is_no_url(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fetch(url, LOCAL)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.1.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
     "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1", "::7f00:1", "::8.8.8.8", "64:ff9b:1::808:808",
     "fec0::1", "5f00::1", "3fff::1", "100:0:0:1::1", "4000::1", "192.88.99.1", "192.0.0.8", "::ffff:192.88.99.1",
     "2002:c058:6301::1", "2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe", "::ffff:64:1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_private_addresses_are_refused_in_any_spelling(site: str, host: str) -> None:
    Server.requests.clear()
    with pytest.raises(InputError, match=r"is not a public address\. Pass the file, or allow|no such host"):
        fetch(f"http://{host}:{site.rpartition(':')[2]}/photo")
    assert not Server.requests


def test_a_redirect_to_a_private_address_is_refused(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: str(address) == "127.0.0.1")
    assert fetch(f"{site}/photo") == PHOTOGRAPH.read_bytes()
    with pytest.raises(InputError, match=r"127\.0\.0\.2: 127\.0\.0\.2 is not a public address"):
        fetch(f"{site}/to/{site.replace('127.0.0.1', '127.0.0.2')}/photo")


Lookup = Callable[..., list[Any]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What `rebinding.test` resolves to, one answer after the other."""
    answers: list[list[str]] = []
    real: Lookup = socket.getaddrinfo

    def lookup(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        assert host == "rebinding.test"
        return [entry for address in answers.pop(0) for entry in real(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return answers


def test_the_address_that_was_checked_is_the_one_connected_to(
    site: str, names: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name means a public address when it is looked up, and a private one for whoever would look again."""
    monkeypatch.setattr(fetching, "is_public", lambda address: str(address) == "127.0.0.1")
    names += [["127.0.0.1"], ["127.0.0.2"]]
    url = f"http://rebinding.test:{site.rpartition(':')[2]}/photo"
    assert fetch(url) == PHOTOGRAPH.read_bytes()
    assert names == [["127.0.0.2"]]  # one look-up
    with pytest.raises(InputError, match=r"rebinding\.test: 127\.0\.0\.2 is not a public address"):
        fetch(url)


def test_only_the_public_addresses_of_a_name_are_tried(
    site: str, names: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: str(address) == "127.0.0.1")
    names += [["127.0.0.3", "127.0.0.1"]]
    assert fetch(f"http://rebinding.test:{site.rpartition(':')[2]}/photo") == PHOTOGRAPH.read_bytes()


def test_a_resolver_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(20) and [])
    start = time.monotonic()
    with pytest.raises(InputError, match=r"http://slow\.test/cat\.png: not finished after 0\.2 seconds\. Download it"):
        fetch("http://slow.test/cat.png", UrlRules(timeout=0.2))
    assert time.monotonic() - start < 10
    never.set()


def test_errors_do_not_show_keys() -> None:
    assert redact("https://me:secret@example.org/cat.png?key=secret#x") == "https://example.org/cat.png"
