"""
The scenarios by name, in the order in which they run; the long ones run when they are named. Each module has
`run(bench) -> Result`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bench.cluster import Bench
from bench.results import Result
from bench.scenarios import (
    connects,
    end_to_end,
    everyone_and_unicast,
    gateway_fanin,
    groups,
    http_sends,
    idle_memory,
    latency,
    overload,
    send_to_all,
    soak,
    storm,
)

Scenario = Callable[[Bench], Awaitable[Result]]

SCENARIOS: dict[str, Scenario] = {
    "idle_memory": idle_memory.run,
    "connects": connects.run,
    "gateway_fanin": gateway_fanin.run,
    "send_to_all": send_to_all.run,
    "end_to_end": end_to_end.run,
    "latency": latency.run,
    "http_sends": http_sends.run,
    "groups": groups.run,
    "everyone_and_unicast": everyone_and_unicast.run,
    "overload": overload.run,
    "storm": storm.run,
}

LONG_SCENARIOS: dict[str, Scenario] = {"soak": soak.run}
