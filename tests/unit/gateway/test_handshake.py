"""Request heads, opening handshakes and plain responses."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.websocket.handshake import (
    Refused,
    Request,
    accept_upgrade,
    check_upgrade,
    head_end,
    http_response,
    offered_subprotocols,
    parse_request,
)

UPGRADE = {
    "Host": "push.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def head(*lines: str, first: str = "GET /websocket HTTP/1.1") -> bytes:
    return "\r\n".join((first, *lines, "", "")).encode("latin-1")


def upgrade(first: str = "GET /websocket HTTP/1.1", **changes: str | None) -> Request:
    """An opening handshake with some headers changed (`_` for `-`) or, with None, left out."""
    headers: dict[str, str | None] = {**UPGRADE, **{name.replace("_", "-"): v for name, v in changes.items()}}
    return parse_request(head(*(f"{name}: {v}" for name, v in headers.items() if v is not None), first=first))


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse_request(data)
    return caught.value


class TestHead:
    def test_a_browser_request(self) -> None:
        """Method, target, path, query and headers of a usual request."""
        request = parse_request(
            head(
                "Host: push.example.com",
                "Connection: keep-alive, Upgrade",
                "USER-AGENT: \t Mozilla/5.0 (X11) \t",
                "X-Odd!Name: a: b",
                "Empty:",
                first="GET /websocket?token=a.b-c&ack=1 HTTP/1.1",
            )
        )
        assert request == Request(
            method="GET",
            target="/websocket?token=a.b-c&ack=1",
            path="/websocket",
            version="HTTP/1.1",
            headers={
                "host": "push.example.com",
                "connection": "keep-alive, Upgrade",
                "user-agent": "Mozilla/5.0 (X11)",
                "x-odd!name": "a: b",
                "empty": "",
            },
            query={"token": "a.b-c", "ack": "1"},
        )

    def test_repeated_headers_are_joined(self) -> None:
        """RFC 9110 section 5.3, whatever the case of their names."""
        request = parse_request(head("Host: a", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2"))
        assert request.headers["x-forwarded-for"] == "1.1.1.1, 2.2.2.2"

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", {}),
            ("a", {"a": ""}),
            ("a=1&a=2", {"a": "2"}),
            ("a=b=c", {"a": "b=c"}),
            ("a%20b=%E5%90%8D+x", {"a b": "名 x"}),
            ("&&x=1&", {"x": "1"}),
            ("p=%2B1", {"p": "+1"}),
        ],
    )
    def test_query(self, query: str, expected: dict[str, str]) -> None:
        """Parameters are decoded as forms are; the last of a name counts."""
        assert expected == parse_request(head("Host: a", first=f"GET /w?{query} HTTP/1.1")).query

    @pytest.mark.parametrize("target", ["http://host:1/w?a=1", "WS://host/w?a=1", "/w?a=1"])
    def test_absolute_targets(self, target: str) -> None:
        """A target with scheme and authority means the same path (RFC 9112 section 3.2.2)."""
        request = parse_request(head("Host: a", first=f"GET {target} HTTP/1.1"))
        assert ("/w", {"a": "1"}) == (request.path, request.query)

    @pytest.mark.parametrize(
        "first",
        [
            "",
            "GET",
            "GET /",
            "GET / HTTP/1.1 x",
            "GET  / HTTP/1.1",
            "G\x00T / HTTP/1.1",
            "G(T / HTTP/1.1",
            "GET /\x7f HTTP/1.1",
            "GET /ä HTTP/1.1",
            "GET w HTTP/1.1",
            "GET * HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/11",
            "GET /?a=%ff HTTP/1.1",
        ],
    )
    def test_request_lines_that_are_refused(self, first: str) -> None:
        """400 for a request line that RFC 9112 section 3 does not allow."""
        assert refusal(head("Host: a", first=first)).status == 400

    @pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9"])
    def test_other_versions(self, version: str) -> None:
        """505 for a version that is not spoken."""
        assert refusal(head("Host: a", first=f"GET / {version}")).status == 505

    @pytest.mark.parametrize(
        "line",
        [
            "no colon",
            "Upgrade",
            ": no name",
            "Host : space before the colon",
            " folded: line",
            "\tfolded",
            "bad name: x",
            "a: nul\x00",
            "a: bare\rreturn",
            "a: bare\nnewline",
            "a: bell\x07",
            "Näme: x",
        ],
    )
    def test_header_lines_that_are_refused(self, line: str) -> None:
        """400 for a header line that RFC 9112 section 5 does not allow, folded ones among them."""
        assert refusal(head("Host: a", line)).status == 400

    @pytest.mark.parametrize("hosts", [[], ["Host: a", "Host: b"]])
    def test_exactly_one_host(self, hosts: list[str]) -> None:
        """RFC 9112 section 3.2."""
        assert refusal(head(*hosts)).status == 400

    def test_limits(self) -> None:
        """431 for a head that is too long or has too many lines; the limits themselves pass."""
        assert len(parse_request(head("Host: a", *(f"h{i}: x" for i in range(63)))).headers) == 64
        assert refusal(head("Host: a", *(f"h{i}: x" for i in range(64)))).status == 431
        spare = 8192 - len(head("Host: a", "x: "))
        assert parse_request(head("Host: a", "x: " + "y" * spare)).headers["x"] == "y" * spare
        assert refusal(head("Host: a", "x: " + "y" * (spare + 1))).status == 431

    def test_the_end_is_found_across_reads(self) -> None:
        """The end of a head is found wherever the reads cut it, and what is behind it is not looked at."""
        data = head("Host: a") + b"\r\n\r\n"
        size = len(data) - 4
        for cut in range(1, size):
            assert head_end(data[:cut]) == -1
            assert head_end(data, cut) == size

    def test_a_head_without_end(self) -> None:
        """431 once the limit is reached without an end; a head of exactly the limit passes."""
        data = head("Host: a", "x: " + "y" * 100)
        assert head_end(data, 0, len(data)) == len(data)
        with pytest.raises(Refused) as caught:
            head_end(data, 0, len(data) - 1)
        assert caught.value.status == 431

    @given(st.binary(max_size=200), st.booleans())
    def test_noise(self, noise: bytes, framed: bool) -> None:
        """Any bytes give a request or a refusal, nothing else."""
        data = b"GET /" + noise + b" HTTP/1.1\r\nHost: a\r\n\r\n" if framed else noise
        with suppress(Refused):
            assert parse_request(data).path.startswith("/")

    @given(st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9-]{0,10}\Z"), st.from_regex(r"\A([!-~]([ -~]*[!-~])?)?\Z")))
    def test_round_trip(self, headers: dict[str, str]) -> None:
        """Headers come out as they were written, whatever the spelling of their names."""
        headers = {"host": "a", **{name: value for name, value in headers.items() if name != "host"}}
        lines = [f"{name.title()}:  {value} " for name, value in headers.items()]
        assert headers == parse_request(head(*lines)).headers


class TestUpgrade:
    def test_the_rfc_example(self) -> None:
        """RFC 6455 section 1.3: the key of the example has the accept value of the example."""
        assert accept_upgrade(upgrade()) == (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )

    def test_subprotocol(self) -> None:
        """The chosen subprotocol is named, and those on offer are listed in order."""
        request = upgrade(Sec_WebSocket_Protocol="bearer,\tabc.def , x")
        assert offered_subprotocols(request) == ("bearer", "abc.def", "x")
        assert accept_upgrade(request, "bearer").endswith(b"=\r\nSec-WebSocket-Protocol: bearer\r\n\r\n")

    def test_no_extension_is_agreed_on(self) -> None:
        """permessage-deflate stays off, though offered."""
        response = accept_upgrade(upgrade(Sec_WebSocket_Extensions="permessage-deflate"))
        assert b"extensions" not in response.lower()

    @pytest.mark.parametrize(
        "request_",
        [upgrade(Connection="keep-alive, UPGRADE"), upgrade(Upgrade="WebSocket"), upgrade(Upgrade="h2c, websocket")],
    )
    def test_words_in_any_case_and_place(self, request_: Request) -> None:
        """Upgrade and Connection are lists of words in any case."""
        check_upgrade(request_)

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (upgrade("POST /websocket HTTP/1.1"), 405),
            (upgrade("GET /websocket HTTP/1.0"), 400),
            (upgrade(Upgrade=None), 426),
            (upgrade(Upgrade="h2c"), 426),
            (upgrade(Connection="close"), 426),
            (upgrade(Connection=None), 426),
            (upgrade(Sec_WebSocket_Version="12"), 426),
            (upgrade(Sec_WebSocket_Version=None), 426),
            (upgrade(Sec_WebSocket_Key=None), 400),
            (upgrade(Sec_WebSocket_Key="short"), 400),
            (upgrade(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25j!!!!"), 400),
            (upgrade(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZXh4"), 400),
            (upgrade(Sec_WebSocket_Key="ä" * 24), 400),
            (upgrade(Content_Length="5"), 400),
            (upgrade(Transfer_Encoding="chunked"), 400),
        ],
    )
    def test_refusals(self, request_: Request, status: int) -> None:
        """What RFC 6455 section 4.2.1 asks for and is not there has its status."""
        with pytest.raises(Refused) as caught:
            accept_upgrade(request_)
        assert status == caught.value.status

    def test_the_version_that_would_do_is_named(self) -> None:
        """RFC 6455 section 4.4: 426 says which version is spoken."""
        with pytest.raises(Refused) as caught:
            check_upgrade(upgrade(Sec_WebSocket_Version="8"))
        assert caught.value.headers == {"Sec-WebSocket-Version": "13"}


def test_a_plain_response() -> None:
    """Status line, what every answer has, the caller's headers, length and close; then the body."""
    secure = (
        b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
        b"Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\nReferrer-Policy: no-referrer\r\n"
    )
    assert http_response(503, b'{"a":1}', {"Retry-After": "1", "Content-Type": "application/json"}) == (
        b"HTTP/1.1 503 Service Unavailable\r\n" + secure + b"Retry-After: 1\r\nContent-Type: application/json\r\n"
        b'Content-Length: 7\r\nConnection: close\r\n\r\n{"a":1}'
    )
    empty = b"HTTP/1.1 200 OK\r\n" + secure + b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    assert empty == http_response(200, b"")
