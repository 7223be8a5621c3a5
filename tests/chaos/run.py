"""
`make chaos`: random faults for so many minutes on a real RocketMQ and Valkey, and what became of every message.

    python -m tests.chaos.run [--minutes 20] [--seed N] [--only node_killed,valkey_killed] [--out FILE]

The seed is printed first; the same seed makes the same faults with the same parameters in the same order (what the
machine does meanwhile is its own). Ends with 1 when a message that was answered 200 was lost, arrived under two ids, or
went to the wrong client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from tests.chaos.faults import FAULTS
from tests.chaos.ledger import Verdict
from tests.chaos.site import Site, running_site

_CALM_S = 2.0


async def one_fault(site: Site, name: str, chance: random.Random) -> tuple[Verdict, float]:
    """Make it happen, wait until all is whole; the verdict and the seconds that healing took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    await FAULTS[name](site, chance)
    healed_s = await site.until_whole()
    await asyncio.sleep(_CALM_S)
    await site.until_whole()
    return site.ledger.close(start), round(healed_s, 2)


def is_good(verdict: Verdict) -> bool:
    return not (verdict.lost or verdict.doubled or verdict.misdirected)


async def run(minutes: float, seed: int, names: Sequence[str]) -> dict[str, Any]:
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="pushfleet-chaos-") as folder:
        async with running_site(Path(folder)) as site:
            await asyncio.sleep(_CALM_S)
            rows.append({"fault": "none", "healed_s": 0.0, **asdict(site.ledger.close(float("inf")))})
            order: list[str] = []
            while time.monotonic() < end:
                if not order:
                    order = chance.sample(names, len(names))
                name = order.pop()
                verdict, healed_s = await one_fault(site, name, random.Random(chance.randrange(2**32)))
                rows.append({"fault": name, "healed_s": healed_s, **asdict(verdict)})
                _say(rows[-1], end)
                if not is_good(verdict):
                    _show_logs(site)
            for sender in site.senders:
                await sender.close()
            await site.until_whole()
            left = await site.until_inboxes_are_empty()
    return {"seed": seed, "left_in_inboxes": left, "rows": rows}


def _say(row: dict[str, Any], end: float) -> None:
    left = max(0, round(end - time.monotonic()))
    print(  # noqa: T201
        f"{row['fault']:<30} answered {row['answered']:>5}  lost {row['lost']}  doubled {row['doubled']}  again on the "
        f"wire {row['again_on_the_wire']:>4}  healed {row['healed_s']:>5} s  worst wait {row['worst_wait_s']:>6} s  "
        f"({left} s to go)",
        flush=True,
    )


def _show_logs(site: Site) -> None:
    for part in (*site.nodes, *site.dispatchers):
        print(f"-- {part.module}\n{part.role.log_text()}", file=sys.stderr)  # noqa: T201


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a fault, over all its times."""
    lines = [
        "| fault | times | sent | answered 200 | lost | doubled | again on the wire | first delivery after its start, "
        "worst | healed, worst | longest wait of a message |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["fault"] for row in rows):
        some = [row for row in rows if row["fault"] == name]
        total = {
            key: sum(row[key] for row in some) for key in ("sent", "answered", "lost", "doubled", "again_on_the_wire")
        }
        first = max((row["first_s"] for row in some if row["first_s"] is not None), default=0.0)
        healed = max(row["healed_s"] for row in some)
        worst = max(row["worst_wait_s"] for row in some)
        cells = (name, len(some), *total.values(), f"{first:.2f} s", f"{healed:.1f} s", f"{worst:.1f} s")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", default=",".join(FAULTS), help="names of faults, comma separated")
    parser.add_argument("--out", type=Path, default=Path("bench/results") / f"{time.strftime('%Y-%m-%d')}-chaos.json")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = set(names) - set(FAULTS)
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    print(f"seed {options.seed}: repeat with --seed {options.seed} --minutes {options.minutes:g}", flush=True)  # noqa: T201
    result = uvloop.run(run(options.minutes, options.seed, names))
    result |= {
        "command": f"python -m tests.chaos.run --minutes {options.minutes:g} --seed {options.seed}",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {"rocketmq": "5.5.0"},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result["rows"]))  # noqa: T201
    good = all(not (row["lost"] or row["doubled"] or row["misdirected"]) for row in result["rows"])
    print(f"left in inboxes: {result['left_in_inboxes']}; {options.out}")  # noqa: T201
    return 0 if good and not result["left_in_inboxes"] else 1


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
