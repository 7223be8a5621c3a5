"""Lines of audiences go to the fan-out in their order, together where they may, and a bounded number of them waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from gateway_node.siding import Siding
from shared.record import AudienceLine

_DEADLINE_S = 5.0


class _Sent:
    """What was sent, a list of (audience, order) each time; each waits until `go` is set."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, int]]] = []
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.fails = False

    async def send(self, lines: Sequence[AudienceLine]) -> None:
        self.begun.set()
        await self.go.wait()
        self.calls.append([(line.audience, line.order) for line in lines])
        if self.fails:
            raise RuntimeError("fan-out")


def _line(audience: str, order: int, template: bytes = b"{}") -> AudienceLine:
    return AudienceLine(expires_ms=1, order=order, after=order - 1, audience=audience, but=b"", template=template)


@asynccontextmanager
async def _running(sent: _Sent) -> AsyncIterator[Siding]:
    siding = Siding(sent.send)
    task = asyncio.create_task(siding.run())
    try:
        async with asyncio.timeout(_DEADLINE_S):
            yield siding
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_lines_of_one_audience_that_wait_go_together_and_none_overtakes_another() -> None:
    """Behind one that is being sent gather a, a, b, a: they go as (a, a), (b), (a)."""
    sent = _Sent()
    async with _running(sent) as siding:
        await siding.put([_line("a", 1)])
        await sent.begun.wait()
        await siding.put([_line("a", 2)])
        await siding.put([_line("a", 3)])
        await siding.put([_line("b", 4)])
        await siding.put([_line("a", 5)])
        sent.go.set()
        await siding.settled()
    assert [[("a", 1)], [("a", 2), ("a", 3)], [("b", 4)], [("a", 5)]] == sent.calls


async def test_put_does_not_wait_for_the_fan_out() -> None:
    """Who puts lines goes on at once while lines before them are being sent, and the siding is not empty meanwhile."""
    sent = _Sent()
    async with _running(sent) as siding:
        seen = [siding.is_empty]
        await siding.put([_line("a", 1)])
        await sent.begun.wait()
        await siding.put([_line("a", 2)])
        assert [] == sent.calls
        seen.append(siding.is_empty)
        sent.go.set()
        await siding.settled()
        seen.append(siding.is_empty)
    assert [True, False, True] == seen


async def test_a_full_lane_holds_up_who_puts() -> None:
    """Beyond 256 lines, or a MiB, the next put waits until lines were sent."""
    for full in ([_line("a", order) for order in range(256)], [_line("a", 1, b"x" * (1 << 20))]):
        sent = _Sent()
        async with _running(sent) as siding:
            await siding.put(full)
            more = asyncio.create_task(siding.put([_line("b", 300)]))
            await sent.begun.wait()
            await asyncio.sleep(0)
            assert not more.done()
            sent.go.set()
            await more
            await siding.settled()
        assert ("b", 300) == sent.calls[-1][-1]


async def test_a_fan_out_that_fails_stops_nothing() -> None:
    """Lines behind those that failed are sent."""
    sent = _Sent()
    sent.fails = True
    sent.go.set()
    async with _running(sent) as siding:
        await siding.put([_line("a", 1)])
        await siding.put([_line("b", 2)])
        await siding.settled()
    assert [[("a", 1)], [("b", 2)]] == sent.calls
