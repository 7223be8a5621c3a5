"""Where keys come from: files that change under one's hands, and URLs of servers that behave badly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shared.errors import Unauthorized, Unavailable
from shared.jwks import KeySetFault
from shared.key_source import KeySource, Pace
from tests.harness.tokens import SECRET, Signer, jwks, signer

DEADLINE_S = 20.0
FAST = Pace(look_s=0.01, fetch_every_s=60.0, fetch_again_s=0.0, fetch_s=5.0, first_pause_s=0.01, last_pause_s=0.02)
OLD, NEW = signer("RS256", "old"), signer("ES256", "new")


@asynccontextmanager
async def reading(where: object, pace: Pace = FAST, secret: str = "") -> AsyncIterator[KeySource]:
    source = KeySource(secret, str(where), pace=pace)
    await source.start()
    try:
        yield source
    finally:
        await source.close()


def takes(source: KeySource, of: Signer) -> bool:
    try:
        return source.verify(of.sign()).client_id == "alice"
    except (Unauthorized, Unavailable):
        return False


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# -- files ---------------------------------------------------------------------------------------------------------


class KeyFile:
    """A file and what may happen to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, text: bytes) -> None:
        self.path.write_bytes(text)

    def replace(self, text: bytes) -> None:
        """In one step, as a careful program does."""
        other = self.path.with_suffix(".new")
        other.write_bytes(text)
        os.replace(other, self.path)

    def replace_unseen(self, text: bytes) -> None:
        """As within one tick of the file system's clock."""
        status = self.path.stat()
        assert len(text) == status.st_size
        self.replace(text)
        os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def become(self, what: str) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        else:
            self.path.unlink()
        if what == "folder":
            self.path.mkdir()
        elif what == "fifo":
            os.mkfifo(self.path)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    found = KeyFile(tmp_path / "jwks.json")
    found.write(jwks(OLD.jwk()))
    return found


async def test_a_file_that_was_replaced(file: KeyFile) -> None:
    """The new keys are taken, the old ones not any more."""
    async with reading(file) as source:
        assert takes(source, OLD)
        file.replace(jwks(NEW.jwk()))
        await until(lambda: takes(source, NEW))
        assert not takes(source, OLD)


async def test_a_file_of_the_same_size_and_time(file: KeyFile) -> None:
    """What a file system says of a file that was replaced within one of its ticks."""
    other = Signer("RS256", signer("RS256", which=1).key, "old")
    async with reading(file) as source:
        file.replace_unseen(jwks(other.jwk()))
        await until(lambda: takes(source, other))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", jwks(NEW.jwk())[:-40], jwks(), b"\xff" * 10, b" " * ((1 << 20) + 1), jwks(NEW.jwk(n=7, kty="RSA"))],
)
async def test_a_file_that_is_half_written_or_no_good(file: KeyFile, text: bytes) -> None:
    """The last good set stays, until the file is good again."""
    async with reading(file) as source:
        for _ in range(2):
            file.write(text)
            with pytest.raises(KeySetFault):
                source.read_file()
            assert takes(source, OLD)
        assert source.ready
        file.write(jwks(NEW.jwk()))
        await until(lambda: takes(source, NEW))


async def test_a_file_that_was_deleted(file: KeyFile) -> None:
    """The last good set stays, until there is a file again."""
    async with reading(file) as source:
        for what in ("folder", "fifo", "gone"):
            file.become(what)
            with pytest.raises((OSError, KeySetFault)):
                source.read_file()
            assert takes(source, OLD)
        assert takes(source, OLD)
        file.replace(jwks(NEW.jwk()))
        await until(lambda: takes(source, NEW))


@pytest.mark.parametrize("text", [None, b"{", jwks()])
async def test_a_file_that_is_no_good_at_the_start(file: KeyFile, text: bytes | None) -> None:
    """Is told at once."""
    if text is None:
        file.become("gone")
    else:
        file.write(text)
    with pytest.raises((KeySetFault, OSError)):
        async with reading(file):
            pass


async def test_a_file_that_was_only_touched_forgets_nothing(file: KeyFile) -> None:
    """The same keys are the same set, so tokens stay remembered."""
    async with reading(file) as source:
        token = OLD.sign()
        first = source.verify(token)
        file.replace(jwks(OLD.jwk()))
        source.read_file()
        assert first is source.verify(token)


async def test_a_secret_beside_a_file(file: KeyFile) -> None:
    """Both are taken; the secret for tokens that name no key."""
    async with reading(file, secret=SECRET) as source:
        assert takes(source, Signer("HS256", SECRET, ""))
        assert takes(source, OLD)
        assert not takes(source, Signer("HS256", SECRET, "old"))


# -- URLs ----------------------------------------------------------------------------------------------------------


