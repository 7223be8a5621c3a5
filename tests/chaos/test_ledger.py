"""The ledger can say no, and counts what it is said to count; the plan of a run comes from its seed alone."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.chaos.faults import FAULTS, pairs
from tests.chaos.ledger import Fault, Kind, Ledger, Sent, longest_silence, overtaken
from tests.chaos.rounds import Plan, draw

FAULT = Fault(10.0, 20.0)


def ledger_of(*keys: str) -> Ledger:
    """Sends to client `a` that began at 1 and were answered at 2."""
    ledger = Ledger()
    for key in keys:
        ledger.begun(key, ("a",), 1.0)
        ledger.answered(key, 2.0)
    return ledger


def test_each_fault_is_counted_by_itself() -> None:
    """Lost, doubled, misdirected, again on the wire."""
    ledger = ledger_of("arrives", "is lost", "is doubled", "comes again", "goes astray")
    for key, client_id, session_id, message_id in (
        *(("arrives", "a", "s", "1"), ("is doubled", "a", "s", "2"), ("is doubled", "a", "s", "3")),
        *(("comes again", "a", "s", "4"), ("comes again", "a", "s", "4"), ("comes again", "a", "other", "4")),
        *(("goes astray", "b", "s", "5"), ("unheard of", "a", "s", "6")),
    ):
        ledger.arrived(key, client_id, session_id, message_id, 3.0)
    verdict = ledger.close(FAULT)

    assert (5, 5, 2, 1, 2) == (
        *(verdict.sent, verdict.answered, verdict.lost),
        *(verdict.doubled, verdict.misdirected),
    )
    assert (2, 1) == (verdict.again_same, verdict.again_other)
    assert not verdict.is_good


@pytest.mark.parametrize("what", ["lost", "doubled", "misdirected", "stale"])
def test_one_of_a_kind_spoils_the_verdict(what: str) -> None:
    """And without it the verdict is good."""
    verdict = ledger_of().close(FAULT)
    assert verdict.is_good
    setattr(verdict, what, 1)
    assert not verdict.is_good


def test_what_comes_after_the_page_was_turned_is_still_known() -> None:
    """The same id once more is no fault, another id is; and an answer that came late is on the next page."""
    ledger = ledger_of("early")
    ledger.begun("unanswered", ("a",), 1.0)
    ledger.arrived("early", "a", "s", "1", 3.0)
    first = ledger.close(FAULT)
    ledger.arrived("early", "a", "s", "1", 4.0)
    ledger.answered("unanswered", 5.0)
    second = ledger.close(FAULT)
    ledger.arrived("early", "a", "s", "2", 6.0)
    third = ledger.close(FAULT)

    assert (0, 0) == (first.lost, first.again_same)
    assert (1, 1, 0) == (second.lost, second.again_same, second.doubled)
    assert 1 == third.doubled


def test_stale_is_what_was_acknowledged_elsewhere_before_the_node_went_on() -> None:
    """Not what was acknowledged since, nor what came on that very session, nor what has not arrived."""
    ledger = ledger_of("before", "since", "here", "not yet")
    for key, session_id, at in (("before", "new", 5.0), ("since", "new", 9.8), ("here", "old", 5.0)):
        ledger.arrived(key, "a", session_id, key, at)
    for key in ("before", "since", "here", "not yet"):
        ledger.on_abandoned(key, "a", "old")
    before = ledger.close(FAULT)
    ledger.resumed(10.0)
    for key in ("before", "since", "here", "not yet"):
        ledger.on_abandoned(key, "a", "old")

    assert 0 == before.stale
    assert 1 == ledger.close(FAULT).stale


def test_each_member_must_get_a_message_and_nobody_else_may() -> None:
    """What came to two of three is lost once; what comes to somebody else is misdirected."""
    ledger = Ledger()
    ledger.begun("group", ("a", "b", "c"), 1.0, may=("plain",), kind=Kind.GROUP)
    ledger.begun("everyone", ("a", "b", "c", "d"), 1.0, kind=Kind.EVERYONE)
    for key in ("group", "everyone"):
        ledger.answered(key, 2.0)
    assert (0, 7) == (ledger.missing(2.0), ledger.missing(2.1))
    missing = ledger.missing(), ledger.missing_of("c"), ledger.missing_of("c", Kind.GROUP), ledger.missing_of("plain")
    for client_id in ("a", "b", "plain", "d"):
        ledger.arrived("group", client_id, "s", "1", 3.0)
    for client_id in ("a", "b", "c", "d"):
        ledger.arrived("everyone", client_id, "s", "2", 3.0)
    ledger.arrived("everyone", "a", "other", "2", 4.0)
    verdict = ledger.close(FAULT)

    assert (7, 2, 1, 0) == missing
    assert (7, 7, 1, 0, 1) == (verdict.sent, verdict.answered, verdict.lost, verdict.doubled, verdict.misdirected)
    assert {"sends": 1, "answered": 3, "lost": 1, "again": 0} == verdict.totals[Kind.GROUP]
    assert {"sends": 1, "answered": 4, "lost": 0, "again": 1} == verdict.totals[Kind.EVERYONE]
    assert {"sends": 0, "answered": 0, "lost": 0, "again": 0} == verdict.totals[Kind.UNICAST]


def test_a_message_has_one_id_at_all_its_clients() -> None:
    """Another id at another member is a message that was stored twice, also at one that need not get it."""
    ledger = Ledger()
    ledger.begun("group", ("a", "b"), 1.0, may=("plain",), kind=Kind.GROUP)
    ledger.begun("seen by who may", ("a",), 1.0, may=("plain",), kind=Kind.GROUP)
    ledger.begun("late", ("a", "b"), 1.0, kind=Kind.EVERYONE)
    for key in ("group", "seen by who may", "late"):
        ledger.answered(key, 2.0)
        ledger.arrived(key, "a", "s", "1", 3.0)
    for key, client_id in (("group", "b"), ("group", "a"), ("seen by who may", "plain")):
        ledger.arrived(key, client_id, "s", "2", 3.0)
    first = ledger.close(FAULT)
    for message_id in ("1", "2", "2"):
        ledger.arrived("late", "b", "s", message_id, 4.0)

    assert (2, 1) == (first.doubled, first.lost)
    assert 1 == ledger.close(FAULT).doubled


def test_who_changes_a_group_while_it_is_sent_to_counts_neither_way() -> None:
    """Not missing, and not misdirected, whether the message was there already or comes now."""
    ledger = Ledger()
    for key in ("to a leaver", "to a joiner", "to nobody"):
        ledger.begun(key, ("a", "b") if key == "to a leaver" else ("a",), 1.0, kind=Kind.GROUP)
        ledger.arrived(key, "a", "s", key, 1.5)
    for key in ("to a leaver", "to a joiner"):
        ledger.may(key, "b")
    for key in ("to a leaver", "to a joiner", "to nobody"):
        ledger.answered(key, 2.0)
    assert 0 == ledger.missing()
    for key in ("to a joiner", "to nobody"):
        ledger.arrived(key, "b", "s", key, 3.0)
    verdict = ledger.close(FAULT)

    assert (0, 1, 3) == (verdict.lost, verdict.misdirected, verdict.answered)


def test_first_arrivals_are_those_of_whom_the_fault_concerned() -> None:
    """After its start only of what was sent since; after its end of anything, until each client had some."""
    ledger = Ledger()
    for key, client_id, began, arrived in (
        *(("a1", "a", 9.0, 11.0), ("a2", "a", 12.0, 15.0), ("a3", "a", 13.0, 21.0)),
        *(("b1", "b", 14.0, 23.5), ("c1", "c", 10.5, 10.6), ("c2", "c", 20.0, 20.1)),
    ):
        ledger.begun(key, (client_id,), began)
        ledger.answered(key, began)
        ledger.arrived(key, client_id, "s", key, arrived)
    verdict = ledger.close(Fault(10.0, 20.0, ("a", "b")))

    assert (5.0, 1.0, 3.5) == (verdict.first_after_start_s, verdict.first_after_end_s, verdict.all_after_end_s)
    assert (2000.0, 3000.0) == (verdict.p50_before_ms, verdict.p50_during_ms)


def sent(
    client_id: str, began: float, answered: float | None, arrived: float | None, place: int, lane: str = ""
) -> Sent:
    return Sent(client_id, began, answered, arrived, place, lane=lane)


def test_overtaken_agrees_with_the_plain_reading() -> None:
    """Over random pages: one is overtaken if one of its lane came first whose send began after its own was answered."""
    chance = random.Random(5)
    for _ in range(300):
        page = []
        for place in chance.sample(range(1, 13), 12):
            began = chance.uniform(0, 5)
            answered = None if chance.random() < 0.1 else began + chance.uniform(0, 2)
            arrived_at = None if place > 10 else 9.0
            page.append(sent(chance.choice("ab"), began, answered, arrived_at, place, chance.choice("gh")))
        arrived = [one for one in page if one.arrived is not None]
        plain = {
            id(one)
            for one, other in itertools.permutations(arrived, 2)
            if (one.client_id, one.lane) == (other.client_id, other.lane)
            and one.answered is not None
            and other.began > one.answered
            and other.place < one.place
        }
        assert len(plain) == overtaken(page)


def test_silence_is_counted_only_while_something_waits() -> None:
    """From the answer or the last arrival, whichever is later, to the next arrival; for each client by itself."""
    assert 0.0 == longest_silence([sent("a", 0, 0, None, 0)])
    assert 1.0 == longest_silence([sent("a", 0, 4, 5, 1), sent("a", 50, 51, 51.5, 2)])
    assert 6.0 == longest_silence([sent("a", 0, 4, 5, 1), sent("a", 4, 4, 11, 2), sent("b", 5, 7, 8, 3)])
    assert 0.5 == longest_silence([sent("a", 0, 9, 5, 1), sent("a", 4, 4.5, 5, 2)])


def test_a_seed_gives_the_same_plan_again() -> None:
    """Every fault once a round of the deck, pairs of different parts between them."""
    names = list(FAULTS)
    plans, again, others = ([*itertools.islice(draw(random.Random(seed), names), 120)] for seed in (7, 7, 8))
    deck = len(names) + 8

    assert plans == again
    assert plans != others
    assert sorted(names) == sorted(plan.name for plan in plans[:deck] if " + " not in plan.name)
    assert 8 == sum(" + " in plan.name for plan in plans[:deck])
    assert plans[0] == Plan.read(str(plans[0]))
    assert ("node_killed", "node_stopped") not in pairs(names)
    assert ("node_killed", "redis_slow") in pairs(names)


def test_every_fault_says_what_it_is() -> None:
    """In a line, for the table of the documentation, unless its name does."""
    assert all(fault.__doc__ or "_and_" in name for name, fault in FAULTS.items())
