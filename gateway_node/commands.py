"""
Commands: what clients ask of the node, in the node's own words. Pure.

    bytes --client_frames--> command --clerk--> done or refused --dialect--> bytes

Clients speak one of two dialects (client_frames.py, chat.py). Whatever carries a command out knows neither: the dialect
that a command came in writes its answer, and what other clients are sent because of it.

They are Structs, since one is made for each frame: a frozen dataclass takes three times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Raw, Struct

from shared.person import Person

_MOST_TEXT = 256
_MOST_ID = 128


class Business(Struct, frozen=True):
    """A message to clients, and to groups that the sender is in."""

    to: list[str]
    msg: Raw
    request_id: str | None
    groups: Sequence[str] = ()


class Ack(Struct, frozen=True):
    message_ids: list[str]


class Heartbeat(Struct, frozen=True):
    message_id: str | None = None


class Register(Struct, frozen=True):
    """
    The client says who it is: `user_name` is "" when it gives none. `present` False: it leaves.

    `login`: it is known already; only the answer differs.
    """

    client_id: str
    user_name: str = ""
    present: bool = True
    login: bool = False


class Tell(Struct, frozen=True):
    """A user's words to another; `message` and `file_type` are JSON texts."""

    to: str
    message: bytes
    file_type: bytes
    request_id: str | None


class TellGroup(Struct, frozen=True):
    """A user's words to a group that it is in."""

    group_id: str
    message: bytes
    file_type: bytes
    request_id: str | None


class CreateGroup(Struct, frozen=True):
    """Its creator is a member, whether it is among `members` or not."""

    name: str
    members: tuple[str, ...]


class ChangeGroup(Struct, frozen=True):
    """Join a group, or leave it."""

    group_id: str
    leave: bool


class Read(Struct, frozen=True):
    """A user has read a message: its sender is told."""

    message_id: str


class Renew(Struct, frozen=True):
    """A newer token, so that the session may go on."""

    token: str
    message_id: str | None = None


Command = Business | Ack | Heartbeat | Renew | Register | Tell | TellGroup | CreateGroup | ChangeGroup | Read


class Asked(Struct, frozen=True):
    """A command, and whether it came in the chat dialect."""

    command: Command
    chat: bool


class Done(Struct, frozen=True):
    """What became of a command: as much of it as applies. `at_ms` (epoch ms): when it was accepted."""

    at_ms: int
    message_id: str = ""
    request_id: str = ""
    group: NewGroup | None = None
    expires_s: float = 0.0


class NewGroup(Struct, frozen=True):
    """A group that was created. `refused`: clientId and why it is not a member."""

    group_id: str
    name: str
    members: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


class Refused(Exception):
    """
    A command that was not carried out: `code` for programs, the text for people.

    `request_id`, `message_id`: those of the frame where it had them, else what the node made for it, else None.
    """

    def __init__(self, code: str, text: str, request_id: str | None = None, message_id: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id
        self.message_id = message_id


class BadFrame(Refused):
    """
    Refused for what its sender should not have sent; too many of them end the connection.

    `chat`: the frame was of the chat dialect, so the answer has to be. What stems from the frame is cut, so that the
    answer is short whatever was sent.
    """

    def __init__(
        self,
        code: str,
        text: str,
        request_id: str | None = None,
        message_id: str | None = None,
        *,
        chat: bool = False,
    ) -> None:
        super().__init__(code, text[:_MOST_TEXT], _cut(request_id), _cut(message_id))
        self.chat = chat


def _cut(its_id: str | None) -> str | None:
    return None if its_id is None else its_id[:_MOST_ID]


class Asker(Protocol):
    """Whose command it is: a session."""

    session_id: bytes
    client_id: str


class Dialect(Protocol):
    """Writes what the client itself is answered, as JSON text."""

    def answer(self, asker: Asker, command: Command, done: Done) -> bytes:
        """The frame that answers a command which was carried out."""

    def refusal(self, asker: Asker, refused: Refused) -> bytes:
        """The frame that answers one which was not."""


class Words(Protocol):
    """Writes what other clients get of what a user does: the `msg` of an envelope, as JSON text."""

    def told(self, command: Tell, sender: Person, receiver: Person) -> bytes:
        """For the receiver."""

    def told_group(self, command: TellGroup, sender: Person) -> bytes:
        """For the members of the group."""

    def invited(self, group: NewGroup) -> bytes:
        """For the members of a new group."""

    def read(self, command: Read, reader: Person, sender: Person) -> bytes:
        """For the sender of a message that was read."""
