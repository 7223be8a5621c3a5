"""Rounds as lines for who watches, as a table a fault, and as the two files that keep a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.machine import describe_machine
from bench.results import RESULTS
from tests.chaos.ledger import Kind
from tests.chaos.rounds import Round

_HEAD = (
    "fault",
    "times",
    "answered 200",
    "lost",
    "doubled",
    "mis-directed",
    "stale",
    "again on the wire",
    "over-taken",
    "whole again after",
    "first delivery after start / end",
    "every client after end",
    "longest silence",
    "p50 / p99 ms before",
    "p50 / p99 ms from its start on",
    "other answers",
)


@dataclass(frozen=True, slots=True)
class Run:
    """All rounds of one run."""

    seed: int
    command: str
    began: datetime
    minutes: float
    rounds: list[Round]

    @property
    def is_good(self) -> bool:
        return all(round_.is_good for round_ in self.rounds)

    def summary(self) -> str:
        verdicts = [round_.verdict for round_ in self.rounds]
        bad = sum(not round_.is_good for round_ in self.rounds)
        return (
            f"{len(self.rounds)} rounds in {self.minutes:.1f} minutes, seed {self.seed}: "
            f"{sum(verdict.answered for verdict in verdicts):,} messages answered 200, "
            f"{sum(verdict.lost for verdict in verdicts)} lost, "
            f"{sum(verdict.doubled for verdict in verdicts)} doubled, "
            f"{sum(verdict.misdirected for verdict in verdicts)} misdirected, "
            f"{sum(verdict.stale for verdict in verdicts)} stale; "
            f"{sum(verdict.again_same + verdict.again_other for verdict in verdicts):,} again on the wire; "
            f"{bad} rounds were not good"
        )


def line(round_: Round) -> str:
    """For who watches."""
    verdict = round_.verdict
    text = (
        f"{'ok ' if round_.is_good else 'BAD'} {round_.plan!s:<46} answered {verdict.answered:>5}  "
        f"lost {verdict.lost}  "
        f"doubled {verdict.doubled}  again {verdict.again_same}+{verdict.again_other}  overtaken {verdict.overtaken}  "
        f"held {round_.held_s:.1f} s  healed {round_.healed_s:.1f} s  silence {verdict.silence_s:.1f} s"
    )
    extra = {"misdirected": verdict.misdirected, "stale": verdict.stale, "offline": round_.offline}
    extra["left in inboxes"] = round_.left_in_inboxes
    words = [f"{count} {what}" for what, count in extra.items() if count]
    return "  ".join([text, *words, *round_.problems])


def table(rounds: Sequence[Round]) -> list[str]:
    """A line a fault, over all its times; pairs that were drawn share one. Of times in seconds the worst counts."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    by_name: dict[str, list[Round]] = {}
    for round_ in rounds:
        by_name.setdefault("two of these at once" if " + " in round_.plan.name else round_.plan.name, []).append(round_)
    for name in sorted(by_name, key=lambda name: (name != "none", name.startswith("two "), name)):
        lines.append("| " + " | ".join(_cells(name, by_name[name])) + " |")
    return lines


def traffic(rounds: Sequence[Round]) -> list[str]:
    """A line a kind of traffic, over all rounds."""
    lines = [
        "| traffic | sends answered 200 | messages of these | lost | again on the wire |",
        "|---|---|---|---|---|",
    ]
    for kind in Kind:
        totals = [round_.verdict.totals[kind] for round_ in rounds]
        counts = (sum(total[what] for total in totals) for what in ("sends", "answered", "lost", "again"))
        lines.append(f"| {kind} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return lines


def _cells(name: str, rounds: Sequence[Round]) -> list[str]:
    verdicts = [round_.verdict for round_ in rounds]
    statuses: dict[str, int] = {}
    for verdict in verdicts:
        for status, count in verdict.statuses.items():
            if status != "200":
                statuses[status] = statuses.get(status, 0) + count
    return [
        f"`{name}`" if " " not in name else name,
        str(len(rounds)),
        f"{sum(verdict.answered for verdict in verdicts):,}",
        *(str(sum(getattr(verdict, what) for verdict in verdicts)) for what in _MUST_BE_0),
        f"{sum(verdict.again_same for verdict in verdicts)} + {sum(verdict.again_other for verdict in verdicts)}",
        str(sum(verdict.overtaken for verdict in verdicts)),
        f"{max(round_.healed_s for round_ in rounds):.1f} s",
        f"{_worst(verdict.first_after_start_s for verdict in verdicts)} / "
        f"{_worst(verdict.first_after_end_s for verdict in verdicts)}",
        _worst(verdict.all_after_end_s for verdict in verdicts),
        f"{max(verdict.silence_s for verdict in verdicts):.1f} s",
        _latency([verdict.p50_before_ms for verdict in verdicts], [verdict.p99_before_ms for verdict in verdicts]),
        _latency([verdict.p50_during_ms for verdict in verdicts], [verdict.p99_during_ms for verdict in verdicts]),
        ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())) or "-",
    ]


_MUST_BE_0 = ("lost", "doubled", "misdirected", "stale")


def _worst(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{max(found):.1f} s" if found else "-"


def _latency(p50: Sequence[float], p99: Sequence[float]) -> str:
    return f"{median(p50):.0f} / {median(p99):.0f}"


def keep(run: Run, folder: Path = RESULTS) -> Path:
    """Write `<date>-chaos-<seed>.json` and `.md`; the path of the first."""
    machine = describe_machine()
    path = folder / f"{run.began:%Y-%m-%d}-chaos-{run.seed}.json"
    whole = {
        "title": "Chaos",
        "time": run.began.isoformat(timespec="seconds"),
        "command": run.command,
        "seed": run.seed,
        "minutes": round(run.minutes, 2),
        "machine": machine.as_dict(),
        "summary": run.summary(),
        "rounds": [round_.as_dict() for round_ in run.rounds],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    lines = ["# Chaos", "", f"`{run.command}`, {run.began.astimezone(UTC):%Y-%m-%d %H:%M} UTC", "", run.summary(), ""]
    lines += [*table(run.rounds), "", *traffic(run.rounds), "", "| | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in machine.as_dict().items()]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return path
