"""
`make chaos`: random faults for so many minutes on a real RocketMQ and Valkey, and what became of every message.

    python -m tests.chaos.run [--minutes 20] [--seed N] [--only node_killed,valkey_killed]
    python -m tests.chaos.run --replay node_killed:123 --replay 'redis_cut + broker_killed:7'

The seed is printed first; the same seed makes the same faults with the same parameters in the same order (what the
machine does meanwhile is its own). Each round has a seed of its own, which `--replay` takes. Ends with 1 when a message
that was answered 200 was lost, arrived under two ids or went to the wrong client, when something did not become whole
again, an inbox not empty, or a cursor behind.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import uvloop

from bench.results import RESULTS
from tests.chaos import full_disk
from tests.chaos.faults import FAULTS, broker_disk_full
from tests.chaos.report import Run, keep, line, table, traffic
from tests.chaos.rounds import Plan, draw, play
from tests.chaos.site import Site, running_site

_CALM_S = 2.0
_LOG_LINES = 12


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    options = _options(arguments)
    plans = _plans(options)
    command = shlex.join(["python", "-m", "tests.chaos.run", *(sys.argv[1:] if arguments is None else arguments)])
    if "--seed" not in command and not options.replay:
        command += f" --seed {options.seed}"
    _say(f"seed {options.seed}: {command}")
    began, clock = datetime.now(UTC), time.monotonic()
    run = Run(options.seed, command, began, 0.0, [])
    try:
        uvloop.run(_run(run, plans, clock + 60 * options.minutes))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("\n".join((*table(run.rounds), "", *traffic(run.rounds), "interrupted: not kept")))
        return 130
    run = Run(options.seed, command, began, (time.monotonic() - clock) / 60, run.rounds)
    _say("\n".join((*table(run.rounds), "", *traffic(run.rounds))))
    _say(run.summary())
    _say(f"kept as {keep(run, options.out).name} and .md in {options.out.name}")
    return 0 if run.is_good else 1


async def _run(run: Run, plans: Iterator[Plan], end: float) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="pushfleet-chaos-") as folder:
        async with running_site(Path(folder), with_full_disk=full_disk.can_be_built()) as site:
            await asyncio.sleep(_CALM_S)
            for plan in plans:
                if run.rounds and time.monotonic() > end:
                    return
                round_ = await play(site, plan)
                run.rounds.append(round_)
                _say(f"{line(round_)}  ({max(0, round(end - time.monotonic()))} s to go)")
                if not round_.is_good:
                    _show_logs(site)


def _plans(options: argparse.Namespace) -> Iterator[Plan]:
    if options.replay:
        yield from options.replay
        return
    yield Plan("none", 0)
    yield from draw(random.Random(options.seed), options.only)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", type=_names, default=_names(""), help="names of faults, comma separated")
    parser.add_argument("--replay", type=Plan.read, action="append", help="NAME:SEED of a round; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    if options.replay:
        options.minutes = 24 * 60.0
    return options


def _names(text: str) -> list[str]:
    names = text.split(",") if text else list(FAULTS)
    unknown = set(names) - set(FAULTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such faults: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if not full_disk.can_be_built() and broker_disk_full.__name__ in names:
        _say("NOTE: no C compiler (or not Linux): broker_disk_full is left out")
        names.remove(broker_disk_full.__name__)
    return names


def _show_logs(site: Site) -> None:
    for part in site.parts:
        lines = part.role.log_text().splitlines()[-_LOG_LINES:]
        _say("\n".join((f"-- {part.module} {part.port}", *lines)), sys.stderr)


def _say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
