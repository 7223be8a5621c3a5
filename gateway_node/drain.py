"""
The drain: a node leaves in order, and its clients come back elsewhere without a crowd.

    serving --SIGTERM, or a request--> told -> closing -> leaving -> the process ends
       ^                                |         |
       └──── the request is withdrawn ──┴─────────┘

*Told*: the lease says that the node drains, so dispatchers offer it to nobody any more. They read the leases each
second, so who was sent here just before is still taken; a moment later the node refuses. *Closing*: sessions are
closed with 1001 at an even pace, over the drain's time, or for longer when they are so many that the pace's bound
would be exceeded. Each is told a short pause of its own before it connects again, so clients come to the other nodes
at that pace too. Those that are still open get their messages. *Leaving*: once the routes of all sessions are out of
the registry no dispatcher sends here; what is in the topic then is read to its end, the topic is deleted and the lease
given back, with nothing left for a janitor.

A request comes with the lease's renewals, and while it can be read there it holds; without it the node serves again,
the remaining sessions untouched. A signal holds whatever is requested. A second signal, and a drain over 0 s, close
everybody at once: then the pauses alone keep the clients apart, and away until dispatchers know. Every step has a
deadline, after which the drain goes on without it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil

import msgspec
import orjson

from gateway_node.audiences import Audiences
from gateway_node.delivery import Delivery
from gateway_node.gateway import Gateway
from gateway_node.hub import Hub
from gateway_node.lease import LeaseKeeper
from gateway_node.metrics import DRAIN_LEFT
from gateway_node.registration import Registration
from gateway_node.session import Session
from shared.errors import CloseCode
from shared.logs import OncePerSecond, get_log
from shared.registry import DrainRequest, DrainState

SIGNAL, REQUEST = "signal", "request"

_NOTICE_S = 1.2  # dispatchers read the leases each second
_STEP_S = 0.05
_SPREAD_S = 1.0
_CLOSE_S = 7.0  # a connection is cut 5 s after its close frame, at the next tick
_HURRIED_CLOSE_S = 1.0
_SETTLE_S = 5.0
_TELL_S = 2.0
_log = get_log("node")
_request_decoder = msgspec.json.Decoder(DrainRequest)


@dataclass(frozen=True, slots=True)
class Plan:
    """
    When `sessions` sessions are closed: evenly over `seconds`, but at most `pace` a second; all at once for 0 s.

    `asked_s` is what was asked for.
    """

    sessions: int
    asked_s: float
    pace: int

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return max(self.asked_s, self.sessions / self.pace) if self.asked_s else 0.0

    def due(self, passed_s: float) -> int:
        """How many are to be closed by then."""
        if passed_s >= self.seconds:
            return self.sessions
        return min(self.sessions, 1 + int(self.sessions * passed_s / self.seconds))

    @property
    def most_a_step(self) -> int:
        """A node that was held up does not make up for it in one go."""
        return ceil(2 * self.pace * _STEP_S) if self.asked_s else self.sessions

    def advice(self, *, at_once: int = 0, least_s: float = 0.0) -> str:
        """The reason of a close frame: ms to wait, `least_s` or more. `at_once`: so many are closed together."""
        spread_s = max(min(_SPREAD_S, self.asked_s or _SPREAD_S), at_once / self.pace)
        return orjson.dumps({"reconnectIn": int(1000 * (least_s + random.uniform(0.0, spread_s)))}).decode()


class _Cause:
    """Why the node drains. A signal may take over what a request began."""

    __slots__ = ("by", "request", "seconds")

    def __init__(self, by: str, seconds: float, request: bytes = b"") -> None:
        self.by = by
        self.seconds = seconds
        self.request = request


class Drain:
    """
    Owned by app.py, which runs `run` as the node's life. `leave_topic(patient)` reads the topic to its end if it is to
    be patient, deletes it, and tells whether it is gone.
    """

    __slots__ = (
        "_audiences",
        "_cause",
        "_changed",
        "_delivery",
        "_gateway",
        "_hub",
        "_hurried",
        "_lease",
        "_leave_topic",
        "_leaving",
        "_noticed_at",
        "_plan",
        "_progress",
        "_registration",
        "_seconds",
        "done",
        "refuses",
    )

    def __init__(
        self,
        hub: Hub,
        gateway: Gateway,
        registration: Registration,
        delivery: Delivery,
        audiences: Audiences,
        lease: LeaseKeeper,
        leave_topic: Callable[[bool], Awaitable[bool]],
        *,
        seconds: float,
        pace: int,
    ) -> None:
        """`seconds` and `pace`: over how long sessions are closed, and how many a second at most."""
        self.done = False
        self.refuses = False
        self._hub = hub
        self._gateway = gateway
        self._registration = registration
        self._delivery = delivery
        self._audiences = audiences
        self._lease = lease
        self._leave_topic = leave_topic
        self._seconds = seconds
        self._plan = Plan(0, seconds, pace)
        self._cause: _Cause | None = None
        self._hurried = False
        self._leaving = False
        self._noticed_at = 0.0  # when dispatchers offer this node to nobody any more (event loop clock, s)
        self._changed = asyncio.Event()
        self._progress = OncePerSecond()

    # -- what it is told -------------------------------------------------------------------------------------

    def by_signal(self) -> None:
        """The process is to end."""
        if self._cause is None:
            self._cause = _Cause(SIGNAL, self._seconds)
        else:
            self._cause.by = SIGNAL
        self._changed.set()

    def hurry(self) -> None:
        """At once, please."""
        self._hurried = True
        self._changed.set()

    def asked(self, request: bytes) -> None:
        """The request (JSON) that the registry holds for this node now; b"" for none."""
        cause = self._cause
        if self._leaving or (cause is not None and (cause.by == SIGNAL or cause.request == request)):
            return
        self._cause = self._cause_of(request)
        if self._cause is not cause:
            self._changed.set()

    def _cause_of(self, request: bytes) -> _Cause | None:
        if not request:
            return None
        try:
            asked = _request_decoder.decode(request)
        except ValueError:
            _log.warning("drain_request_not_read")
            return None
        if asked.epoch != self._lease.epoch:
            return None  # it is for an earlier start on this address
        return _Cause(REQUEST, self._seconds if asked.seconds is None else asked.seconds, request)

    # -- what it tells ---------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return self._cause is not None

    def state(self) -> DrainState | None:
        """For the lease and for ops; None while the node serves."""
        if self._cause is None:
            return None
        plan = self._plan
        return DrainState(self._cause.by, round(plan.seconds, 3), plan.sessions, len(self._hub))

    # -- its course ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Return when the node has left."""
        while True:
            while self._cause is None:
                await self._pause(None)
            cause = self._cause
            await self._see_off(cause)
            if self._cause is cause:
                self._leaving = True
                await self._leave(cause)
                return
            await self._serve_again()

    async def _see_off(self, cause: _Cause) -> None:
        """Until no session is left, or the cause is gone."""
        self._make_plan(cause)
        plan = self._plan
        _log.info(
            "drain_started", by=cause.by, sessions=plan.sessions, seconds=round(plan.seconds, 3), asked=plan.asked_s
        )
        await self._within("lease", self._lease.renew_now(), _TELL_S)
        if self._lease.alive():
            self._noticed_at = asyncio.get_running_loop().time() + _NOTICE_S
            await self._until_noticed(cause)
        if self._cause is not cause:
            return
        self.refuses = True
        self._make_plan(cause)
        self._gateway.close_guests(CloseCode.GOING_AWAY, self._advice())
        await self._close_at_pace(cause)
        await self._until_empty(cause)

    def _make_plan(self, cause: _Cause) -> None:
        self._plan = Plan(len(self._hub), cause.seconds, self._plan.pace)

    async def _close_at_pace(self, cause: _Cause) -> None:
        loop = asyncio.get_running_loop()
        began, plan = loop.time(), self._plan
        left = deque(self._hub.by_id.values())
        while left and self._cause is cause:
            if self._hurried:
                return  # the rest is closed by who waits for their ends
            due = plan.due(loop.time() - began) - (plan.sessions - len(left))
            at_once = 0 if plan.asked_s else plan.sessions
            for _ in range(min(due, plan.most_a_step)):
                self._close(left.popleft(), at_once)
            self._tell_progress()
            if left:
                await self._pause(_STEP_S)

    async def _until_empty(self, cause: _Cause) -> None:
        """Close who is still open (in a hurry, or since he came meanwhile) and wait for the ends."""
        loop = asyncio.get_running_loop()
        at_once = len(self._hub)
        deadline = loop.time() + _CLOSE_S
        while len(self._hub) and self._cause is cause and loop.time() < deadline + _SETTLE_S:
            if self._hurried:
                deadline = min(deadline, loop.time() + _HURRIED_CLOSE_S)
            for session in list(self._hub.by_id.values()):
                if loop.time() < deadline:
                    self._close(session, at_once)
                else:
                    session.connection.abort()
            self._tell_progress()
            await self._pause(_STEP_S)

    def _close(self, session: Session, at_once: int) -> None:
        """Nothing if it closes already."""
        session.connection.close(CloseCode.GOING_AWAY, self._advice(at_once))

    def _advice(self, at_once: int = 0) -> str:
        """In a hurry nobody waited until dispatchers had noticed: then the clients do."""
        least_s = max(0.0, self._noticed_at - asyncio.get_running_loop().time())
        return self._plan.advice(at_once=at_once, least_s=least_s)

    def _tell_progress(self) -> None:
        left = len(self._hub)
        DRAIN_LEFT.set(left)
        if left and self._progress.due():
            _log.info("drain_progress", left=left, sessions=self._plan.sessions)

    async def _serve_again(self) -> None:
        self.refuses = False
        DRAIN_LEFT.set(0)
        _log.info("drain_aborted", left=len(self._hub))
        await self._lease.renew_now()

    async def _leave(self, cause: _Cause) -> None:
        """No session is left, and none is taken."""
        DRAIN_LEFT.set(0)
        tidy = await self._within("registry", self._settle())
        gone = await self._leave_topic(not self._hurried and cause.seconds > 0)
        await self._lease.release(clean=tidy and gone)
        self.done = True
        _log.info("drained", by=cause.by, left=len(self._hub))

    async def _settle(self) -> None:
        """Routes and acknowledged messages are taken out of Redis, and cursors are where they belong."""
        await asyncio.gather(
            self._registration.finish(), self._delivery.retirements.settled(), self._audiences.finish()
        )

    async def _within(self, what: str, step: Awaitable[None], seconds: float = _SETTLE_S) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await step
        except TimeoutError:
            _log.warning("drain_step_given_up", step=what)
            return False
        return True

    # -- time ------------------------------------------------------------------------------------------------

    async def _until_noticed(self, cause: _Cause) -> None:
        """Unless there is a hurry or the cause is gone."""
        loop = asyncio.get_running_loop()
        while (left := self._noticed_at - loop.time()) > 0 and self._cause is cause:
            if self._hurried or not cause.seconds:
                return
            await self._pause(left)

    async def _pause(self, seconds: float | None) -> None:
        """Less than that when something changed."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
