"""Figures, their medians, and the two files that keep them: JSON for programs, a Markdown table for readers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median

from bench.machine import Machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One figure: a value a repetition, of which the median counts.

    `target` is the budget in words, with what stands beside it; `beside` is what was measured in the same runs
    (medians), by name: the CPU of each process, the C server's rate, counts that must be 0.
    """

    what: str
    unit: str
    runs: tuple[float, ...]
    target: str = ""
    beside: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return median(self.runs)

    def as_dict(self) -> dict[str, object]:
        return {
            "what": self.what,
            "unit": self.unit,
            "median": self.value,
            "runs": self.runs,
            "target": self.target,
            "beside": self.beside,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What a scenario found out. `notes` are sentences that a reader needs for these figures."""

    scenario: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each name over repetitions; a name that only some have is taken from those."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: median([run[name] for run in runs if name in run]) for name in names}


def shown(value: float) -> str:
    """A number with as many digits as it deserves."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_result(result: Result, machine: Machine, command: str, now: datetime) -> Path:
    """Write both files and return the path of the Markdown one."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%d}-{result.scenario}.md"
    path.write_text(markdown(result, machine, command, now))
    whole = {
        "scenario": result.scenario,
        "title": result.title,
        "time": now.isoformat(timespec="seconds"),
        "command": command,
        "machine": machine.as_dict(),
        "figures": [figure.as_dict() for figure in result.figures],
        "notes": result.notes,
    }
    path.with_suffix(".json").write_text(json.dumps(whole, indent=2) + "\n")
    return path


def markdown(result: Result, machine: Machine, command: str, now: datetime) -> str:
    """The result as a page."""
    lines = [f"# {result.title}", "", f"`{command}`, {now:%Y-%m-%d %H:%M} UTC", "", *table(result), ""]
    lines += [f"- {note}" for note in result.notes]
    lines += [""] * bool(result.notes)
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in machine.as_dict().items()]
    return "\n".join(lines) + "\n"


def table(result: Result) -> list[str]:
    lines = ["| figure | median | runs | target | in the same runs |", "|---|---|---|---|---|"]
    for figure in result.figures:
        runs = ", ".join(shown(run) for run in figure.runs)
        beside = "; ".join(f"{name} {shown(value)}" for name, value in figure.beside.items())
        value = f"{shown(figure.value)} {figure.unit}".rstrip()
        lines.append(f"| {figure.what} | {value} | {runs} | {figure.target or '-'} | {beside or '-'} |")
    return lines