class Issuer:
    """A server of a JWKS on a free port. `answer` is what it does; `asked` how often it was."""

    def __init__(self) -> None:
        self.asked = 0
        self.sent = 0
        self.paths: list[str] = []
        self.text = jwks(OLD.jwk())
        self.answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = self.good
        self.url = ""

    async def good(self, _: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=self.text, content_type="application/json")

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += 1
        self.paths.append(request.path)
        return await self.answer(request)

    async def until_asked(self, more: int = 1) -> None:
        wanted = self.asked + more
        await until(lambda: self.asked >= wanted)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    runner = web.ServerRunner(web.Server(issuer.serve), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield issuer
    await runner.cleanup()


async def test_a_url_is_read_before_tokens_are_taken(issuer: Issuer) -> None:
    """Not ready, and 503, until a first set was read, also where there is a secret."""
    gate = asyncio.Event()

    async def late(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return await issuer.good(request)

    issuer.answer = late
    async with reading(issuer.url, secret=SECRET) as source:
        await until(lambda: issuer.asked == 1)
        assert not source.ready
        for of in (OLD, Signer("HS256", SECRET, "")):
            with pytest.raises(Unavailable):
                source.verify(of.sign())
        gate.set()
        await until(lambda: source.ready)
        assert takes(source, OLD)


async def test_an_unknown_kid_has_the_url_fetched(issuer: Issuer) -> None:
    """The token is 503 meanwhile, and taken as soon as the new set is there."""
    async with reading(issuer.url) as source:
        await until(lambda: source.ready)
        issuer.text = jwks(OLD.jwk(), NEW.jwk())
        with pytest.raises(Unavailable):
            source.verify(NEW.sign())
        await until(lambda: takes(source, NEW))
        assert takes(source, OLD)


async def test_unknown_kids_have_it_fetched_at_a_bounded_rate(issuer: Issuer) -> None:
    """Within `fetch_again_s` of a fetch they are 401 and cost nothing, however many come."""
    pace = Pace(fetch_again_s=3600.0, fetch_every_s=7200.0)
    async with reading(issuer.url, pace) as source:
        await until(lambda: source.ready)
        for number in range(50):
            with pytest.raises(Unauthorized):
                source.verify(OLD.sign(headers={"kid": f"unknown {number}"}))
            await asyncio.sleep(0)
        assert takes(source, OLD)
        assert 1 == issuer.asked


async def test_those_who_ask_during_a_fetch_are_served_by_it(issuer: Issuer) -> None:
    """It is followed by no other."""
    gates = [asyncio.Event(), asyncio.Event()]
    gates[0].set()

    async def gated(request: web.BaseRequest) -> web.StreamResponse:
        await gates[issuer.asked - 1].wait()
        return await issuer.good(request)

    issuer.answer = gated
    async with reading(issuer.url) as source:
        await until(lambda: source.ready)
        with pytest.raises(Unavailable):
            source.verify(NEW.sign())
        await until(lambda: issuer.asked == 2)
        for _ in range(10):
            with pytest.raises(Unavailable):
                source.verify(NEW.sign())
        issuer.text = jwks(NEW.jwk())
        gates[1].set()
        await until(lambda: takes(source, NEW))
        issuer.answer = issuer.good
        async with aiohttp.ClientSession() as http:
            for _ in range(3):  # longer than another fetch would take
                await http.get(issuer.url)
        assert 2 + 3 == issuer.asked


async def respond(_: web.BaseRequest, **answer: object) -> web.StreamResponse:
    return web.Response(**answer)  # type: ignore[arg-type]


async def test_a_url_that_fails_keeps_the_last_good_set(issuer: Issuer) -> None:
    """Errors, nonsense, too many bytes, a cut connection: the old keys are taken all along, the new ones in the end."""

    async def oversize(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:  # as long as somebody reads
                await answer.write(b" " * 65536)
                issuer.sent += 65536
        except ConnectionError:
            return answer

    async def cut(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def with_status(status: int, body: bytes = b"") -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        return lambda request: respond(request, status=status, body=body or issuer.text)

    async with reading(issuer.url) as source:
        await until(lambda: source.ready)
        issuer.text = jwks(NEW.jwk())
        issuer.answer = with_status(500)
        with pytest.raises(Unavailable):
            source.verify(NEW.sign())
        for answer in (with_status(404), with_status(204), with_status(200, b"<html>"), oversize, cut):
            issuer.answer, issuer.sent = answer, 0
            await issuer.until_asked(2)
            assert issuer.sent < 64 << 20
            assert takes(source, OLD)
            assert not takes(source, NEW)
            assert source.ready
        issuer.answer = issuer.good
        await until(lambda: takes(source, NEW))


async def test_redirects_are_not_followed(issuer: Issuer) -> None:
    """Keys come from where the settings say, and no other address is asked."""

    async def elsewhere(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/elsewhere":
            return await issuer.good(request)
        return web.Response(status=302, headers={"Location": "/elsewhere"}, body=issuer.text)

    issuer.answer = elsewhere
    async with reading(issuer.url) as source:
        await issuer.until_asked(3)
        assert not source.ready
    assert {"/keys"} == set(issuer.paths)


async def test_a_slow_server_is_given_up(issuer: Issuer) -> None:
    """One that sends a byte now and then too; the next answer counts."""

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b" ")
                await asyncio.sleep(0.01)
        except ConnectionError:
            return answer

    issuer.answer = slow
    pace = Pace(fetch_s=0.2, first_pause_s=0.01, last_pause_s=0.02)
    async with reading(issuer.url, pace) as source:
        await issuer.until_asked(2)
        assert not source.ready
        issuer.answer = issuer.good
        await until(lambda: source.ready)


async def test_an_answer_in_pieces_is_read_whole(issuer: Issuer) -> None:
    """However the network cuts it."""

    async def pieces(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for at in range(0, len(issuer.text), 100):
            await answer.write(issuer.text[at : at + 100])
            await asyncio.sleep(0.001)
        return answer

    issuer.answer = pieces
    async with reading(issuer.url) as source:
        await issuer.until_asked()
        await until(lambda: source.ready)
        assert takes(source, OLD)
    assert 1 == issuer.asked


async def test_a_url_is_fetched_now_and_then(issuer: Issuer) -> None:
    """Also when nobody asks: a key that its issuer has taken back goes."""
    async with reading(issuer.url, Pace(fetch_every_s=0.02)) as source:
        await until(lambda: source.ready)
        issuer.text = jwks(NEW.jwk())
        await until(lambda: not takes(source, OLD))
