"""What both sides of a group's membership say, straight from Redis."""

from __future__ import annotations

from collections.abc import Sequence

from shared.groups import Groups
from shared.store import Store

DEADLINE_S = 60.0
START = "0" * 16
CLIENTS = [f"c{number}" for number in range(200)]


async def members_of(store: Store, group_id: str) -> set[str]:
    found: set[bytes] = await store.redis.smembers(store.keys.audience(group_id)[2])  # type: ignore[assignment]
    return {member.decode() for member in found}


async def audiences_of(store: Store, client_id: str) -> dict[str, str]:
    found: dict[bytes, bytes] = await store.redis.hgetall(store.keys.audiences(client_id))  # type: ignore[assignment]
    return {name.decode(): value.decode() for name, value in found.items()}


async def inside(store: Store, group_id: str, clients: Sequence[str] = CLIENTS) -> set[str]:
    """Those whose own side says that they are members."""
    return {client_id for client_id in clients if group_id in await audiences_of(store, client_id)}


async def send(store: Store, group_id: str, order: int) -> str:
    """What the newest message leaves behind."""
    await store.redis.hset(store.keys.audience(group_id)[0], "last", f"{order:016d}")
    return f"{order:016d}"


async def delete(groups: Groups, group_id: str) -> int:
    return sum([changed.count async for changed in groups.delete(group_id)])
