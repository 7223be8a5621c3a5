"""The ledger can say no; the faults have names for the table."""

from __future__ import annotations

from tests.chaos.faults import FAULTS
from tests.chaos.ledger import Ledger


def test_every_fault_has_a_name_for_the_table() -> None:
    """And says in a line what it is, unless its name does."""
    assert all(fault.__doc__ or "_and_" in name for name, fault in FAULTS.items())


def test_the_ledger_counts() -> None:
    """Lost, doubled, misdirected, again on the wire: each by itself."""
    ledger = Ledger()
    for key in ("arrives", "is lost", "is doubled", "comes again", "goes astray"):
        ledger.begun(key, "a", 1.0)
        ledger.answered(key, 2.0)
    for key, client_id, message_id in (
        *(("arrives", "a", "1"), ("is doubled", "a", "2"), ("is doubled", "a", "3")),
        *(("comes again", "a", "4"), ("comes again", "a", "4"), ("goes astray", "b", "5"), ("unheard of", "a", "6")),
    ):
        ledger.arrived(key, client_id, message_id, 3.0)
    verdict = ledger.close(0.0)
    assert (5, 5, 2, 1, 2, 2) == (
        *(verdict.sent, verdict.answered, verdict.lost),
        *(verdict.doubled, verdict.misdirected, verdict.again_on_the_wire),
    )
    ledger.arrived("arrives", "a", "7", 4.0)
    assert 1 == ledger.close(0.0).doubled
