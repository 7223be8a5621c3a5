"""The physical limit of fan-out: the C server sending the same frames on the same cores, in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from bench.cluster import Bench
from bench.tools import CServer, Wsload, cserver, wsload


@dataclass(frozen=True, slots=True)
class Limit:
    """Frames a second by the clock and for a second of server CPU, and the load client's share of its core."""

    rate: float
    per_core: float
    client_share: float

    def beside(self) -> dict[str, float]:
        return {
            "C server /s": self.rate,
            "C server CPU us each": 1e6 / self.per_core,
            "wsload share of a core under C": self.client_share,
        }


async def c_limit(bench: Bench, command: str, *, clients: int) -> Limit:
    """Medians of what `command` (load/csrv.c) reaches with so many clients."""
    async with (
        cserver(bench.folder) as server,
        wsload(bench.folder, server.port, "-S", "4", "-z", "1000") as load,
    ):
        await load.connect(clients)
        await _measure(server, load, command)
        runs = [await _measure(server, load, command) for _ in range(bench.repetitions)]
    return Limit(*(median(column) for column in zip(*runs, strict=True)))


async def _measure(server: CServer, load: Wsload, command: str) -> tuple[float, float, float]:
    await load.ask("reset")
    sent = await server.ask(command)
    got = await load.ask(f"wait {sent['sent']:.0f} 10")
    if got["messages"] < sent["sent"]:
        raise load.child.fault(f"received {got['messages']:.0f} of {sent['sent']:.0f} from the C server")
    took_s = got["last_s"] - sent["start_s"]
    return sent["sent"] / took_s, sent["sent"] / (sent["user_s"] + sent["system_s"]), got["cpu_s"] / took_s
