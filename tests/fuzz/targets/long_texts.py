"""
Long inputs of one unit repeated, through everything that reads what strangers send: time must not grow faster than
length. libFuzzer ends an input that takes more than ten seconds; each of these is at home in milliseconds.
"""

from __future__ import annotations

from contextlib import suppress

from dispatcher.requests import parse_list, parse_send
from gateway_node.client_frames import parse_frame
from gateway_node.commands import BadFrame
from gateway_node.websocket.frames import FrameParser, ProtocolError
from gateway_node.websocket.handshake import Refused
from gateway_node.websocket.opening import Opening
from shared.bus.rocketmq.wire import WireError, decode_frame, decode_json, decode_messages
from shared.errors import BadRequest, Unauthorized
from shared.json_text import is_too_deep
from shared.key_source import KeySource
from shared.record import BadLine, decode_audience, decode_line, split_lines
from tests.fuzz.target import Chooser, Target

_LENGTH = 1 << 17
_KEYS = KeySource("a secret of the site that has more than 32 bytes", "")


def run(data: bytes) -> None:
    chooser = Chooser(data)
    reading = _READINGS[chooser.below(len(_READINGS))]
    brackets = chooser.below(2) * 70
    before, unit, behind = (chooser.take(chooser.below(limit)) for limit in (40, 24, 16))
    times = _LENGTH // len(unit) if unit else 0
    with suppress(BadFrame, BadRequest, BadLine, ProtocolError, Refused, Unauthorized, WireError):
        reading(b"[" * brackets + before + unit * times + behind)


def _frame(text: bytes) -> None:
    with suppress(UnicodeDecodeError):
        text.decode()
        parse_frame(text)


def _websocket(stream: bytes) -> None:
    parser = FrameParser(1 << 18)
    for at in range(0, len(stream), 1400):
        parser.feed(stream[at : at + 1400])


def _handshake(stream: bytes) -> None:
    opening = Opening()
    for at in range(0, len(stream), 16):
        if opening.feed(stream[at : at + 16], 8192, 100) is not None:
            return


def _lines(body: bytes) -> None:
    for line in split_lines(body):
        for decode in (decode_line, decode_audience):
            with suppress(BadLine):
                decode(line)


def _token(text: bytes) -> None:
    _KEYS.verify(text[:16_384].decode("utf-8", "surrogateescape"))


def _depth(text: bytes) -> None:
    is_too_deep(text)


_READINGS = (
    _frame,
    _websocket,
    _handshake,
    _lines,
    _token,
    _depth,
    parse_send,
    parse_list,
    decode_frame,
    decode_json,
    decode_messages,
)
_SEEDS = (
    b'\0\0\x1b{"msgType":1,"to":"a","msg":\6\\"a\\\\\\n\2"}',
    b"\1\0\0\6\x01\x80\0\0\0\0\0",
    b"\2\0\x1aGET / HTTP/1.1\r\nHost: a\r\n:\7x: y\r\n\4\r\n\r\n",
    b'\3\0\x1e{"expires":1764000000000,"order\7":"0,\n{',
    b"\4\0\1[\1[\1.",
    b'\5\1\1"\2\\"\1"',
    b'\6\0\x0b{"to":["a",\4"b",\3"]}',
    b"\7\0\1[\2{}\1]",
    b"\x09\0\0\4{0:1\1}",
)

TARGET = Target("long_texts", run, _SEEDS, most=96)
