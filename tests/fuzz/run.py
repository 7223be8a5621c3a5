"""
`make fuzz`: the targets under a fuzzer that is guided by coverage, each in a process of its own.

    python -m tests.fuzz.run [target ...] [--minutes 10] [--seed N] [--at-once 1]

What it has found out about a target (inputs that reach new code) is kept in .cache/fuzz/TARGET and is where the next
run begins. An input that breaks a property is put into tests/fuzz/corpus/TARGET, which `make test` replays: mend the
code and commit both. Ends with 1 when there was one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.target import CORPUS

_TOP = Path(__file__).parents[2]
_KNOWN = _TOP / ".cache" / "fuzz"
_SLOW_S = 10
_MOST_MIB = 2048
_NICE = 15
_PACKAGES = ["shared", "gateway_node", "dispatcher"]


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a target."""

    name: str
    code: int
    seconds: float
    executions: int
    edges: int
    tail: str

    def line(self) -> str:
        a_second = self.executions / max(self.seconds, 1)
        fate = "good" if self.code == 0 else f"FAILED ({self.code})"
        return (
            f"{self.name:<14} {self.seconds / 60:>5.1f} min {self.executions:>10} executions {a_second:>8.0f}/s "
            f"{self.edges:>6} edges  {fate}"
        )


def main() -> int:
    """Run what the command line asks for; the exit code."""
    options = _options()
    if options.inside:
        return _fuzz(options.targets[0], options.minutes * 60, options.seed)
    names = options.targets or _names()
    print(f"seed {options.seed}; {', '.join(names)}", flush=True)
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = list(pool.map(lambda name: _run(name, options.minutes, options.seed), names))
    for run in runs:
        if run.code:
            print(f"\n== {run.name}\n{run.tail}")
    print("\n".join(("", *(run.line() for run in runs))))
    return int(any(run.code for run in runs))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target; default 10")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31), help="default: drawn, and printed")
    parser.add_argument("--at-once", type=int, default=1, help="targets at one time; default 1")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.targets) - set(_names())
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(_names())}")
    return options


def _names() -> list[str]:
    """Read from the files, since importing the targets has to wait until the fuzzer watches."""
    found = re.findall(r"^ {8}(\w+)\.TARGET,$", (Path(__file__).parent / "targets" / "__init__.py").read_text(), re.M)
    return list(found)


def _run(name: str, minutes: float, seed: int) -> Run:
    """One target in its own process; what it says is shown as it comes, a line a half minute at most."""
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--inside", f"--minutes={minutes}", f"--seed={seed}"]
    began = time.monotonic()
    tail: deque[str] = deque(maxlen=60)
    executions = edges = 0
    process = subprocess.Popen(
        command,
        cwd=_TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=lambda: os.nice(_NICE),
    )
    assert process.stdout is not None
    shown_at = began
    for line in process.stdout:
        tail.append(line.rstrip())
        if total := re.match(r"stat::number_of_executed_units: (\d+)", line):
            executions = int(total[1])
        if progress := re.match(r"#(\d+)\s.*cov: (\d+)", line):
            executions, edges = int(progress[1]), int(progress[2])
            if time.monotonic() - shown_at > 30:
                shown_at = time.monotonic()
                print(f"{name}: {executions} executions, {edges} edges", flush=True)
    run = Run(name, process.wait(), time.monotonic() - began, executions, edges, "\n".join(tail))
    print(run.line(), flush=True)
    return run


def _fuzz(name: str, seconds: float, seed: int) -> int:
    """In the process of one target: does not return while libFuzzer runs."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_PACKAGES):
        for package in _PACKAGES:
            importlib.import_module(package)
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    target = targets[name]
    known = _KNOWN / name
    known.mkdir(parents=True, exist_ok=True)
    for number, seed_input in enumerate(target.seeds):
        (known / f"seed-{number}").write_bytes(seed_input)
    found = CORPUS / name
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        str(known),
        str(found),
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        f"-max_len={target.most}",
        f"-timeout={_SLOW_S}",
        f"-rss_limit_mb={_MOST_MIB}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        "-use_value_profile=1",
    ]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
