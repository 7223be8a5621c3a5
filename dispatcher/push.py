"""
The use case: a send becomes stored messages and records on the topics of just the nodes concerned.

    begin (only with a requestId) -> store and read routes -> group by node -> publish -> end

All sends of a call go through each step together, and each step batches with whatever other calls bring.

| what happens                                    | outcome of the send                                           |
|-------------------------------------------------|---------------------------------------------------------------|
| stored, a session on a live node                | 200; the target is online                                     |
| stored, no session on a live node               | 200; the target is in `content`, its inbox keeps the message  |
| `durable:false`, no session on a live node      | 200; the target is in `content`, the message is gone          |
| the inbox is full                               | 200; the target is in `content`, nothing is sent to it        |
| the node's topic is gone                        | as no session: the node ended since its lease was read        |
| to groups, to everyone                          | 200, `content` null: one line to each node with members       |
| a group is not there                            | 404; nothing of the send was taken                            |
| the same requestId, done                        | the first answer                                              |
| the same requestId, at work elsewhere           | its answer once it is there; 503 after 5 s                    |
| the same requestId, another body                | 409                                                           |
| Redis does not answer                           | 503; what was stored is delivered, a retry has the same id    |
| the bus does not answer                         | 200; the lines wait in the outbox (outbox.py)                 |
| the bus does not answer, and the outbox is full | 503; durable messages are stored all the same                 |
| too much under way                              | 429; nothing of the send was taken                            |
| a node that it would go to is far behind        | 429; nothing of the send was taken                            |

"A retry has the same id" holds for sends with a requestId: the messageId of the first try stays with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dispatcher.audiences import AudienceSends
from dispatcher.idempotency import Ask, Begun, Idempotency, State, fingerprint
from dispatcher.metrics import NODE_TOPICS_MISSING, Tally
from dispatcher.nodes import LiveNodes
from dispatcher.order import Order
from dispatcher.outbox import Line
from dispatcher.publisher import Publisher
from shared.batching import Batcher
from shared.errors import Conflict, Overloaded, PushfleetError, StoreUnavailable, TopicMissing
from shared.ids import node_of_session
from shared.inbox import Inbox, Stored, StoredMessage, Target
from shared.logs import OncePerSecond, get_log
from shared.store import Store

_MOST_VOLUME = 256 << 20
_ROUTE_ONLY = StoredMessage("", 0, b"")
_TURN = 512
_log = get_log("dispatcher")


class _Part:
    """The lines for one topic, the order that each is of, and why they were not published."""

    __slots__ = ("done", "error", "lines", "owners")

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.owners: list[Order] = []
        self.done: asyncio.Future[None] | None = None
        self.error: PushfleetError | None = None


class Push:
    """Sends orders. One for the process."""

    __slots__ = (
        "_audiences",
        "_complaint",
        "_idempotency",
        "_nodes",
        "_publisher",
        "_redis",
        "_store",
        "_tally",
        "_volume",
    )

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        audiences: AudienceSends,
        nodes: LiveNodes,
        publisher: Publisher,
        idempotency: Idempotency,
        tally: Tally,
    ) -> None:
        self._audiences = audiences
        self._redis = store
        self._store: Batcher[tuple[str, StoredMessage], Target] = Batcher("store", inbox.store)
        self._nodes = nodes
        self._publisher = publisher
        self._idempotency = idempotency
        self._tally = tally
        self._volume = 0
        self._complaint = OncePerSecond()

    async def send_all(self, orders: Sequence[Order]) -> None:
        """Each order gets its outcome; one that fails spoils no other."""
        for order in orders:
            if order.send.request_id:
                break
        else:
            await self._send(orders)
            return
        go, waiting = await self._begin(orders)
        if go:
            await self._send(go)
        if waiting:
            await asyncio.gather(*(self._wait(order) for order in waiting))

    async def close(self) -> None:
        """Finish what is under way."""
        await self._store.close()
        await self._audiences.close()
        await self._publisher.close()
        await self._idempotency.close()

    async def _begin(self, orders: Sequence[Order]) -> tuple[list[Order], list[Order]]:
        """Those to be sent now, and those that another is sending."""
        named = [order for order in orders if order.send.request_id]
        for order in named:
            order.ask = Ask(
                order.caller,
                order.request_id,
                order.message_id,
                order.active_time_ms,
                fingerprint(order.send, order.sender),
                order.ask.claim if order.ask else self._idempotency.claim(),
            )
        try:
            self._check_store()
            begun = iter(await self._idempotency.begin([order.ask for order in named if order.ask]))
        except PushfleetError as error:
            for order in named:
                order.error = error
            return [order for order in orders if not order.send.request_id], []
        go, waiting = [], []
        for order in orders:
            if not order.send.request_id:
                go.append(order)
                continue
            record = next(begun)
            if record.state is State.WORKING:
                waiting.append(order)
            elif _settle(order, record):
                go.append(order)
        return go, waiting

    async def _wait(self, order: Order) -> None:
        assert order.ask is not None
        try:
            begun = await self._idempotency.wait(order.ask)
        except PushfleetError as error:
            order.error = error
            return
        if _settle(order, begun):
            await self._send((order,))

    async def _send(self, orders: Sequence[Order]) -> None:
        volume = 0
        for order in orders:
            volume += len(order.send.msg) * len(order.send.targets)
        if self._volume + volume > _MOST_VOLUME and self._volume:
            overloaded = Overloaded("too much is being sent")
            for order in orders:
                order.error = overloaded
        else:
            self._volume += volume
            try:
                going = await self._keep_back(orders) if self._nodes.flow.behind else orders
                if going:
                    await self._deliver(going)
            finally:
                self._volume -= volume
        ended = [
            (order.ask, b"" if order.error else order.content or b"null") for order in orders if order.ask is not None
        ]
        if ended:
            await self._end(ended)

    async def _keep_back(self, orders: Sequence[Order]) -> list[Order]:
        """Refuse those for nodes that are behind, before anything is stored; gives the others."""
        flow = self._nodes.flow
        look_up = [(target, _ROUTE_ONLY) for order in orders for target in order.send.targets]
        try:
            if look_up:
                self._check_store()
            found = iter(await self._store.submit(look_up))
        except PushfleetError as error:
            for order in orders:
                order.error = error
            return []
        for order in orders:
            order.error = flow.refusal() if order.send.everyone or order.send.groups else None
            for _ in order.send.targets:
                for session_id, epoch in next(found).sessions:
                    node_id = node_of_session(session_id)
                    if node_id in flow.behind and self._nodes.topic_of(session_id, epoch):
                        order.error = flow.refusal(node_id)
        return [order for order in orders if order.error is None]

    async def _end(self, ended: list[tuple[Ask, bytes]]) -> None:
        """A record that cannot be written fails no send: its claim runs out, and a retry has the same id."""
        try:
            await self._idempotency.end(ended)
        except PushfleetError as error:
            if self._complaint.due():
                _log.warning("answers_not_kept", reason=str(error))

    async def _deliver(self, orders: Sequence[Order]) -> None:
        for order in orders:
            order.prepare()
        parts: dict[str, _Part] = {}
        try:
            await self._store_and_place(orders, parts)
        except PushfleetError as error:
            for order in orders:
                order.error = error
            return
        await self._publish(parts)
        for order in orders:
            if order.error is None:
                order.finish()
                self._count(order)

    async def _store_and_place(self, orders: Sequence[Order], parts: dict[str, _Part]) -> None:
        """Store what goes to clients and audiences, and put the lines into the parts of their topics."""
        to_audiences = [order for order in orders if order.send.everyone or order.send.groups]
        if to_audiences:
            self._check_store()
            await self._audiences.check(to_audiences)
            orders = [order for order in orders if order.error is None]
        batch = [(target, order.message) for order in orders for target in order.send.targets]
        if batch:
            self._check_store()
            found = await self._store.submit(batch)
            strangers = await self._place(orders, found, parts)
            if strangers:
                await self._place_strangers(strangers, parts)
        to_audiences = [order for order in to_audiences if order.error is None]
        for order, topic, line in await self._audiences.add(to_audiences) if to_audiences else ():
            part = parts.setdefault(topic, _Part())
            part.lines.append(("", line))
            part.owners.append(order)

    def _check_store(self) -> None:
        """While Redis is known to be away nobody waits for it to answer: the next reading of leases finds it back."""
        if not self._redis.available:
            self._nodes.refresh_soon()
            raise StoreUnavailable("Redis does not answer; try again")

    async def _place(
        self, orders: Sequence[Order], found: list[Target], parts: dict[str, _Part]
    ) -> list[tuple[Order, str, Target]]:
        """Put lines into the parts of their topics; gives those with a session on a node that is not known."""
        strangers = []
        place = 0
        for order in orders:
            for client_id in order.send.targets:
                target = found[place]
                place += 1
                if not place % _TURN:
                    await asyncio.sleep(0)  # a send to thousands holds up no other
                if not target.sessions or target.stored is Stored.FULL:
                    order.offline.append(client_id)
                    if target.stored is Stored.FULL:
                        order.full += 1
                        self._tally.targets["inbox full"] += 1
                elif not self._place_target(order, client_id, target, parts):
                    strangers.append((order, client_id, target))
        return strangers

    def _place_target(self, order: Order, client_id: str, target: Target, parts: dict[str, _Part]) -> bool:
        """False, and nothing done, when a node is not known."""
        topic_of = self._nodes.topic_of
        topics = [topic_of(session_id, epoch) for session_id, epoch in target.sessions]
        if None in topics:
            return False
        reached = False
        for (session_id, epoch), topic in zip(target.sessions, topics, strict=True):
            if not topic:
                self._nodes.found_dead(client_id, session_id, epoch)
                continue
            reached = True
            part = parts.get(topic)
            if part is None:
                part = parts[topic] = _Part()
            part.lines.append((client_id, order.line(session_id, client_id, target.order)))
            part.owners.append(order)
        if not reached:
            order.offline.append(client_id)
        return True

    async def _place_strangers(self, strangers: list[tuple[Order, str, Target]], parts: dict[str, _Part]) -> None:
        """With a fresh table of nodes every node is known: it lives or it is dead."""
        await self._nodes.refresh()
        for order, client_id, target in strangers:
            order.out_of_order = True
            for session_id, epoch in target.sessions:
                if self._nodes.topic_of(session_id, epoch) is None:
                    self._nodes.found_dead(client_id, session_id, epoch)
            self._place_target(order, client_id, target, parts)

    async def _publish(self, parts: dict[str, _Part]) -> None:
        for topic, part in parts.items():
            try:
                part.done = self._publisher.submit(topic, part.lines)
            except PushfleetError as error:
                part.error = error
        missing = False
        for part in parts.values():
            try:
                if part.done is not None:
                    await part.done
            except TopicMissing as error:
                part.error = error
                missing = True
                NODE_TOPICS_MISSING.inc()
            except PushfleetError as error:
                part.error = error
            if part.error is not None and not isinstance(part.error, TopicMissing):
                for order in part.owners:
                    order.error = part.error
        if missing:
            self._nodes.refresh_soon()
            _count_missed(parts)

    def _count(self, order: Order) -> None:
        counts = self._tally.targets
        if order.send.everyone:
            counts["everyone"] += 1
            return
        if order.send.groups:
            counts["group"] += len(order.send.groups)
        counts["online"] += len(order.send.targets) - len(order.offline)
        if order.offline:
            counts["offline"] += len(order.offline)


def _settle(order: Order, begun: Begun) -> bool:
    """Take over what the record says; whether the order is to be sent."""
    order.message_id = begun.message_id
    order.active_time_ms = begun.active_time_ms
    if begun.state is State.MINE:
        order.again = order.again or begun.again
        return True
    if begun.state is State.DONE:
        order.error = None
        order.content = None if begun.answer == b"null" else begun.answer
    else:
        order.error = Conflict("the same requestId was used with another body", field="requestId")
    return False


def _count_missed(parts: dict[str, _Part]) -> None:
    """Targets all of whose sessions were on nodes without a topic are offline."""
    reached: set[tuple[int, str]] = set()
    for part in parts.values():
        if part.error is None:
            reached.update((id(order), line[0]) for order, line in zip(part.owners, part.lines, strict=True))
    for part in parts.values():
        if isinstance(part.error, TopicMissing):
            for order, (client_id, _) in zip(part.owners, part.lines, strict=True):
                if client_id and (id(order), client_id) not in reached:
                    reached.add((id(order), client_id))
                    order.offline.append(client_id)
                    order.out_of_order = True
