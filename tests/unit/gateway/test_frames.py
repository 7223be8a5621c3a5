"""The pure RFC 6455 core: events of a byte stream, violations, and the frames that are built."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    Binary,
    Close,
    Event,
    FrameParser,
    Ping,
    Pong,
    ProtocolError,
    binary_frame,
    close_frame,
    is_close_code,
    ping_frame,
    pong_frame,
    text_frame,
)

MASK = b"\x12\x34\x56\x78"


def client_frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = MASK) -> bytes:
    """A masked frame, written straight from RFC 6455 section 5.2."""
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    return head + mask + bytes(octet ^ mask[at % 4] for at, octet in enumerate(payload))


def unmasked(frame: bytes) -> bytes:
    """What a server's frame would be if a client had sent it, with a mask of zeros."""
    size = 2 + {126: 2, 127: 8}.get(frame[1], 0)
    return frame[:1] + bytes([frame[1] | 0x80]) + frame[2:size] + b"\0\0\0\0" + frame[size:]


def violation(data: bytes, parser: FrameParser | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        (parser or FrameParser()).feed(data)
    return caught.value


def outcome(parser: FrameParser, chunks: list[bytes]) -> tuple[list[Event], int | None]:
    """All events of the chunks, and the close code of the violation if there is one."""
    events: list[Event] = []
    for chunk in chunks:
        try:
            events += parser.feed(chunk)
        except ProtocolError as error:
            return events + error.events, error.code
    return events, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(borders)]


