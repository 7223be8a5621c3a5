"""A round: calm, a fault or two, healing, calm; then no more is sent until all is settled, and the page is judged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pushfleet.local_rocketmq import LocalRocketMQError
from pushfleet.local_valkey import LocalValkeyError
from tests.chaos.faults import FAULTS, pairs, two_at_once
from tests.chaos.ledger import Fault, Verdict
from tests.chaos.site import Site

_CALM_S = 1.5
_PAIRS_A_DECK = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault by name, two by `one + other`, or `none`; and the seed of all its parameters."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}:{self.seed}"

    @classmethod
    def read(cls, text: str) -> Plan:
        """Raises ValueError."""
        name, _, seed = text.partition(":")
        unknown = set(name.split(" + ")) - {*FAULTS, "none"}
        if unknown:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
        return cls(name, int(seed) if seed else random.randrange(2**32))

    async def happen(self, site: Site) -> None:
        chance = random.Random(self.seed)
        names = self.name.split(" + ")
        if len(names) == 2:
            await two_at_once(site, chance, names)
        elif self.name != "none":
            await FAULTS[self.name](site, chance)


@dataclass(frozen=True, slots=True)
class Round:
    """
    What became of it. `healed_s`: from the end of the fault until every part was healthy, every client had a session
    and nothing was missing that was answered before it, or more than a second ago. `offline`: clients that a send then
    said not to be online. `problems`: what did not become whole in time, in words.
    """

    plan: Plan
    held_s: float
    healed_s: float
    offline: int
    left_in_inboxes: int
    verdict: Verdict
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return self.verdict.is_good and not self.problems and not self.left_in_inboxes

    def as_dict(self) -> dict[str, Any]:
        rest = {"fault": self.plan.name, "seed": self.plan.seed, "held_s": self.held_s, "healed_s": self.healed_s}
        rest |= {"offline": self.offline, "left_in_inboxes": self.left_in_inboxes, "problems": self.problems}
        return rest | asdict(self.verdict)


def draw(chance: random.Random, names: Sequence[str]) -> Iterator[Plan]:
    """Without end: every name once, with some pairs between, in an order by chance; and again."""
    possible = pairs(names)
    while True:
        deck = [*names, *(" + ".join(pair) for pair in chance.sample(possible, min(_PAIRS_A_DECK, len(possible))))]
        chance.shuffle(deck)
        for name in deck:
            yield Plan(name, chance.randrange(2**32))


async def play(site: Site, plan: Plan) -> Round:
    """One round on a site under load; the load goes on when it returns."""
    loop = asyncio.get_running_loop()
    problems: list[str] = []
    site.concerned.clear()
    await asyncio.sleep(_CALM_S)
    start = loop.time()
    try:
        await plan.happen(site)
    except (AssertionError, TimeoutError, LocalRocketMQError, LocalValkeyError) as error:
        problems.append(f"{type(error).__name__} {error}")
    end = loop.time()
    problems += await site.until_whole(end)
    healed = loop.time()
    await asyncio.sleep(_CALM_S)
    offline = -1 if problems else await site.sender.probe()
    unanswered, left, late = await site.settle()
    problems += [f"{unanswered} calls have no answer"] * bool(unanswered)
    problems += [f"{len(late)} cursors are behind: {', '.join(late[:3])}"] * bool(late)
    if not problems:
        problems += await site.until_whole()
    verdict = site.ledger.close(Fault(start, end, frozenset(site.concerned)))
    site.audiences.page_turned()
    site.spread()
    problems += await site.until_whole()
    site.sender.resume()
    return Round(plan, round(end - start, 2), round(healed - end, 2), offline, left, verdict, problems)
