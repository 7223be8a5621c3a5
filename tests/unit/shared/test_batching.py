"""Batcher: gathering, order, bounds, failures, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shared.batching import Batcher
from shared.errors import Overloaded, Unavailable

DEADLINE_S = 10.0


class Gate:
    """A call that doubles its items, notes them, and waits while it is shut."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()

    async def __call__(self, items: list[int]) -> Sequence[int]:
        self.calls.append(items)
        self.entered.set()
        await self.open.wait()
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [item * 2 for item in items]


async def test_what_comes_during_a_call_goes_out_in_the_next() -> None:
    """One call is in flight; all that is submitted meanwhile is one batch, in order, and each gets its results."""
    gate = Gate()
    batcher = Batcher("test", gate)
    gate.shut()
    first = batcher.submit([1])
    await gate.entered.wait()
    others = [batcher.submit([2, 3]), batcher.submit([4]), batcher.submit([5])]
    assert 4 == batcher.waiting
    gate.open.set()
    assert [[2], [4, 6], [8], [10]] == [await first, *[await other for other in others]]
    assert [[1], [2, 3, 4, 5]] == gate.calls
    assert 0 == batcher.waiting


async def test_a_call_has_at_most_so_many_items() -> None:
    """Jobs are kept whole while they fit; only a larger one is split, and its results are put together."""
    gate = Gate()
    batcher = Batcher("test", gate, most=3)
    results = await asyncio.gather(*(batcher.submit(items) for items in ([1, 2], [3, 4], [5], [6, 7, 8, 9])))
    assert [[2, 4], [6, 8], [10], [12, 14, 16, 18]] == results
    assert [[1, 2], [3, 4, 5], [6, 7, 8], [9]] == gate.calls


async def test_nothing_is_done_at_once() -> None:
    """An empty job needs no call, even after `close`."""
    gate = Gate()
    batcher = Batcher("test", gate)
    assert [] == await batcher.submit([])
    await batcher.close()
    assert [] == await batcher.submit([])
    assert [] == gate.calls


async def test_an_error_reaches_those_of_its_batch_only() -> None:
    """What a call raises is raised to each of its callers; the next batch is sent all the same."""
    gate = Gate()
    batcher = Batcher("test", gate)
    gate.shut()
    failing = [batcher.submit([-1]), batcher.submit([1])]
    await gate.entered.wait()
    later = batcher.submit([2])
    gate.open.set()
    outcomes = await asyncio.gather(*failing, return_exceptions=True)
    assert [ValueError, ValueError] == [type(outcome) for outcome in outcomes]
    assert [4] == await later


async def test_a_call_that_returns_too_little_is_a_fault() -> None:
    """A wrong number of results fails the batch; nobody gets another's."""

    async def forgetful(items: list[int]) -> Sequence[int]:
        return items[1:]

    batcher = Batcher("test", forgetful)
    outcomes = await asyncio.gather(batcher.submit([1]), batcher.submit([2]), return_exceptions=True)
    assert [RuntimeError, RuntimeError] == [type(outcome) for outcome in outcomes]


async def test_the_queue_is_bounded() -> None:
    """Beyond `most_waiting` a job is refused whole; one that is larger is taken when nothing waits."""
    gate = Gate()
    batcher = Batcher("test", gate, most_waiting=3)
    gate.shut()
    large = batcher.submit([1, 2, 3, 4])
    await gate.entered.wait()
    fits = batcher.submit([5, 6])
    with pytest.raises(Overloaded):
        batcher.submit([7, 8])
    also_fits = batcher.submit([9])
    gate.open.set()
    assert [[2, 4, 6, 8], [10, 12], [18]] == [await large, await fits, await also_fits]


async def test_a_cancelled_caller_takes_back_what_waits() -> None:
    """Items of a caller that gave up are not sent, and free their room; those of the others are."""
    gate = Gate()
    batcher = Batcher("test", gate, most_waiting=3)
    gate.shut()
    first = batcher.submit([1])
    await gate.entered.wait()
    batcher.submit([2, 3]).cancel()
    kept = batcher.submit([4])
    gate.open.set()
    assert [[2], [8]] == [await first, await kept]
    assert [[1], [4]] == gate.calls
    assert 0 == batcher.waiting


async def test_a_cancelled_caller_does_not_disturb_its_batch() -> None:
    """A caller cancelled during the call leaves the others their results."""
    gate = Gate()
    batcher = Batcher("test", gate)
    gate.shut()
    gone, stays = batcher.submit([1]), batcher.submit([2])
    await gate.entered.wait()
    gone.cancel()
    gate.open.set()
    assert [4] == await stays


async def test_a_batch_of_cancelled_callers_alone_is_not_sent() -> None:
    """When all gave up there is no call, and the next submit works."""
    gate = Gate()
    batcher = Batcher("test", gate)
    batcher.submit([1]).cancel()
    await asyncio.sleep(0)
    assert [4] == await batcher.submit([2])
    assert [[2]] == gate.calls


async def test_submitting_as_the_last_call_ends_is_not_forgotten() -> None:
    """Whichever turn of the loop a job comes in, it is sent."""
    gate = Gate()
    batcher = Batcher("test", gate)
    async with asyncio.timeout(DEADLINE_S):
        for turns in range(12):
            first = batcher.submit([1])
            for _ in range(turns):
                await asyncio.sleep(0)
            assert [4] == await batcher.submit([2])
            await first


async def test_close_waits_for_what_was_submitted() -> None:
    """After `close` all futures are done, and no more is taken."""
    gate = Gate()
    batcher = Batcher("test", gate, most=1)
    futures = [batcher.submit([number]) for number in range(3)]
    await batcher.close()
    assert [[0], [2], [4]] == [future.result() for future in futures]
    with pytest.raises(Unavailable):
        batcher.submit([1])


async def test_giving_up_fails_what_is_not_done() -> None:
    """`give_up` cancels the call and raises the error to those in it and behind it."""
    gate = Gate()
    batcher = Batcher("test", gate)
    gate.shut()
    sent = batcher.submit([1])
    await gate.entered.wait()
    waits = batcher.submit([2])
    await batcher.give_up(OSError("gone"))
    outcomes = await asyncio.gather(sent, waits, return_exceptions=True)
    assert ["gone", "gone"] == [str(outcome) for outcome in outcomes]
    assert 0 == batcher.waiting


async def test_giving_up_before_the_first_call() -> None:
    """A runner that is cancelled before its first step leaves nobody waiting."""
    batcher = Batcher("test", Gate())
    future = batcher.submit([1])
    await batcher.give_up(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await future
    await batcher.close()


async def test_a_runner_cancelled_from_outside_leaves_nobody_waiting() -> None:
    """A call that is cancelled from within fails its batch and those behind it with Unavailable."""

    async def cancelled(items: list[int]) -> Sequence[int]:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    batcher = Batcher("test", cancelled, most=1)
    futures = [batcher.submit([1]), batcher.submit([2])]
    async with asyncio.timeout(DEADLINE_S):
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        await batcher.close()
    assert [Unavailable, Unavailable] == [type(outcome) for outcome in outcomes]
