"""
The runner: `python -m bench.run [scenario ...] [--quick] [--bus streams|rocketmq]`.

Builds the C tools, runs the scenarios one after the other on real parts and prints each table. It is kept under
`results/` unless the run was a quick one or other programs disturbed it. The runner itself stays on the load core. A
scenario that fails is reported and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench.cluster import Bench
from bench.machine import Machine, describe_machine
from bench.processes import BOTH_CORES, LOAD_CORE, BenchError, busy_seconds, cpu_seconds
from bench.results import table, write_result
from bench.scenarios import LONG_SCENARIOS, SCENARIOS
from bench.tools import build_tools

_SCENARIO_BOUND_S = 300.0
_LONG_BOUND_S = 1_200.0
_MOST_DISTURBED = 0.25  # cores that other programs may take while a result is measured
_BUSES = ("streams", "rocketmq")


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; the process's exit code."""
    options = _parser().parse_args(arguments)
    names: list[str] = options.scenario or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS | LONG_SCENARIOS]
    if unknown:
        there = ", ".join(SCENARIOS | LONG_SCENARIOS)
        print(f"unknown: {', '.join(unknown)}; there are: {there}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "bench.run", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        if not os.sched_getaffinity(0) >= BOTH_CORES:
            raise BenchError("the benchmarks need cores 0 and 1")
        build_tools()
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    buses = (options.bus,) if options.bus else _BUSES
    return uvloop.run(_run(names, command, quick=options.quick, buses=buses))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Run the benchmarks.")
    parser.add_argument(
        "scenario", nargs="*", help=f"default: {', '.join(SCENARIOS)}; also {', '.join(LONG_SCENARIOS)}"
    )
    parser.add_argument("--quick", action="store_true", help="one short repetition, a rough guide, not kept")
    parser.add_argument("--bus", choices=_BUSES, help="only this bus, where a scenario runs on both")
    return parser


async def _run(names: list[str], command: str, *, quick: bool, buses: tuple[str, ...]) -> int:
    machine = describe_machine()
    os.sched_setaffinity(0, LOAD_CORE)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="pushfleet-bench-") as folder:
        bench = Bench(Path(folder), quick, buses)
        try:
            for name in names:
                failed += not await _run_one(name, bench, machine, command)
        finally:
            await bench.close()
    return 1 if failed else 0


async def _run_one(name: str, bench: Bench, machine: Machine, command: str) -> bool:
    print(f"== {name}", flush=True)
    start = datetime.now(UTC)
    others = _others_seconds(bench)
    try:
        async with asyncio.timeout(_SCENARIO_BOUND_S if name in SCENARIOS else _LONG_BOUND_S):
            result = await (SCENARIOS | LONG_SCENARIOS)[name](bench)
    except (BenchError, TimeoutError) as error:
        print(f"{name} failed: {error or 'it took too long'}", file=sys.stderr, flush=True)
        return False
    took_s = (datetime.now(UTC) - start).total_seconds()
    disturbed = (_others_seconds(bench) - others) / took_s
    print("\n".join(table(result)))
    if bench.quick or disturbed > _MOST_DISTURBED:
        kept = "not kept"
    else:
        kept = f"kept in bench/results/{write_result(result, machine, command, start).name}"
    print(f"{took_s:.0f} s, other programs took {disturbed:.2f} cores meanwhile, {kept}", flush=True)
    return True


def _others_seconds(bench: Bench) -> float:
    """CPU seconds so far of whatever is neither the runner nor a child of it that has ended or is RocketMQ."""
    brokers = bench.rocketmq.pids if bench.rocketmq else []
    return busy_seconds() - sum(os.times()[:4]) - sum(map(cpu_seconds, brokers))


if __name__ == "__main__":
    sys.exit(main())
