"""What a figure was measured on: the machine and the versions of everything that took part."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from pushfleet.local_rocketmq import VERSION as ROCKETMQ_VERSION
from pushfleet.local_valkey import find_server

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that go into every result."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    uvloop: str
    aiohttp: str
    valkey: str
    rocketmq: str
    commit: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def describe_machine() -> Machine:
    """Ask this machine. What cannot be found out is `unknown`."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 0,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        uvloop=version("uvloop"),
        aiohttp=version("aiohttp"),
        valkey=_valkey_version(),
        rocketmq=ROCKETMQ_VERSION,
        commit=_commit(),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _valkey_version() -> str:
    """`Valkey server v=9.1.0 sha=...` becomes `9.1.0`."""
    words = _output([find_server(), "--version"]).split()
    return next((word[2:] for word in words if word.startswith("v=")), "unknown")


def _commit() -> str:
    commit = _output(["git", "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"])
    return (commit or "unknown") + (" with changes" if changed else "")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=_ROOT, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
