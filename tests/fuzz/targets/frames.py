"""
The WebSocket frame parser, against a parser that takes each octet on its own.

An input is read in one of two ways: as the bytes of a connection, or as a plan of frames that are mostly good. Either
goes in whole, in pieces, and through the second parser; the three have to agree.
"""

from __future__ import annotations

from itertools import product

from gateway_node.websocket.frames import (
    NO_STATUS,
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
from tests.fuzz.target import Chooser, Target

Outcome = tuple[list[Event], int | None]
"""The events, and the close code of the violation behind them."""

_LAST = (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF)


def run(data: bytes) -> None:
    chooser = Chooser(data)
    most_message = (16, 125, 1000, 70_000)[chooser.below(4)]
    most_fragments = (2, 8, 1024)[chooser.below(3)]
    sizes = [1 + chooser.below(40) for _ in range(4)]
    stream = _planned(chooser) if chooser.below(2) else chooser.rest()
    whole = _fed(FrameParser(most_message, most_fragments), [stream])
    pieces = list(_pieces(stream, sizes))
    assert whole == _fed(FrameParser(most_message, most_fragments), pieces), "the cuts change what comes out"
    early = FrameParser(most_message, most_fragments, early=stream[: sizes[0]])
    assert whole == _fed(early, [stream[sizes[0] :]]), "what came early changes what comes out"
    assert whole == _Plain(most_message, most_fragments).read(stream), "the plain parser reads it otherwise"
    for event in whole[0]:
        _assert_round_trip(event)


def _planned(chooser: Chooser) -> bytes:
    """Frames that a client could send, now and then one that it may not."""
    frames = []
    for _ in range(1 + chooser.below(12)):
        first = (0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88, 0x02, chooser.below(256))[chooser.below(10)]
        payload = chooser.take(chooser.below(160)) * (1, 1, 1, 9)[chooser.below(4)]
        mask = chooser.take(4).ljust(4, b"\0")
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        frames.append(bytes((first,)) + length + mask + bytes(o ^ mask[i & 3] for i, o in enumerate(payload)))
    return b"".join(frames) + chooser.take(chooser.below(8))


def _pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    at = 0
    while at < len(stream):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream[at : at + size])
        at += size
    return pieces


def _fed(parser: FrameParser, pieces: list[bytes]) -> Outcome:
    events: list[Event] = []
    for piece in pieces or [b""]:
        try:
            events += parser.feed(piece)
        except ProtocolError as error:
            assert is_close_code(error.code), "a code that may not be sent"
            assert len(str(error).encode()) <= 123, "a reason that does not fit"
            assert parser.feed(b"\x81\x80\0\0\0\0") == [], "it goes on after a violation"
            return events + error.events, error.code
    return events, None


def _assert_round_trip(event: Event) -> None:
    """What a node would send for it reads the same."""
    if isinstance(event, bytes):
        frame = text_frame(event)
    elif isinstance(event, Binary):
        frame = binary_frame(event.payload)
    elif isinstance(event, Ping):
        frame = ping_frame(event.payload)
    elif isinstance(event, Pong):
        frame = pong_frame(event.payload)
    else:
        frame = close_frame(event.code, event.reason)
    size = 2 + {126: 2, 127: 8}.get(frame[1], 0)
    masked = frame[:1] + bytes((frame[1] | 0x80,)) + frame[2:size] + b"\0\0\0\0" + frame[size:]
    assert FrameParser(1 << 20).feed(masked) == [event]


