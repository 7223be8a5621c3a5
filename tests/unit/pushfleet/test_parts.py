"""Small parts under `pushfleet dev` and `pushfleet tail`: ports, child logs, folders, URLs."""

from __future__ import annotations

import socket
from pathlib import Path

import orjson
import pytest

from pushfleet.child_log import ChildLog
from pushfleet.lifeline import DataFolderInUse, locked_folder
from pushfleet.ports import PortPicker
from pushfleet.tail import TailOptions, connect_url, on_one_line, reconnect_pause_s


def options(*, token: str | None = None, ack: bool = True) -> TailOptions:
    return TailOptions("alice", None, "", token, None, ack)


@pytest.mark.parametrize(
    ("url", "chosen", "expected"),
    [
        ("ws://h:9000", options(), "ws://h:9000/websocket?clientId=alice&ack=1"),
        ("ws://h:9000/ws?device=x", options(ack=False), "ws://h:9000/ws?device=x&clientId=alice"),
        ("ws://h:9000/", options(token="t"), "ws://h:9000/websocket?ack=1"),
    ],
)
def test_the_url_says_who_connects(url: str, chosen: TailOptions, expected: str) -> None:
    """Without a token the clientId is in the URL; a token never is."""
    assert expected == connect_url(url, chosen)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [('{"reconnectIn":1500}', 1.5), ('{"reconnectIn":-1}', 0.0), ("", None), ("bye", None), ("[]", None), ("{}", None)],
)
def test_a_draining_nodes_pause_is_read(reason: str, expected: float | None) -> None:
    """Milliseconds in the close reason; anything else leaves the pause to the client."""
    assert expected == reconnect_pause_s(reason)


def test_an_envelope_is_one_line_and_the_same_json() -> None:
    """A message that was written over several lines is shown on one."""
    text = '{"msg":{\r\n  "a": "x\\ny"\n}}'
    line = on_one_line(text)
    assert b"\n" not in line
    assert orjson.loads(text) == orjson.loads(line)


def test_a_taken_port_is_replaced_and_told() -> None:
    """The next free one up is given, never one that was given before."""
    said: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        picker = PortPicker(said.append)
        first, second = picker.pick(taken, "node-1"), picker.pick(taken, "node-2")
        picker.close()
    assert taken < first < second
    assert [f"port {taken} is taken: node-1 gets {first}", f"port {taken} is taken: node-2 gets {second}"] == said


def test_two_who_choose_at_once_get_different_ports() -> None:
    """A port that one of us has chosen is no other's, though nobody listens on it yet; closing gives it back."""
    one, two = PortPicker(lambda _: None), PortPicker(lambda _: None)
    port = one.pick(0, "x")
    assert two.pick(port, "x") > port
    one.close()
    two.close()
    again = PortPicker(lambda _: None)
    assert again.pick(port, "x") == port
    again.close()


def test_port_zero_is_any_free_port_and_nothing_is_told() -> None:
    """Who asks for any port is not told which it did not get."""
    said: list[str] = []
    picker = PortPicker(said.append)
    assert picker.pick(0, "x") != picker.pick(0, "y")
    assert said == []
    picker.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """The second is told who has it; once that one is gone the folder is free."""
    folder = tmp_path / "data"
    with (
        locked_folder(folder),
        pytest.raises(DataFolderInUse, match=r"in use by process \d+.*--data"),
        locked_folder(folder),
    ):
        pytest.fail("two owners")
    with locked_folder(folder):
        assert (folder / ".gitignore").read_text() == "*\n"


def log_at(path: Path, shown: list[str], events: list[str]) -> ChildLog:
    return ChildLog(path, show=shown.append, on_event=events.append)


def test_a_childs_warnings_are_shown_and_all_is_kept(tmp_path: Path) -> None:
    """Info lines go to the file only; warnings, errors and what is no JSON are shown, however the bytes are cut."""
    shown: list[str] = []
    events: list[str] = []
    log = log_at(tmp_path / "node.log", shown, events)
    output = (
        b'{"timestamp":"t","level":"info","event":"ready","port":9000}\n'
        b'{"level":"warning","event":"bus_lost","part":"node","attempt":3}\nTraceback\nlast'
    )
    for cut in range(0, len(output), 7):
        log.feed(output[cut : cut + 7])
    log.end_of_output()
    log.close()
    assert ["warning: bus_lost (attempt=3)", "Traceback", "last"] == shown
    assert ["ready", "bus_lost"] == events
    assert output == log.path.read_bytes()
    assert "info: ready (port=9000)" in log.tail()


def test_a_warning_that_is_repeated_is_shown_once(tmp_path: Path) -> None:
    """A lasting fault does not flood the terminal; another kind of warning is still shown, and the file has all."""
    shown: list[str] = []
    log = log_at(tmp_path / "node.log", shown, [])
    log.feed(b'{"level":"warning","event":"bus_lost"}\n' * 50 + b'{"level":"error","event":"failed"}\n')
    log.close()
    assert ["warning: bus_lost", "error: failed"] == shown
    assert log.path.read_bytes().count(b"bus_lost") == 50


def test_a_log_that_is_full_starts_again(tmp_path: Path) -> None:
    """The file is bounded: the old one stands beside the new one."""
    log = log_at(tmp_path / "node.log", [], [])
    line = b'{"level":"info","event":"x"}' + b" " * 1_000_000 + b"\n"
    for _ in range(25):
        log.feed(line)
    log.close()
    kept = sorted(tmp_path.iterdir())
    assert ["node.log", "node.log.1"] == [file.name for file in kept]
    assert sum(file.stat().st_size for file in kept) < 23_000_000
