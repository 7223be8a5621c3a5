"""
What was sent, what was answered 200, and what each client got: pure bookkeeping, and the verdict.

A *send* is one call; it makes a *message* to each client that must get it. Who joins or leaves a group while it is sent
to, or does not acknowledge, *may* get it: then no message is missing, and none is misdirected.

Times are of the loop's clock, in seconds. A page of the ledger is what was sent since the last verdict; earlier pages
are kept, so that what comes late or again is known.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

_INF = float("inf")
_MARGIN_S = 0.5
_PASS_S = 4.0  # cursors are moved in passes up to two seconds apart, and a busy machine's take their time


class Kind(StrEnum):
    """Of traffic. One to clients *and* groups is to groups."""

    UNICAST = "unicast"
    GROUP = "group"
    EVERYONE = "everyone"


@dataclass(slots=True)
class Sent:
    """
    A message to one client. `place` numbers the arrivals; `session_id` is where it came first.

    `lane`: what was sent to the same audiences shares one; nothing is promised about the order of others.
    """

    client_id: str
    began: float
    answered: float | None = None
    arrived: float | None = None
    place: int = 0
    session_id: str = ""
    lane: str = ""


@dataclass(slots=True)
class Send:
    """A send: what must arrive, by clientId, and who else may get it; all see the one messageId."""

    kind: Kind
    must: dict[str, Sent]
    may: set[str]
    answered: bool = False
    message_id: str = ""
    doubled: bool = False

    def saw(self, message_id: str) -> bool:
        """Whether it is known by another id, which was not noticed before."""
        self.message_id = self.message_id or message_id
        if self.doubled or message_id == self.message_id:
            return False
        self.doubled = True
        return True


@dataclass(slots=True)
class Total:
    """Of one kind of traffic: sends that were answered 200, their messages, those lost, what came again."""

    sends: int = 0
    answered: int = 0
    lost: int = 0
    again: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """When it began, when it ended (what follows heals by itself), and whom it concerned; nobody named: everybody."""

    start: float
    end: float
    clients: Collection[str] = ()

    def concerns(self, sent: Sent) -> bool:
        return not self.clients or sent.client_id in self.clients


@dataclass
class Verdict:
    """
    Of one page. What must be 0, in messages:

    lost         answered 200 and never arrived
    doubled      sends that arrived under two messageIds: an application that knows messages by their id takes them for
                 two
    misdirected  came to a client, or on a session, that it was not for, or was never sent
    stale        a node that had been stopped for longer than its lease sent on an old connection what its client had
                 acknowledged elsewhere before the node went on

    What is reported besides:

    again_same, again_other   the same messageId once more, on the session where it came first, on another one
    overtaken                 came behind one of its lane whose send began after this one's had been answered
    first_after_start_s       from the start of the fault to the first arrival of a later send, at a client it concerned
    first_after_end_s         from its end to the first arrival at such a client
    all_after_end_s           from its end until each such client got something
    silence_s                 the longest time in which a client got nothing while an answered message waited for it
    worst_wait_s              from the first try of a send to its arrival
    p50_before_ms ...         of the same, by when it was sent: before the fault, or from its start on
    statuses                  how the tries of sends ended: HTTP status, or the name of an error
    totals                    some of this by kind of traffic
    """

    sent: int
    answered: int
    lost: int
    doubled: int
    misdirected: int
    stale: int
    again_same: int
    again_other: int
    overtaken: int
    first_after_start_s: float | None
    first_after_end_s: float | None
    all_after_end_s: float | None
    silence_s: float
    worst_wait_s: float
    p50_before_ms: float
    p99_before_ms: float
    p50_during_ms: float
    p99_during_ms: float
    statuses: dict[str, int]
    totals: dict[str, dict[str, int]]

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.misdirected or self.stale)


class Ledger:
    """`key` names a send: its requestId."""

    def __init__(self) -> None:
        self.sends: dict[str, Send] = {}
        self.statuses: Counter[str] = Counter()
        self.misdirected = 0
        self._resumed = -_INF
        self._stale = 0
        self._again_same = 0
        self._again_other = 0
        self._again: Counter[Kind] = Counter()
        self._doubled_late = 0
        self._places = itertools.count(1)
        self._done: dict[str, Send] = {}  # of earlier pages
        self._waiting: set[tuple[str, str]] = set()

    def begun(
        self,
        key: str,
        must: Iterable[str],
        now: float,
        *,
        may: Iterable[str] = (),
        kind: Kind = Kind.UNICAST,
        lane: str = "",
    ) -> None:
        """A send to these clients; who may get it need not."""
        sents = {client_id: Sent(client_id, now, lane=lane) for client_id in must}
        self.sends[key] = Send(kind, sents, set(may))

    def may(self, key: str, client_id: str) -> None:
        """While the send is not answered this client came into the audience, or left it: it need not get it."""
        send = self.sends[key]
        send.must.pop(client_id, None)
        send.may.add(client_id)

    def status(self, status: str) -> None:
        """How a try of a send went: an HTTP status, or the name of an error."""
        self.statuses[status] += 1

    def answered(self, key: str, now: float) -> None:
        """With 200."""
        send = self.sends[key]
        send.answered = True
        for sent in send.must.values():
            sent.answered = now
            if sent.arrived is None:
                self._waiting.add((key, sent.client_id))

    def arrived(self, key: str, client_id: str, session_id: str, message_id: str, now: float) -> None:
        """And is acknowledged at once."""
        send = self.sends.get(key) or self._done.get(key)
        if send is None or not (client_id in send.must or client_id in send.may):
            self.misdirected += 1
            return
        if send.saw(message_id):
            self._doubled_late += key in self._done
        sent = send.must.get(client_id)
        if sent is None:
            return
        if sent.arrived is None:
            sent.arrived = now
            sent.place = next(self._places)
            sent.session_id = session_id
            self._waiting.discard((key, client_id))
        else:
            self._again[send.kind] += 1
            self._again_same += session_id == sent.session_id
            self._again_other += session_id != sent.session_id

    def resumed(self, now: float) -> None:
        """A node that was stopped for longer than its lease goes on."""
        self._resumed = now

    def on_abandoned(self, key: str, client_id: str, session_id: str) -> None:
        """Came on a connection that its client has given up for another one; it is not acknowledged there."""
        send = self.sends.get(key) or self._done.get(key)
        sent = send.must.get(client_id) if send is not None else None
        if send is not None and sent is not None and sent.arrived is not None and sent.session_id != session_id:
            margin_s = _MARGIN_S if send.kind is Kind.UNICAST else _PASS_S
            self._stale += sent.arrived < self._resumed - margin_s

    def missing(self, before: float = _INF) -> int:
        """Answered 200 before then, and not arrived so far."""
        return sum((self.sends[key].must[client_id].answered or 0.0) < before for key, client_id in self._waiting)

    def missing_of(self, client_id: str, *kinds: Kind) -> int:
        """Of these kinds; of all if none is named."""
        return sum(client_id == whose and (not kinds or self.sends[key].kind in kinds) for key, whose in self._waiting)

    def close(self, fault: Fault) -> Verdict:
        """The verdict on this page, and a fresh one."""
        sends = [sent for send in self.sends.values() for sent in send.must.values()]
        before, during = waits_ms(sends, -_INF, fault.start), waits_ms(sends, fault.start, _INF)
        concerned = [sent for sent in sends if fault.concerns(sent)]
        verdict = Verdict(
            sent=len(sends),
            answered=sum(sent.answered is not None for sent in sends),
            lost=len(self._waiting),
            doubled=sum(send.doubled for send in self.sends.values()) + self._doubled_late,
            misdirected=self.misdirected,
            stale=self._stale,
            again_same=self._again_same,
            again_other=self._again_other,
            overtaken=overtaken(sends),
            first_after_start_s=_first(concerned, fault.start, sent_since=fault.start),
            first_after_end_s=_first(concerned, fault.end, sent_since=-_INF),
            all_after_end_s=_all(concerned, fault.end),
            silence_s=round(longest_silence(sends), 3),
            worst_wait_s=round(max((*before, *during), default=0.0) / 1000, 3),
            p50_before_ms=_share(before, 0.5),
            p99_before_ms=_share(before, 0.99),
            p50_during_ms=_share(during, 0.5),
            p99_during_ms=_share(during, 0.99),
            statuses=dict(self.statuses),
            totals=self._totals(),
        )
        self._turn_page()
        return verdict

    def _totals(self) -> dict[str, dict[str, int]]:
        totals = {kind: Total(again=self._again[kind]) for kind in Kind}
        for send in self.sends.values():
            if send.answered:
                totals[send.kind].sends += 1
                totals[send.kind].answered += len(send.must)
        for key, _ in self._waiting:
            totals[self.sends[key].kind].lost += 1
        return {str(kind): asdict(total) for kind, total in totals.items()}

    def _turn_page(self) -> None:
        self._done |= {key: send for key, send in self.sends.items() if send.answered}
        self.sends = {key: send for key, send in self.sends.items() if not send.answered}
        self.statuses.clear()
        self._waiting.clear()
        self._again.clear()
        self.misdirected = self._stale = self._again_same = self._again_other = self._doubled_late = 0


def waits_ms(sends: Iterable[Sent], since: float, until: float) -> list[float]:
    """From the first try to the arrival, in order of size, for sends that began in [since, until)."""
    return sorted(
        1000 * (sent.arrived - sent.began) for sent in sends if sent.arrived is not None and since <= sent.began < until
    )


def overtaken(sends: Iterable[Sent]) -> int:
    """Those that came behind one of the same lane to the same client whose send began after theirs was answered."""
    count = 0
    for some in _by(sends, lambda sent: (sent.client_id, sent.lane)):
        some.sort(key=lambda sent: sent.began)
        begun = [sent.began for sent in some]
        earliest = [*itertools.accumulate((sent.place for sent in reversed(some)), min)][::-1]
        for sent in some:
            later = bisect_right(begun, _INF if sent.answered is None else sent.answered)
            count += later < len(some) and earliest[later] < sent.place
    return count


def longest_silence(sends: Iterable[Sent]) -> float:
    """Over all clients: the longest stretch without an arrival in which a message waited that was answered 200."""
    longest = 0.0
    for some in _by(sends, lambda sent: sent.client_id):
        some.sort(key=lambda sent: sent.place)
        answered = [_INF if sent.answered is None else sent.answered for sent in some]
        waiting_since = [*itertools.accumulate(reversed(answered), min)][::-1]
        last = -_INF
        for sent, since in zip(some, waiting_since, strict=True):
            assert sent.arrived is not None
            longest = max(longest, sent.arrived - max(last, since))
            last = sent.arrived
    return longest


def _by(sends: Iterable[Sent], by: Callable[[Sent], Hashable]) -> Iterable[list[Sent]]:
    """Those that arrived."""
    found: dict[Hashable, list[Sent]] = {}
    for sent in sends:
        if sent.arrived is not None:
            found.setdefault(by(sent), []).append(sent)
    return found.values()


def _first(sends: Sequence[Sent], since: float, *, sent_since: float) -> float | None:
    arrivals = [
        sent.arrived
        for sent in sends
        if sent.arrived is not None and sent.arrived >= since and sent.began >= sent_since
    ]
    return round(min(arrivals) - since, 3) if arrivals else None


def _all(sends: Sequence[Sent], since: float) -> float | None:
    firsts: dict[str, float] = {}
    for sent in sends:
        if sent.arrived is not None and sent.arrived >= since:
            firsts[sent.client_id] = min(sent.arrived, firsts.get(sent.client_id, _INF))
    return round(max(firsts.values()) - since, 3) if firsts else None


def _share(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2) if ordered else 0.0