class _Violation(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class _Plain:
    """RFC 6455 sections 5 and 7 read aloud: one frame after the other, no thought of speed."""

    def __init__(self, most_message: int, most_fragments: int) -> None:
        self._most = most_message
        self._most_fragments = most_fragments
        self._open: int | None = None
        self._so_far = b""
        self._fragments = 0
        self._events: list[Event] = []

    def read(self, stream: bytes) -> Outcome:
        at: int | None = 0
        try:
            while at is not None and not (self._events and isinstance(self._events[-1], Close)):
                at = self._frame(stream, at)
        except _Violation as violation:
            return self._events, violation.code
        return self._events, None

    def _frame(self, stream: bytes, at: int) -> int | None:
        """Where the next begins; None when this one has no end."""
        octets = stream[at:]
        if len(octets) < 2:
            return None
        opcode, final, length = octets[0] & 15, octets[0] >> 7, octets[1] & 127
        reserved = octets[0] >> 4 & 7
        if reserved or opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15) or octets[1] < 128:
            raise _Violation(1002)
        if opcode >= 8 and (not final or length > 125):
            raise _Violation(1002)
        head = 2
        if length > 125:
            head += 2 if length == 126 else 8
            if len(octets) < head:
                return None
            small, length = length == 126, int.from_bytes(octets[2:head], "big")
            if length >= 1 << 63 or length < (126 if small else 65536):
                raise _Violation(1002)
        if opcode < 8:
            self._check_data(opcode, length)
        if len(octets) < head + 4:
            return None
        if opcode < 8:
            self._begin(opcode)
        mask, masked = octets[head : head + 4], octets[head + 4 : head + 4 + length]
        payload = bytes(octet ^ mask[place % 4] for place, octet in enumerate(masked))
        self._take(opcode, bool(final), payload, whole=len(payload) == length)
        return at + head + 4 + length if len(payload) == length else None

    def _check_data(self, opcode: int, length: int) -> None:
        if (opcode == 0) == (self._open is None):
            raise _Violation(1002)
        if len(self._so_far) + length > self._most:
            raise _Violation(1009)

    def _begin(self, opcode: int) -> None:
        if self._open is None:
            self._open, self._fragments = opcode, 1
            return
        self._fragments += 1
        if self._fragments > self._most_fragments:
            raise _Violation(1008)

    def _take(self, opcode: int, final: bool, payload: bytes, *, whole: bool) -> None:
        if opcode >= 8:
            if whole:
                self._events.append(_control(opcode, payload))
            return
        self._so_far += payload
        done = whole and final
        if self._open == 1 and not _may_become_text(self._so_far, done):
            raise _Violation(1007)
        if done:
            self._events.append(self._so_far if self._open == 1 else Binary(self._so_far))
            self._open, self._so_far = None, b""


def _control(opcode: int, payload: bytes) -> Event:
    if opcode == 9:
        return Ping(payload)
    if opcode == 10:
        return Pong(payload)
    if not payload:
        return Close(NO_STATUS, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or code // 1000 in (3, 4)):
        raise _Violation(1002)
    if not _is_text(payload[2:]):
        raise _Violation(1007)
    return Close(code, payload[2:].decode())


def _is_text(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def _may_become_text(octets: bytes, done: bool) -> bool:
    """Whether octets are UTF-8, or can be with at most three more."""
    if _is_text(octets):
        return True
    tail = octets[-3:]
    return not done and any(
        _is_text(octets[: len(octets) - len(tail)] + tail + bytes(more))
        for count in (1, 2, 3)
        for more in product(_LAST, repeat=count)
    )


_MASKED = b"\x81\x85\x12\x34\x56\x78\x7a\x51\x3a\x14\x7d"
_SEEDS = (
    b"\3\2\1\2\3\4\0" + _MASKED * 3,
    b"\3\2\1\2\3\4\0\x01\x83\0\0\0\0\xe2\x82\xac\x80\x81\0\0\0\0a",
    b"\3\2\1\2\3\4\0\x01\x82\0\0\0\0\xe2\x82\x80\x81\0\0\0\0\xac",
    b"\3\2\1\2\3\4\0\x89\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8",
    b"\3\2\1\2\3\4\0\x81\xfe\0\x7e\0\0\0\0" + b"a" * 126,
    b"\3\2\1\2\3\4\0\x02\xff\0\0\0\0\0\1\0\0\0\0\0\0b",
    b"\3\2\1\2\3\4\1\x05\0\x05hello\0abcd\2\3wor\0abcd",
)

TARGET = Target("frames", run, _SEEDS)
