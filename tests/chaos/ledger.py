"""What was sent, what was answered 200, and what each client got: pure bookkeeping, and the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sent:
    """One send to one client. Times are of the loop's clock, in seconds."""

    client_id: str
    began: float
    answered: float | None = None
    arrived: float | None = None
    message_ids: set[str] = field(default_factory=set)


@dataclass
class Verdict:
    """
    Of one stretch of time. `lost` and `doubled` must be 0: answered 200 and never arrived; arrived under two
    messageIds, so that an application which knows messages by their id would take it for two.
    """

    sent: int
    answered: int
    lost: int
    doubled: int
    misdirected: int
    again_on_the_wire: int
    first_s: float | None
    worst_wait_s: float
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]


class Ledger:
    """`key` names a send: its requestId."""

    def __init__(self) -> None:
        self.sends: dict[str, Sent] = {}
        self.statuses: Counter[str] = Counter()
        self.again_on_the_wire = 0
        self.misdirected = 0
        self._doubled_late = 0
        self._done: dict[str, Sent] = {}  # of earlier pages
        self._waiting: set[str] = set()

    def begun(self, key: str, client_id: str, now: float) -> None:
        self.sends[key] = Sent(client_id, now)

    def status(self, status: str) -> None:
        """How a try of a send went: an HTTP status, or the name of an error."""
        self.statuses[status] += 1

    def answered(self, key: str, now: float) -> None:
        sent = self.sends[key]
        sent.answered = now
        if sent.arrived is None:
            self._waiting.add(key)

    def arrived(self, key: str, client_id: str, message_id: str, now: float) -> None:
        sent = self.sends.get(key) or self._done.get(key)
        if sent is None or sent.client_id != client_id:
            self.misdirected += 1
            return
        if sent.arrived is None:
            sent.arrived = now
            self._waiting.discard(key)
        else:
            self.again_on_the_wire += 1
            self._doubled_late += key in self._done and message_id not in sent.message_ids
        sent.message_ids.add(message_id)

    @property
    def missing(self) -> int:
        """Answered 200 and not arrived so far."""
        return len(self._waiting)

    def close(self, since: float) -> Verdict:
        """The verdict on all so far, and a fresh page. `since`: when the fault began."""
        sends = list(self.sends.values())
        waits = sorted(sent.arrived - sent.began for sent in sends if sent.arrived is not None)
        first = [sent.arrived for sent in sends if sent.arrived is not None and sent.began >= since]
        verdict = Verdict(
            sent=len(sends),
            answered=sum(sent.answered is not None for sent in sends),
            lost=len(self._waiting),
            doubled=sum(len(sent.message_ids) > 1 for sent in sends) + self._doubled_late,
            misdirected=self.misdirected,
            again_on_the_wire=self.again_on_the_wire,
            first_s=round(min(first) - since, 3) if first else None,
            worst_wait_s=round(max(waits, default=0.0), 3),
            p50_ms=round(1000 * _share(waits, 0.5), 2),
            p99_ms=round(1000 * _share(waits, 0.99), 2),
            statuses=dict(self.statuses),
        )
        self._done |= {key: sent for key, sent in self.sends.items() if sent.answered is not None}
        self.sends = {key: sent for key, sent in self.sends.items() if sent.answered is None}
        self.statuses.clear()
        self._waiting.clear()
        self.again_on_the_wire = self.misdirected = self._doubled_late = 0
        return verdict


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
