"""The parts of a node that deliver, put together as app.py does, without its sockets and tasks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway_node.audience import Audience
from gateway_node.audiences import Audiences, Place
from gateway_node.cursor_moves import CursorMoves
from gateway_node.delivery import Delivery
from gateway_node.fanout import Fanout
from gateway_node.hub import Hub
from gateway_node.settings import GatewaySettings
from gateway_node.window import Recent
from shared.cursors import Cursors
from shared.inbox import Inbox
from shared.store import Store
from shared.timeline import Timelines


@dataclass(slots=True)
class Parts:
    """`await close()` when done."""

    hub: Hub
    moves: CursorMoves
    delivery: Delivery
    fanout: Fanout
    audiences: Audiences

    async def close(self) -> None:
        await self.audiences.close(1.0)
        await self.delivery.close(1.0)


def node_parts(store: Store, settings: GatewaySettings, node_id: str = "10.0.0.1:9000") -> Parts:
    hub, cursors, loose = Hub(), Cursors(store), Recent()
    by_name: dict[str, Audience] = {}
    moves = CursorMoves(cursors)
    delivery = Delivery(hub, Inbox(store), settings, moves, loose)
    fanout = Fanout(by_name, delivery, moves, loose, settings)
    place = Place(node_id, lambda: "e1")
    audiences = Audiences(place, hub, Timelines(store), cursors, delivery, moves, fanout, by_name)

    async def turn() -> None:
        await asyncio.sleep(0)

    audiences.turn = turn
    audiences.tell = lambda session, code, text, group: None
    return Parts(hub, moves, delivery, fanout, audiences)
