"""
The clerk: carries out what clients ask for, and has the dialect they asked in write the answer.

    business, tell, tell a group    [look up] -> push-upstream -> answered when the bus holds it
    create, join, leave a group     Redis -> the sessions concerned are told -> answered
    read                            retired from the inbox; the sender is looked up and told
    register, heartbeat, ack        at once, a name when it is kept

A refusal is an answer, too: whatever is asked is answered once, as long as the session is there. What is not answered
at once is an *errand*. A session that has too many under way is held until half of them are done: what it sends
meanwhile waits with its client, and not in the queues in front of Redis and the bus, where others would wait behind it.
What others have to be told of something that has happened already (a group was made, a message was read) waits while
the bus is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Raw, Struct

from gateway_node.backlog import Backlog
from gateway_node.commands import (
    Ack,
    Asked,
    BadFrame,
    Business,
    ChangeGroup,
    Command,
    CreateGroup,
    Dialect,
    Done,
    Heartbeat,
    Read,
    Refused,
    Register,
    Renew,
    Tell,
    TellGroup,
    Words,
)
from gateway_node.delivery import Delivery
from gateway_node.hub import Hub
from gateway_node.lookups import Found, Lookups, Question
from gateway_node.membership import Membership
from gateway_node.metrics import CLIENT_FRAMES, REFUSED
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.turns import Turns
from gateway_node.upstream import Upstream
from gateway_node.websocket.frames import text_frame
from shared.errors import BusError, NotFound, Overloaded, PushfleetError, Unauthorized, Unavailable
from shared.groups import Standing
from shared.ids import MessageIdMint, mint_request_id
from shared.logs import get_log
from shared.upstream import UpstreamSend

_MOST_CHANGES = 256
_log = get_log("clerk")


class Errand(Struct):
    """A command under way."""

    session: Session
    command: Command
    dialect: Dialect
    at_ms: int
    message_id: str
    request_id: str
    answered: bool = False


class Clerk:
    """`dialects`: the envelope's and the chat's. `log_out`, set by app.py, ends a session whose client leaves."""

    def __init__(
        self,
        hub: Hub,
        delivery: Delivery,
        upstream: Upstream,
        lookups: Lookups,
        membership: Membership,
        dialects: tuple[Dialect, Dialect],
        words: Words,
        settings: GatewaySettings,
    ) -> None:
        self.log_out: Callable[[Session], None]
        self.renew: Callable[[Session, str], asyncio.Future[list[float | None]]]
        self._hub = hub
        self._delivery = delivery
        self._upstream = upstream
        self._lookups = lookups
        self._membership = membership
        self._dialects = dialects
        self._words = words
        self._most_errands = settings.session_errands
        self._group_creates = settings.group_creates
        self._turns = Turns()
        self._message_ids = MessageIdMint()
        self._changes: set[asyncio.Task[None]] = set()
        self._notices: Backlog[UpstreamSend] = Backlog("notices", self._publish_notices, most=64, most_waiting=10_000)

    # -- from the gateway ------------------------------------------------------------------------------------

    def obey(self, session: Session, asked: Asked) -> None:
        """Raises BadFrame."""
        command, dialect = asked.command, self._dialects[asked.chat]
        if isinstance(command, Ack):
            self._delivery.ack(session, command.message_ids)
        elif isinstance(command, Heartbeat):
            CLIENT_FRAMES.labels("heartbeat").inc()
            self._send(session, dialect.answer(session, command, Done(0)))
        elif isinstance(command, Renew):
            self._on_renew(session, command, dialect)
        elif isinstance(command, Business):
            self._on_business(session, command, dialect)
        elif isinstance(command, Register):
            self._on_register(session, command, dialect)
        elif isinstance(command, Read):
            self._on_read(session, command, dialect)
        elif isinstance(command, Tell | TellGroup):
            CLIENT_FRAMES.labels("business").inc()
            errand = self._errand(session, command, dialect, command.request_id)
            self._look_up(errand, _question(errand, command))
        else:
            CLIENT_FRAMES.labels("group").inc()
            self._on_change(self._errand(session, command, dialect))

    def refuse_frame(self, session: Session, fault: BadFrame) -> None:
        """In the dialect that the frame was in."""
        self._send(session, self._dialects[fault.chat].refusal(session, fault))

    def introduce(self, register: Register) -> None:
        """A session of this client is on its way: keep the name it gave."""
        if register.user_name:
            self._ask(Question(register.client_id, name=register.user_name))

    def welcome(self, session: Session, register: Register) -> None:
        """The session that `register` asked for is there."""
        self._send(session, self._dialects[True].answer(session, register, Done(0)))

    async def close(self, within_s: float) -> None:
        """Finish what is under way."""
        if self._changes:
            await asyncio.wait(self._changes, timeout=within_s)
        for task in self._changes:
            task.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._lookups.close(within_s)
        await self._notices.close(within_s)

    # -- messages --------------------------------------------------------------------------------------------

    def _on_business(self, session: Session, command: Business, dialect: Dialect) -> None:
        CLIENT_FRAMES.labels("business").inc()
        errand = self._errand(session, command, dialect, command.request_id)
        if command.groups or not self._turns.is_idle(session.session_id):
            self._look_up(errand, Question(session.client_id, groups=_to_be_checked(session, command.groups)))
            return
        try:
            self._publish(errand, command.to, command.msg)
        except Overloaded as error:
            self._refuse_overload(errand, error)

    def _look_up(self, errand: Errand, question: Question) -> None:
        self._take_turn(errand, partial(self._begin_look_up, question=question))

    def _begin_look_up(self, errand: Errand, question: Question) -> bool:
        try:
            future = self._lookups.ask(question)
        except PushfleetError as error:
            self._refuse(errand, error.code, f"{error}; try again")
            return False
        future.add_done_callback(partial(self._on_looked_up, errand, question))
        return True

    def _on_looked_up(self, errand: Errand, question: Question, future: asyncio.Future[list[Found]]) -> None:
        try:
            (found,) = future.result()
            if found.may_go_on:
                self._go_on(errand, found)
            else:
                self._refuse(errand, *_standing_refusal(question.groups, found.standings))
        except (Exception, asyncio.CancelledError) as error:  # the future's, which was cancelled at the node's end
            self._fail(errand, error)
        finally:
            self._turns.done(errand.session.session_id)

    def _go_on(self, errand: Errand, found: Found) -> None:
        """All that had to be known is known. Raises Overloaded."""
        command = errand.command
        if isinstance(command, Business):
            self._publish(errand, command.to, command.msg, command.groups)
        elif isinstance(command, Tell):
            self._publish(errand, [command.to], Raw(self._words.told(command, *found.people)))
        elif isinstance(command, TellGroup):
            self._publish(errand, [], Raw(self._words.told_group(command, *found.people)), [command.group_id])
        elif isinstance(command, Read):
            self._answer(errand)
            if found.sender is not None:
                (reader,) = found.people
                msg = self._words.read(command, reader, found.sender)
                self._notify(errand, [found.sender.client_id], msg, request_id=f"read {command.message_id}")
        else:
            self._answer(errand)

    def _publish(self, errand: Errand, to: list[str], msg: Raw, groups: Sequence[str] = ()) -> None:
        """Raises Overloaded."""
        send = UpstreamSend(
            message_id=errand.message_id,
            request_id=errand.request_id,
            sender=errand.session.client_id,
            active_time=errand.at_ms,
            to=to,
            msg=msg,
            to_groups=list(groups),
            but=errand.session.session_id.decode() if groups else "",
        )
        published = self._upstream.submit(errand.session.client_id, send)
        published.add_done_callback(partial(self._on_published, errand))

    def _on_published(self, errand: Errand, published: asyncio.Future[list[None]]) -> None:
        if published.cancelled():
            self._done(errand)
            return
        error = published.exception()
        if error is None:
            self._answer(errand)
            return
        code = error.code if isinstance(error, PushfleetError) else "internal"
        self._refuse(errand, code, "not accepted; send it again with the same requestId")

    def _on_read(self, session: Session, command: Read, dialect: Dialect) -> None:
        CLIENT_FRAMES.labels("read").inc()
        self._delivery.ack(session, (command.message_id,))
        question = Question(session.client_id, people=(session.client_id,), sender_of=command.message_id)
        self._look_up(self._errand(session, command, dialect), question)

    def _on_renew(self, session: Session, command: Renew, dialect: Dialect) -> None:
        CLIENT_FRAMES.labels("renew").inc()
        try:
            renewed = self.renew(session, command.token)
        except (Unavailable, Overloaded) as error:
            self._send(session, dialect.refusal(session, Refused(error.code, str(error), None, command.message_id)))
        except PushfleetError as error:
            raise BadFrame(error.code, str(error), None, command.message_id) from None
        else:
            renewed.add_done_callback(partial(self._on_renewed, session, command, dialect))

    def _on_renewed(
        self, session: Session, command: Renew, dialect: Dialect, renewed: asyncio.Future[list[float | None]]
    ) -> None:
        if renewed.cancelled():
            return
        error = renewed.exception()
        if isinstance(error, PushfleetError):
            answer = dialect.refusal(session, Refused(error.code, f"{error}; try again", None, command.message_id))
        elif error is not None:
            _log.error("command_failed", command="Renew", error=type(error).__name__)
            answer = dialect.refusal(session, Refused("internal", "it failed", None, command.message_id))
        elif (expires_s := renewed.result()[0]) is None:
            text = "the token was revoked; get a new one"
            answer = dialect.refusal(session, Refused(Unauthorized.code, text, None, command.message_id))
        else:
            answer = dialect.answer(session, command, Done(0, expires_s=expires_s))
        self._send(session, answer)

    # -- who the client is -----------------------------------------------------------------------------------

    def _on_register(self, session: Session, command: Register, dialect: Dialect) -> None:
        CLIENT_FRAMES.labels("register").inc()
        if command.client_id != session.client_id:
            raise BadFrame("forbidden", f"params.openid: this session is {session.client_id}'s", chat=True)
        if not command.present:
            self.introduce(command)
            self._send(session, dialect.answer(session, command, Done(0)))
            self.log_out(session)
        elif command.user_name:
            question = Question(command.client_id, name=command.user_name)
            self._look_up(self._errand(session, command, dialect), question)
        else:
            self._send(session, dialect.answer(session, command, Done(0)))

    def _ask(self, question: Question) -> None:
        """Have a name kept; nobody waits for it."""
        try:
            future = self._lookups.ask(question)
        except PushfleetError:
            self._lookups.keep_name(question.client_id, question.name)
            return
        future.add_done_callback(partial(self._on_asked, question))

    def _on_asked(self, question: Question, future: asyncio.Future[list[Found]]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._lookups.keep_name(question.client_id, question.name)

    # -- groups ----------------------------------------------------------------------------------------------

    def _on_change(self, errand: Errand) -> None:
        most, session = self._group_creates, errand.session
        if isinstance(errand.command, CreateGroup) and not session.may_make_group(most, self._delivery.now):
            REFUSED.labels("group_creates").inc()
            self._refuse(errand, Overloaded.code, f"more than {most} groups a minute; try again later")
        else:
            self._take_turn(errand, self._begin_change, alone=True)

    def _begin_change(self, errand: Errand) -> bool:
        if len(self._changes) >= _MOST_CHANGES:
            self._refuse(errand, Overloaded.code, "too many groups are being changed; try again")
            return False
        task = asyncio.create_task(self._change(errand), name="group change")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return True

    async def _change(self, errand: Errand) -> None:
        try:
            await self._carry_out(errand, errand.command)
        except Refused as refused:
            self._refuse(errand, refused.code, str(refused))
        except NotFound as error:
            self._refuse(errand, "unknown_group", str(error))
        except Exception as error:
            self._fail(errand, error)
        finally:
            self._turns.done(errand.session.session_id)

    async def _carry_out(self, errand: Errand, command: Command) -> None:
        client_id = errand.session.client_id
        if isinstance(command, CreateGroup):
            group = await self._membership.create(client_id, command.name, command.members)
            self._notify(errand, [], self._words.invited(group), groups=[group.group_id])
            self._answer(errand, Done(errand.at_ms, errand.message_id, errand.request_id, group))
        elif isinstance(command, ChangeGroup):
            await self._membership.change(client_id, command.group_id, leave=command.leave)
            self._answer(errand)

    # -- what others are told of it --------------------------------------------------------------------------

    def _notify(
        self, errand: Errand, to: list[str], msg: bytes, *, groups: Sequence[str] = (), request_id: str = ""
    ) -> None:
        notice = UpstreamSend(
            message_id=errand.message_id,
            request_id=request_id or errand.request_id,
            sender=errand.session.client_id,
            active_time=errand.at_ms,
            to=to,
            msg=Raw(msg),
            to_groups=list(groups),
            but=errand.session.session_id.decode() if groups else "",
        )
        self._notices.add(notice)

    async def _publish_notices(self, notices: list[UpstreamSend]) -> None:
        try:
            published = [self._upstream.submit(notice.sender, notice) for notice in notices]
        except Overloaded as error:
            raise Unavailable(str(error)) from None
        for outcome in await asyncio.gather(*published, return_exceptions=True):
            if isinstance(outcome, BusError):
                _log.warning("notice_not_published", reason=str(outcome))
            elif isinstance(outcome, BaseException):
                raise outcome  # the bus is away: all are published again, and known by their messageIds

    # -- answers ---------------------------------------------------------------------------------------------

    def _errand(self, session: Session, command: Command, dialect: Dialect, request_id: str | None = None) -> Errand:
        at_ms = time.time_ns() // 1_000_000
        session.errands += 1
        if session.errands == self._most_errands:
            session.connection.hold()
        return Errand(session, command, dialect, at_ms, self._message_ids.mint(), request_id or mint_request_id())

    def _take_turn(self, errand: Errand, begin: Callable[[Errand], bool], *, alone: bool = False) -> None:
        try:
            self._turns.take(errand.session.session_id, partial(begin, errand), alone=alone)
        except Overloaded as error:
            self._refuse_overload(errand, error)

    def _refuse_overload(self, errand: Errand, error: Overloaded) -> None:
        """It is not its sender's fault, so no bad frame."""
        self._refuse(errand, error.code, f"{error}; try again")

    def _done(self, errand: Errand) -> None:
        """The errand has been answered."""
        if errand.answered:
            return
        errand.answered = True
        session = errand.session
        session.errands -= 1
        if session.errands == self._most_errands // 2 and session.connection.held:
            session.connection.release()

    def _answer(self, errand: Errand, done: Done | None = None) -> None:
        self._done(errand)
        done = done or Done(errand.at_ms, errand.message_id, errand.request_id)
        self._send(errand.session, errand.dialect.answer(errand.session, errand.command, done))

    def _fail(self, errand: Errand, error: BaseException) -> None:
        """What was needed could not be had."""
        command = errand.command
        if isinstance(command, Register):
            self._lookups.keep_name(command.client_id, command.user_name)
            self._answer(errand)
        elif isinstance(error, PushfleetError):
            self._refuse(errand, error.code, str(error))
        else:
            _log.error("command_failed", command=type(command).__name__, error=type(error).__name__)
            self._refuse(errand, "internal", "it failed")

    def _refuse(self, errand: Errand, code: str, text: str) -> None:
        self._done(errand)
        ids: tuple[str, str] | tuple[()] = ()
        if isinstance(errand.command, Business | Tell | TellGroup):
            ids = errand.request_id, errand.message_id
        refused = Refused(code, text, *ids)
        self._send(errand.session, errand.dialect.refusal(errand.session, refused))

    def _send(self, session: Session, payload: bytes) -> None:
        """Nothing to a session that has ended."""
        if session.session_id in self._hub.by_id:
            session.connection.send(text_frame(payload))


def _question(errand: Errand, command: Tell | TellGroup) -> Question:
    client_id = errand.session.client_id
    if isinstance(command, Tell):
        return Question(client_id, people=(client_id, command.to), message_id=errand.message_id)
    groups = _to_be_checked(errand.session, (command.group_id,))
    return Question(client_id, groups=groups, people=(client_id,), message_id=errand.message_id)


def _to_be_checked(session: Session, groups: Sequence[str]) -> Sequence[str]:
    """Those of which only Redis can tell whether the client is a member."""
    return [group for group in groups if not session.is_in_by_token(group)]


def _standing_refusal(groups: Sequence[str], standings: Sequence[Standing]) -> tuple[str, str]:
    """Code and text: the first group that refuses, and why."""
    for group_id, standing in zip(groups, standings, strict=True):
        if standing is Standing.NO_GROUP:
            return "unknown_group", f"there is no group {group_id}"
        if standing is Standing.NOT_MEMBER:
            return "forbidden", f"not a member of the group {group_id}"
    return "internal", "it failed"
