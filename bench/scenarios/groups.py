"""
Groups: what a message to 20,000 members costs, of whom 5,000 are connected to four nodes.

First one send after the other: the bus itself says how many records that made, every client that is connected has to
get each message once, and so has each of 2,000 others when it connects; when they come back they get nothing again.
Half of the clients acknowledge.

Then sends to groups of 10, 1,000 and 20,000 members as fast as they are answered, with the dispatcher alone on its
core. The same eight of each group are connected, two to a node, so the work of nodes and clients is the same for each
group and only the number of members differs. What is in flight is bounded by what one node's clients have received.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import orjson
from redis.asyncio import Redis

from bench.cluster import Bench, Cluster, Role, cluster, cpu_each
from bench.processes import LOAD_CORE, BenchError, fine_cpu_seconds
from bench.records import records_of_nodes
from bench.results import Figure, Result, medians
from bench.tools import Counter, Numbers, Wsload, finish, httppub, wsload
from shared.keys import Keys

_NODES = 4
_MEMBERS = 20_000
_ONLINE = 5_000
_COMING = 2_000
_SENDS = 10
_A_CALL = 10_000
_SIZES = (10, 1_000, 20_000)
_EIGHT = 8
_ARRIVAL_S = 30.0
_QUIET_S = 1.0
_WINDOW = 256
_JSON = {"Content-Type": "application/json"}


async def run(bench: Bench) -> Result:
    """Records and deliveries of a send, and what sends cost by the size of the group, on each bus."""
    figures: list[Figure] = []
    for bus in bench.buses:
        figures += await _measure_deliveries(bench, bus)
        figures += await _measure_costs(bench, bus)
    return Result("groups", "Groups of 10 to 20,000 members on four nodes", tuple(figures))


# -- who gets what -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Crowd:
    """Clients of one node: `count` clients whose ids begin with `prefix`."""

    clients: Wsload
    count: int


async def _measure_deliveries(bench: Bench, bus: str) -> list[Figure]:
    async with cluster(bench, bus=bus) as parts, AsyncExitStack() as stack:
        nodes = [await parts.gateway() for _ in range(_NODES)]
        dispatcher = await parts.dispatcher(LOAD_CORE)
        here = _ONLINE // (2 * _NODES)
        names = [f"{prefix}{k}x" for prefix in ("a", "p") for k in range(_NODES)]
        online = [f"{name}{number}" for name in names for number in range(here)]
        coming = [f"{prefix}late{number}" for prefix in ("a", "p") for number in range(_COMING // 2)]
        rest = [f"absent{number}" for number in range(_MEMBERS - len(online) - len(coming))]
        await _create_group(dispatcher, "g", [*online, *coming, *rest])
        crowds = [
            _Crowd(await stack.enter_async_context(_clients(parts, nodes[k % _NODES], name)), here)
            for k, name in enumerate(names)
        ]
        await asyncio.gather(*(crowd.clients.connect(crowd.count) for crowd in crowds))
        await _until_hosted(parts, ["g"])
        records, times, got = await _send_one_by_one(parts, dispatcher, crowds)
        late = [
            _Crowd(await stack.enter_async_context(_clients(parts, node, f"{prefix}late")), _COMING // 2)
            for node, prefix in zip(nodes, ("a", "p"), strict=False)
        ]
        caught_up_s, replayed = await _connect_late(late)
        again = await _come_again(late)
    return [
        Figure(f"records of a send, {bus}", "", tuple(map(float, records)), str(_NODES)),
        Figure(
            f"until all of {_ONLINE:,} have it, {bus}",
            "ms",
            tuple(seconds * 1e3 for seconds in times),
            "all of them, once",
            {
                "deliveries": got["messages"],
                "missing": _SENDS * _ONLINE - got["messages"] + got["repeats"],
                "repeated": got["repeats"],
            },
        ),
        Figure(
            f"until {_COMING:,} more have connected and have {_SENDS} messages each, {bus}",
            "s",
            (caught_up_s,),
            "all of them, once",
            {
                "deliveries": replayed["messages"],
                "missing": _SENDS * _COMING - replayed["messages"] + replayed["repeats"],
                "repeated": replayed["repeats"],
                "what they got when they came back": again["messages"],
            },
        ),
    ]


async def _send_one_by_one(
    parts: Cluster, dispatcher: Role, crowds: list[_Crowd]
) -> tuple[list[int], list[float], Numbers]:
    """Records of each send, the seconds until all had it, and what clients received in all."""
    records: list[int] = []
    times: list[float] = []
    await _all(crowds, "reset")
    before = await records_of_nodes(parts)
    for number in range(_SENDS):
        # A message is on its way before anybody waits for it: each client counts from the reset on.
        started_s = time.monotonic()
        await _post(dispatcher, "/message/send", {"toGroups": ["g"], "msg": {"n": number}})
        got = await asyncio.gather(
            *(crowd.clients.ask(f"wait {(number + 1) * crowd.count} {_ARRIVAL_S}") for crowd in crowds)
        )
        times.append(max(one["last_s"] for one in got) - started_s)
        after = await records_of_nodes(parts)
        records.append(sum(after) - sum(before))
        before = after
    return records, times, await _quiet(crowds)


async def _connect_late(late: list[_Crowd]) -> tuple[float, Numbers]:
    """Seconds from the first connect to the last message, and what came."""
    await _all(late, "reset")
    started_s = time.monotonic()
    await asyncio.gather(*(crowd.clients.connect(crowd.count) for crowd in late))
    got = await asyncio.gather(*(crowd.clients.ask(f"wait {_SENDS * crowd.count} {_ARRIVAL_S}") for crowd in late))
    return max(one["last_s"] for one in got) - started_s, await _quiet(late)


async def _come_again(late: list[_Crowd]) -> Numbers:
    await _all(late, "closeall")
    await asyncio.sleep(_QUIET_S)  # the node writes down how far each of them was
    await _all(late, "reset")
    await asyncio.gather(*(crowd.clients.connect(crowd.count) for crowd in late))
    return await _quiet(late)


async def _quiet(crowds: list[_Crowd]) -> Numbers:
    """The sums of what came since the reset, behind a moment in which whatever is too much can come."""
    return _sums(await _all(crowds, f"wait {1 << 62} {_QUIET_S}"))


async def _all(crowds: list[_Crowd], command: str) -> list[Numbers]:
    return await asyncio.gather(*(crowd.clients.ask(command) for crowd in crowds))


def _sums(several: list[Numbers]) -> Numbers:
    return {name: sum(numbers[name] for numbers in several) for name in several[0]}


@asynccontextmanager
async def _clients(parts: Cluster, node: Role, name: str) -> AsyncIterator[Wsload]:
    """Clients `<name><k>`; those whose name begins with `a` acknowledge."""
    acks = name.startswith("a")
    options = ["-R", "-S", "4", "-q", '"n":', *(["-a"] if acks else ["-m", '"msgType":1,'])]
    path = f"/websocket?clientId={name}%d&ack={acks:d}"
    async with wsload(parts.folder, node.port, *options, "-P", path) as clients:
        yield clients


# -- what a send costs ---------------------------------------------------------------------------------------


async def _measure_costs(bench: Bench, bus: str) -> list[Figure]:
    async with cluster(bench, bus=bus) as parts, AsyncExitStack() as stack:
        nodes = [await parts.gateway(LOAD_CORE) for _ in range(_NODES)]
        dispatcher = await parts.dispatcher()
        online = [f"a{k}x{number}" for k in range(_NODES) for number in range(_EIGHT // _NODES)]
        for size in _SIZES:
            members = itertools.chain(online, (f"absent{number}" for number in range(size - len(online))))
            await _create_group(dispatcher, f"g{size}", list(members))
        counter = Counter(parts.folder / "count")
        for k, node in enumerate(nodes):
            options = ["-R", "-a", "-z", "2000", "-P", f"/websocket?clientId=a{k}x%d&ack=1"]
            options += ["-s", str(counter.path)] if not k else []
            clients = await stack.enter_async_context(wsload(parts.folder, node.port, *options))
            await clients.connect(_EIGHT // _NODES)
        await _until_hosted(parts, [f"g{size}" for size in _SIZES])
        costs: dict[int, list[float]] = {size: [] for size in _SIZES}
        rates: dict[int, list[float]] = {size: [] for size in _SIZES}
        beside: dict[int, list[dict[str, float]]] = {size: [] for size in _SIZES}
        await _send_on(parts, dispatcher, counter, _SIZES[0], bench.warm_s(bus))
        for _ in range(bench.repetitions):
            for size in _SIZES:  # in turn, so that whatever changes meanwhile changes for all
                cost, sent, more = await _send_on(parts, dispatcher, counter, size, bench.measured_s)
                costs[size].append(cost)
                rates[size].append(sent["items_per_s"])
                beside[size].append(more)
    return list(_cost_figures(bus, costs, rates, beside))


def _cost_figures(
    bus: str,
    costs: dict[int, list[float]],
    rates: dict[int, list[float]],
    beside: dict[int, list[dict[str, float]]],
) -> Iterator[Figure]:
    for size in _SIZES:
        what = f"a send to a group of {size:,} on {_NODES} nodes: dispatcher CPU, {bus}"
        more = {"sends/s": sum(rates[size]) / len(rates[size])} | medians(beside[size])
        yield Figure(what, "us", tuple(costs[size]), "the same for each size", more)


async def _send_on(
    parts: Cluster, dispatcher: Role, counter: Counter, size: int, seconds: float
) -> tuple[float, Numbers, dict[str, float]]:
    """Sends for so long: dispatcher CPU us of each, the publisher's numbers and what else was used."""
    options = ["-P", "/message/send", "-b", f'{{"toGroups":["g{size}"],"msg":{{"n":%q,"text":"%p"}}}}']
    options += ["-l", str(parts.padding('{"n":1000,"text":""}')), "-c", "16", "-d", str(seconds)]
    options += ["-s", str(counter.path), "-F", str(_EIGHT // _NODES), "-W", str(_WINDOW), "-E", '"success":false']
    before = counter.count
    meter, spent_s = parts.meter(), fine_cpu_seconds(dispatcher.child.pid)
    async with httppub(parts.folder, dispatcher.port, *options) as sender:
        sent = await finish(sender)
    cost = (fine_cpu_seconds(dispatcher.child.pid) - spent_s) / sent["items"] * 1e6
    spent = meter.spent()
    missing = await _until_count(counter, before + sent["items"] * (_EIGHT // _NODES))
    more = cpu_each(spent, sent["items"]) | {
        "HTTP answer p50 ms": sent["answer_p50_us"] / 1e3,
        "answers with an error": sent["errors"],
        "missing at one node's clients": missing,
    }
    return cost, sent, more


async def _until_count(counter: Counter, count: float) -> float:
    """Wait for what is still on its way; how much of it did not come."""
    end_s = time.monotonic() + _ARRIVAL_S
    while counter.count < count and time.monotonic() < end_s:  # noqa: ASYNC110 - another process counts
        await asyncio.sleep(0.05)
    return max(0, count - counter.count)


# -- both ----------------------------------------------------------------------------------------------------


async def _create_group(dispatcher: Role, group_id: str, members: list[str]) -> None:
    parts = [members[start : start + _A_CALL] for start in range(0, len(members), _A_CALL)]
    answer = await _post(dispatcher, "/v1/groups", {"groupId": group_id, "members": parts[0]}, 201)
    refused = answer["refused"]
    for part in parts[1:]:
        refused += (await _post(dispatcher, f"/v1/groups/{group_id}/members", {"members": part}))["refused"]
    if refused:
        raise BenchError(f"{len(refused)} of {len(members)} members were refused: {refused[0]}")


async def _post(dispatcher: Role, path: str, body: dict[str, object], status: int = 200) -> dict[str, list[object]]:
    url = f"http://127.0.0.1:{dispatcher.port}{path}"
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=_JSON) as http,
        http.post(url, data=orjson.dumps(body)) as answer,
    ):
        if answer.status != status:
            raise BenchError(f"POST {path} was answered {answer.status}: {(await answer.text())[:300]}")
        found: dict[str, list[object]] = await answer.json()
        return found


async def _until_hosted(parts: Cluster, groups: list[str]) -> None:
    """Until every node is known to have members of every group."""
    keys = Keys(parts.namespace)
    async with Redis.from_url(parts.redis_url) as store, asyncio.timeout(_ARRIVAL_S):
        for group in groups:
            while await store.hlen(keys.audience(group)[3]) < _NODES:  # noqa: ASYNC110 - another process tells it
                await asyncio.sleep(0.05)
