"""
Paced broadcasts: a message to everyone, or to the members of groups, at so many targets a second.

    look (each dispatcher, each second) -> lock -> page of targets -> send -> count, and where the next begins -> ...

Unlike a send to an audience, which is one entry in a timeline and costs the number of nodes, each target gets a direct
message of its own. All have one messageId and activeTime; a target that is away finds it in its inbox.

Any dispatcher runs a broadcast that nobody runs, under a lock with a fencing token. When it ends or is killed another
one goes on behind the last page that was counted; a page that was being sent then may be sent twice, and counts once.

The pace is even: about ten pages a second, the next one when its predecessor's targets have had their time. What is
behind after a stall is caught up for one second's worth, the rest comes later. Whatever keeps a page from being sent
for now (a node is behind, Redis or the bus is away) is waited for, until the broadcast is aborted or its message
expires.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from dispatcher.broadcast_records import DONE, EXPIRED, RUNNING, Broadcasts, Sent, Work
from dispatcher.broadcast_walk import END, Walk
from dispatcher.lock import Lock
from dispatcher.metrics import BROADCAST_TARGETS, BROADCASTS_RUNNING
from dispatcher.order import Order
from dispatcher.push import Push
from dispatcher.requests import Send
from shared.backoff import Backoff
from shared.clients import KnownClients
from shared.envelope import Trigger
from shared.errors import Overloaded, PushfleetError, StoreUnavailable, Unavailable
from shared.groups import Groups
from shared.logs import OncePerSecond, get_log
from shared.store import Store

Result = TypeVar("Result")

_LOOK_S = 1.0
_LOCK_S = 6.0
_PAGES_A_SECOND = 10
_MOST_ON_PAGE = 2_000
_MOST_VOLUME = 8 << 20
_CATCH_UP_S = 1.0
_FINISH_S = 3.0
_log = get_log("broadcasts")


class _Over(Exception):
    """This runner has nothing more to do."""


class BroadcastRunner:
    """Runs what is to be run. One for the process."""

    __slots__ = ("_clients", "_groups", "_look", "_push", "_records", "_runs", "_stopping", "_store", "_tasks", "_wake")

    def __init__(self, store: Store, records: Broadcasts, push: Push, groups: Groups, clients: KnownClients) -> None:
        self._store = store
        self._records = records
        self._push = push
        self._groups = groups
        self._clients = clients
        self._wake = asyncio.Event()
        self._look: asyncio.Task[None] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runs: set[_Run] = set()
        self._stopping = False

    def start(self) -> None:
        if self._look is None:
            self._look = asyncio.create_task(self._keep_looking(), name="broadcasts")

    def wake(self) -> None:
        """One has begun."""
        self._wake.set()

    async def close(self) -> None:
        """Finish the pages that are being sent; other dispatchers go on behind them."""
        self._stopping = True
        for run in self._runs:
            run.stop()
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait((self._look,))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=_FINISH_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _keep_looking(self) -> None:
        complaint = OncePerSecond()
        while True:
            self._wake.clear()
            try:
                for broadcast_id in await self._records.running():
                    if broadcast_id not in self._tasks:
                        self._begin(broadcast_id)
            except StoreUnavailable as error:
                if complaint.due():
                    _log.warning("broadcasts_wait", reason=str(error))
            except Exception:
                _log.exception("broadcasts_failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()

    def _begin(self, broadcast_id: str) -> None:
        task = asyncio.create_task(self._run(broadcast_id), name="broadcast")
        self._tasks[broadcast_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(broadcast_id, None))

    async def _run(self, broadcast_id: str) -> None:
        """Unless another dispatcher does."""
        lock = Lock(self._store, f"broadcast:{broadcast_id}", life_s=_LOCK_S)
        try:
            if not await lock.hold():
                return
            work = await self._records.work(broadcast_id)
            if work is not None and work.state == RUNNING and not self._stopping:
                walk = Walk(work.about.groups, self._groups, self._clients)
                await self._until_over(_Run(broadcast_id, work, walk, lock, self._records, self._push))
        except PushfleetError as error:
            _log.warning("broadcast_waits", broadcast_id=broadcast_id, reason=str(error))
        except Exception:
            _log.exception("broadcast_failed", broadcast_id=broadcast_id)
        finally:
            with suppress(PushfleetError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await lock.release()

    async def _until_over(self, run: _Run) -> None:
        self._runs.add(run)
        BROADCASTS_RUNNING.set(len(self._runs))
        keeper = asyncio.create_task(run.keep(), name="broadcast lock")
        try:
            await run.run()
        finally:
            self._runs.discard(run)
            BROADCASTS_RUNNING.set(len(self._runs))
            keeper.cancel()
            await asyncio.wait((keeper,))


class _Run:
    """A broadcast while this dispatcher runs it, with one token of its lock."""

    __slots__ = (
        "_about",
        "_complaint",
        "_due",
        "_id",
        "_lock",
        "_most",
        "_msg",
        "_over",
        "_pages",
        "_place",
        "_push",
        "_records",
        "_token",
        "_walk",
    )

    def __init__(self, id_: str, work: Work, walk: Walk, lock: Lock, records: Broadcasts, push: Push) -> None:
        about = work.about
        self._id = id_
        self._about = about
        self._place = work.place
        self._pages = work.pages
        self._walk = walk
        self._lock = lock
        self._token = lock.token
        self._records = records
        self._push = push
        self._most = most_on_page(about.rate, len(work.msg))
        self._msg = work.msg
        self._over = asyncio.Event()
        self._due = time.monotonic()
        self._complaint = OncePerSecond()

    def stop(self) -> None:
        """After the page that is being sent."""
        self._over.set()

    async def run(self) -> None:
        """Until there is nothing more to do here: it has ended, another has the lock, `stop`."""
        _log.info("broadcast_runs", broadcast_id=self._id, page=self._pages, rate=self._about.rate)
        state = RUNNING
        try:
            while state == RUNNING:
                await self._pause(self._due - time.monotonic())
                state = await self._page()
        except _Over:
            return
        _log.info("broadcast_stops", broadcast_id=self._id, pages=self._pages, state=state or "run by another")

    async def keep(self) -> None:
        """Keep the lock, and see that it was lost or the broadcast aborted also while a page waits."""
        while not self._over.is_set():
            await asyncio.sleep(_LOCK_S / 3)
            try:
                await self._lock.hold()
                work = await self._records.get(self._id)
            except StoreUnavailable:
                continue
            except PushfleetError:
                self.stop()
                return
            if self._lock.token != self._token or work.state != RUNNING:
                self.stop()

    async def _page(self) -> str:
        """Find a page, send it, count it. The broadcast's state afterwards. Raises _Over."""
        if self._expired:
            return await self._patiently(lambda: self._step(Sent(), self._place, EXPIRED))
        targets, place = await self._patiently(self._next_page)
        order = self._order(targets) if targets else None
        if order is not None:
            await self._patiently(lambda: self._send_page(order))
        sent = _outcome(order, *self._walk.to_remember(self._place, targets, place))
        state = await self._patiently(lambda: self._step(sent, place, DONE if place == END else ""))
        self._place = place
        self._pages += 1
        for name, count in (("online", sent.online), ("offline", sent.offline), ("failed", sent.failed)):
            BROADCAST_TARGETS.labels(name).inc(count)
        self._due = max(self._due, time.monotonic() - _CATCH_UP_S) + len(targets) / self._about.rate
        return state

    async def _next_page(self) -> tuple[list[str], str]:
        targets, place = await self._walk.page(self._place, self._most)
        if targets:
            targets = await self._records.fresh(self._id, targets)
        return targets, place

    async def _send_page(self, order: Order) -> None:
        """Raises Overloaded, Unavailable: then it is to be sent again, under the same messageId."""
        await self._push.send_all((order,))
        if isinstance(order.error, Overloaded | Unavailable):
            raise order.error

    async def _step(self, sent: Sent, place: str, end: str) -> str:
        lock = (self._lock.key, self._token)
        return await self._records.step(self._id, lock, self._pages + 1, place, sent, end)

    async def _patiently(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Try until it goes well. Raises _Over."""
        backoff = Backoff(0.2, 2.0)
        while True:
            try:
                return await step()
            except (Overloaded, Unavailable) as error:
                reason = str(error)
            if self._complaint.due():
                _log.warning("broadcast_waits", broadcast_id=self._id, reason=reason)
            await self._pause(backoff.next_s())
            if self._expired:
                raise _Over  # the next look ends it

    async def _pause(self, seconds: float) -> None:
        """Raises _Over."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()
        if self._over.is_set():
            raise _Over

    def _order(self, targets: list[str]) -> Order:
        about = self._about
        order = Order(
            Send(tuple(targets), False, self._msg, about.sender, ttl_ms=about.expires_ms - about.created_ms),
            caller=about.caller,
            sender=about.sender,
            trigger=Trigger.HTTP,
            message_id=about.message_id,
            active_time_ms=about.created_ms,
        )
        order.request_id = about.request_id
        return order

    @property
    def _expired(self) -> bool:
        return time.time() * 1000 >= self._about.expires_ms


def most_on_page(rate: int, size: int) -> int:
    """Targets of one page, at this rate (targets/s) and with a message of so many bytes."""
    return max(1, min(rate // _PAGES_A_SECOND, _MOST_ON_PAGE, _MOST_VOLUME // max(1, size)))


def _outcome(order: Order | None, reached: tuple[str, ...], forget: bool) -> Sent:
    """`reached` and `forget`: see Sent."""
    if order is None:
        return Sent(reached=reached, forget=forget)
    targets = order.send.targets
    if order.error is not None:  # not one that passes: the bus refuses the record
        _log.error("broadcast_page_failed", reason=str(order.error))
        return Sent(failed=len(targets), reached=reached, forget=forget)
    online = len(targets) - len(order.offline)
    return Sent(online, len(order.offline) - order.full, order.full, reached, forget)
