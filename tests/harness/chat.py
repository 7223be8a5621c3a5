"""A user of the chat dialect: a raw WebSocket that never acknowledges, on any node of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster


class User:
    """One session. It sees each frame once, whichever way it waits."""

    def __init__(self, client: Client, client_id: str) -> None:
        self.client = client
        self.client_id = client_id
        self._seen: set[int] = set()

    async def send(self, kind: int, **params: Any) -> None:
        await self.client.send({"type": kind, "params": params} if params else {"type": kind})

    async def ask(self, kind: int, reply: int, **params: Any) -> dict[str, Any]:
        """Send, and wait for the reply of this type; its params."""
        await self.send(kind, **params)
        return await self.answered(reply)

    async def refused(self, kind: int, **params: Any) -> dict[str, Any]:
        """Send what is refused; code and message."""
        return await self.ask(kind, 500, **params)

    async def tried(self, kind: int, reply: int, **params: Any) -> bool:
        """Send, and wait until it is done or refused: whether it was done."""
        await self.send(kind, **params)
        frame = await self._next(lambda frame: "msgType" not in frame and frame["type"] in (reply, 500))
        return bool(frame["type"] == reply)

    async def answered(self, kind: int) -> dict[str, Any]:
        """The params of the next answer of this type."""
        frame = await self._next(lambda frame: "msgType" not in frame and frame["type"] == kind)
        assert frame["status"] == (500 if kind == 500 else 200)
        return dict(frame.get("params") or {})

    async def told(self, kind: int) -> dict[str, Any]:
        """The next envelope with a document of this type."""
        return await self._next(lambda frame: _kind(frame) == kind)

    def tellings(self, kind: int) -> list[Any]:
        """What `message` was in each document of this type so far."""
        return [frame["msg"]["params"]["message"] for frame in self.client.frames if _kind(frame) == kind]

    async def _next(self, wanted: Any) -> dict[str, Any]:
        frames = self.client.frames

        def place() -> int | None:
            return next((n for n, frame in enumerate(frames) if n not in self._seen and wanted(frame)), None)

        await self.client.until(lambda: place() is not None)
        found = place()
        assert found is not None
        self._seen.add(found)
        return frames[found]


def _kind(frame: dict[str, Any]) -> int | None:
    msg = frame.get("msg")
    return msg.get("type") if frame.get("msgType") == 1 and isinstance(msg, dict) else None


def person(of: User, name: str, status: str = "1") -> dict[str, str]:
    """As others see a user."""
    return {"openid": of.client_id, "userName": name, "loginStatus": status}


@asynccontextmanager
async def user(cluster: Cluster, node: int, client_id: str, name: str = "") -> AsyncIterator[User]:
    """Named by its first frame, type 7; registered when entered."""
    async with connected(cluster.http, cluster.socket_url(node)) as client:
        user = User(client, client_id)
        await user.ask(7, 8, openid=client_id, userName=name, loginStatus="1")
        yield user