MASKS = st.binary(min_size=4, max_size=4)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 1015, 1020, 1021, 1024, 1030, 65535, 65536])


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A frame or the frames of a message with control frames between, and their events."""
    kind = draw(st.sampled_from(["text", "binary", "ping", "pong"]))
    if kind in ("ping", "pong"):
        payload = draw(st.binary(max_size=125))
        event: Event = Ping(payload) if kind == "ping" else Pong(payload)
        return client_frame(PING if kind == "ping" else PONG, payload, mask=draw(MASKS)), [event]
    payload = draw(st.text(max_size=40)).encode() if kind == "text" else draw(st.binary(max_size=40))
    payload *= draw(st.sampled_from([1, 1, 1, 7, 60]))
    pieces = cut(payload, draw(st.lists(st.integers(0, 4000), max_size=3))) or [b""]
    stream, events = b"", []
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        opcode = CONTINUATION if at else TEXT if kind == "text" else BINARY
        stream += client_frame(opcode, piece, fin=last, mask=draw(MASKS))
        if not last and draw(st.booleans()):
            stream += client_frame(PING, b"between")
            events.append(Ping(b"between"))
    return stream, [*events, payload if kind == "text" else Binary(payload)]


class TestEvents:
    def test_whole_text_frames_of_one_read(self) -> None:
        """Several frames in one read give their messages in order, as bytes."""
        data = client_frame(TEXT, b"one") + client_frame(TEXT, "zwölf".encode()) + client_frame(TEXT, b"")
        assert FrameParser().feed(data) == [b"one", "zwölf".encode(), b""]

    @given(SIZES, MASKS, st.sampled_from([TEXT, BINARY]))
    def test_every_size_and_mask(self, size: int, mask: bytes, opcode: int) -> None:
        """A payload comes out as it was masked, whichever way it is unmasked."""
        payload = (b"abcdefghijk" * (size // 11 + 1))[:size]
        expected: list[Event] = [payload if opcode == TEXT else Binary(payload)]
        assert expected == FrameParser(1 << 20).feed(client_frame(opcode, payload, mask=mask))

    @given(st.lists(messages(), max_size=5), st.lists(st.integers(0, 20000), max_size=12))
    def test_chunks_do_not_matter(self, stream: list[tuple[bytes, list[Event]]], places: list[int]) -> None:
        """However a valid stream is cut into reads, its events are the same."""
        data = b"".join(frames for frames, _ in stream)
        expected = [event for _, events in stream for event in events]
        assert (expected, None) == outcome(FrameParser(), [data])
        assert (expected, None) == outcome(FrameParser(), cut(data, places))

    @given(st.lists(messages(), max_size=2))
    def test_octet_by_octet(self, stream: list[tuple[bytes, list[Event]]]) -> None:
        """One octet a read gives the same events too."""
        data = b"".join(frames for frames, _ in stream)
        expected = [event for _, events in stream for event in events]
        assert (expected, None) == outcome(FrameParser(), [bytes([octet]) for octet in data])

    @given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
    def test_noise(self, data: bytes, places: list[int]) -> None:
        """Random bytes raise nothing but ProtocolError, and cutting them changes nothing."""
        assert outcome(FrameParser(100, 3), [data]) == outcome(FrameParser(100, 3), cut(data, places))

    @given(st.lists(messages(), max_size=3), st.integers(0, 2000), st.integers(1, 255), st.lists(st.integers(0, 2000)))
    def test_near_misses(self, stream: list[tuple[bytes, list[Event]]], at: int, flip: int, places: list[int]) -> None:
        """A valid stream with one octet changed raises nothing but ProtocolError, however it is cut."""
        data = bytearray(b"".join(frames for frames, _ in stream))
        if data:
            data[at % len(data)] ^= flip
        assert outcome(FrameParser(), [bytes(data)]) == outcome(FrameParser(), cut(bytes(data), places))

    def test_close(self) -> None:
        """A close frame is the last event, whatever follows it in the same read or later."""
        parser = FrameParser()
        data = client_frame(TEXT, b"a") + client_frame(CLOSE, b"\x03\xe8bye") + client_frame(TEXT, b"b")
        assert parser.feed(data) == [b"a", Close(1000, "bye")]
        assert parser.feed(client_frame(TEXT, b"c")) == []

    def test_close_without_a_code(self) -> None:
        """An empty close frame is reported as 1005."""
        assert FrameParser().feed(client_frame(CLOSE, b"")) == [Close(NO_STATUS, "")]

    def test_early_bytes(self) -> None:
        """What came before the parser was made is parsed first, with or without more."""
        data = client_frame(TEXT, b"early") + client_frame(TEXT, b"late")
        parser = FrameParser(early=data[:15])
        assert parser.feed(b"") == [b"early"]
        assert parser.feed(data[15:]) == [b"late"]


class TestViolations:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"\xc1\x80" + MASK, "reserved bit"),
            (b"\xa1\x80" + MASK, "reserved bit"),
            (b"\x91\x80" + MASK, "reserved bit"),
            (b"\x83\x80" + MASK, "opcode 3"),
            (b"\x8b\x80" + MASK, "opcode 11"),
            (b"\x81\x00", "not masked"),
            (b"\x81\x7e\x00\x80", "not masked"),
            (client_frame(PING, b"", fin=False), "fragmented control"),
            (b"\x89\xfe\x00\x7e", "more than 125"),
            (client_frame(CONTINUATION, b"x"), "continuation of nothing"),
            (client_frame(TEXT, b"x", fin=False) + client_frame(TEXT, b"y"), "inside a fragmented"),
            (b"\x81\xfe\x00\x7d" + MASK, "minimally"),
            (b"\x81\xfe\x00\x7d" + MASK + bytes(125), "minimally"),
            (b"\x81\xff" + (65535).to_bytes(8, "big"), "minimally"),
            (b"\x81\xff\x80" + bytes(7), "top bit"),
            (client_frame(CLOSE, b"\x03"), "half a code"),
        ],
    )
    def test_1002(self, data: bytes, text: str) -> None:
        """What RFC 6455 section 5 forbids is a protocol error that says what was wrong."""
        error = violation(data)
        assert error.code == 1002
        assert text in str(error)

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
    def test_close_codes_that_may_not_be_sent(self, code: int) -> None:
        """Reserved and undefined close codes are protocol errors."""
        assert violation(client_frame(CLOSE, code.to_bytes(2, "big"))).code == 1002
        assert not is_close_code(code)

    @pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1014, 3000, 4999])
    def test_close_codes_that_may(self, code: int) -> None:
        """Registered, library and private codes pass."""
        assert FrameParser().feed(client_frame(CLOSE, code.to_bytes(2, "big"))) == [Close(code, "")]

    @pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
    def test_1007(self, text: bytes) -> None:
        """A text message or close reason that is not UTF-8 is refused with 1007."""
        assert violation(client_frame(TEXT, b"fine " + text)).code == 1007
        assert violation(client_frame(CLOSE, b"\x03\xe8" + text)).code == 1007
        start = client_frame(TEXT, b"fine ", fin=False)
        assert violation(start + client_frame(CONTINUATION, text)).code == 1007

    @pytest.mark.parametrize(
        ("good", "breaking"),
        [
            (b"\xce", b"\xce"),
            (b"\xf4", b"\x90"),
            (b"\xed", b"\xa0"),
            (b"\xe1\xbd", b"a"),
            (b"\xe0", b"\x9f"),
            (b"\xf0", b"\x8f"),
        ],
    )
    def test_text_is_refused_at_the_octet_that_breaks_it(self, good: bytes, breaking: bytes) -> None:
        """Inside an incomplete frame: what may still become UTF-8 is waited for, what cannot is refused at once."""
        parser = FrameParser()
        frame = client_frame(TEXT, b"ok" + good + breaking + b"never comes")
        upto = 6 + 2 + len(good)
        assert parser.feed(frame[:upto]) == []
        assert violation(frame[upto : upto + 1], parser).code == 1007

    def test_a_character_may_span_fragments_and_reads(self) -> None:
        """The octets of one character may come in different frames."""
        euro = "€".encode()
        parser = FrameParser()
        assert parser.feed(client_frame(TEXT, euro[:1], fin=False)) == []
        assert parser.feed(client_frame(CONTINUATION, euro[1:2], fin=False)) == []
        assert parser.feed(client_frame(CONTINUATION, euro[2:])) == [euro]

    def test_events_before_a_violation_are_delivered(self) -> None:
        """The error carries what the same read completed before it; after it nothing is parsed."""
        parser = FrameParser()
        error = violation(client_frame(TEXT, b"a") + client_frame(PING, b"p") + b"\x83\x80", parser)
        assert error.events == [b"a", Ping(b"p")]
        assert parser.feed(client_frame(TEXT, b"b")) == []

    def test_a_message_over_the_limit_is_refused_from_its_header(self) -> None:
        """1009 comes before the payload does, for a frame and for the sum of fragments; the limit itself passes."""
        assert violation(client_frame(TEXT, bytes(101))[:2], FrameParser(100)).code == 1009
        assert violation(client_frame(TEXT, bytes(101)), FrameParser(100)).code == 1009
        assert violation(client_frame(TEXT, bytes(201)), FrameParser(200)).code == 1009
        assert violation(b"\x82\xff" + (1 << 40).to_bytes(8, "big"), FrameParser(100)).code == 1009
        start = client_frame(BINARY, bytes(60), fin=False)
        assert violation(start + client_frame(CONTINUATION, bytes(41))[:2], FrameParser(100)).code == 1009
        assert FrameParser(100).feed(start + client_frame(CONTINUATION, bytes(40))) == [Binary(bytes(100))]
        assert FrameParser(100).feed(client_frame(TEXT, bytes(100))) == [bytes(100)]

    def test_fragments_are_bounded(self) -> None:
        """Empty fragments without end are refused with 1008; as many as allowed pass."""
        start = client_frame(TEXT, b"", fin=False) + client_frame(CONTINUATION, b"", fin=False)
        assert FrameParser(max_fragments=3).feed(start + client_frame(CONTINUATION, b"x")) == [b"x"]
        more = start + client_frame(CONTINUATION, b"", fin=False) + client_frame(CONTINUATION, b"x")
        assert violation(more, FrameParser(max_fragments=3)).code == 1008


class TestBuilding:
    @given(SIZES)
    def test_round_trip(self, size: int) -> None:
        """A frame that was built parses to its payload, at every length encoding."""
        payload = b"x" * size
        assert FrameParser(1 << 20).feed(unmasked(text_frame(payload))) == [payload]
        assert FrameParser(1 << 20).feed(unmasked(binary_frame(payload))) == [Binary(payload)]

    def test_frames_of_the_rfc(self) -> None:
        """The examples of RFC 6455 section 5.7."""
        assert text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")
        assert ping_frame(b"Hello") == bytes.fromhex("890548656c6c6f")
        assert binary_frame(bytes(256))[:4] == bytes.fromhex("827e0100")
        assert binary_frame(bytes(65536))[:10] == bytes.fromhex("827f0000000000010000")
        masked = bytes.fromhex("818537fa213d7f9f4d5158")
        assert FrameParser().feed(masked) == [b"Hello"]

    def test_control_frames(self) -> None:
        """Ping, pong and close parse to what was put in."""
        assert FrameParser().feed(unmasked(ping_frame(b"1"))) == [Ping(b"1")]
        assert FrameParser().feed(unmasked(pong_frame())) == [Pong(b"")]
        assert FrameParser().feed(unmasked(close_frame(4008, "slow"))) == [Close(4008, "slow")]
        assert FrameParser().feed(unmasked(close_frame(NO_STATUS))) == [Close(NO_STATUS, "")]

    @given(st.text(min_size=30, max_size=200))
    def test_a_long_reason_is_cut_between_characters(self, reason: str) -> None:
        """A reason of any length makes a valid close frame with as much of it as fits."""
        (event,) = FrameParser().feed(unmasked(close_frame(1000, reason)))
        assert isinstance(event, Close)
        assert reason.startswith(event.reason)
        assert len(reason.encode()) <= 123 or len(event.reason.encode()) > 119
