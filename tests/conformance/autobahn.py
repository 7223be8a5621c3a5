"""
The Autobahn test suite, installed and run.

The suite runs on CPython 2.7 alone. One is looked for in pyenv and on the path; the suite, in the versions and with the
hashes of `locks/`, goes into a virtualenv of it in the cache folder, made in a temporary folder beside and renamed when
whole, so that several runs can do so at once and a broken-off one leaves nothing half made.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

LOCKS = Path(__file__).parents[2] / "locks"
SUITE = LOCKS / "autobahn-suite.txt"
MAKER = LOCKS / "autobahn-maker.txt"
INSTALL_TIMEOUT_S = 600
RUN_TIMEOUT_S = 300
READY_TIMEOUT_S = 30
AGENT = "pushfleet"

_WSTEST = "from autobahntestsuite.wstest import run; run()"


class Unavailable(Exception):
    """The suite cannot run on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Autobahn's judgement of one case: of what was answered, and of how the connection was closed."""

    case: str
    behavior: str
    behavior_close: str


def suite_python() -> Path:
    """The interpreter of an environment that has the suite, made now if there is none. Raises `Unavailable`."""
    cache = Path(os.environ.get("PUSH_CACHE") or Path.home() / ".cache" / "pushfleet")
    place = cache / f"autobahn-2.7-{sha256(SUITE.read_bytes()).hexdigest()[:12]}"
    if not place.exists():
        python = find_python27()
        if python is None:
            raise Unavailable("no CPython 2.7 in pyenv or on the path")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="autobahn-") as scratch:
            made = _make_environment(python, Path(scratch))
            try:
                made.rename(place)
            except OSError:
                if not place.exists():  # else another run was first
                    raise
    return place / "bin" / "python"


def find_python27() -> Path | None:
    """A CPython 2.7 that starts: pyenv's own, else `python2.7` on the path (where a pyenv shim may lead nowhere)."""
    roots = [Path.home() / ".pyenv"]
    if pyenv := shutil.which("pyenv"):
        answer = subprocess.run([pyenv, "root"], capture_output=True, text=True, timeout=30, check=False)
        roots.append(Path(answer.stdout.strip() or "."))
    found = [python for root in roots for python in sorted(root.glob("versions/2.7*/bin/python"))]
    if on_path := shutil.which("python2.7"):
        found.append(Path(on_path))
    return next((python for python in found if _is_python27(python)), None)


def _is_python27(python: Path) -> bool:
    asked = [str(python), "-c", "import sys; print(sys.version_info[:2] == (2, 7))"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return answer.stdout.strip() == "True"


def _make_environment(python: Path, scratch: Path) -> Path:
    maker = scratch / "maker"
    made = scratch / "made"
    # Some of it is to be had as sources alone: they are built with what virtualenv carries, nothing else is fetched.
    hashed = ["-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--no-build-isolation"]
    for step in (
        [sys.executable, "-m", "venv", str(maker)],
        [str(maker / "bin" / "python"), *hashed, "-r", str(MAKER)],
        [str(maker / "bin" / "python"), "-m", "virtualenv", "--quiet", "--python", str(python), str(made)],
        [str(made / "bin" / "python"), *hashed, "-r", str(SUITE)],
    ):
        done = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode:
            raise Unavailable(f"the suite could not be installed: {done.stderr.strip()[-500:]}")
    return made


@contextmanager
def echo_server() -> Iterator[int]:
    """The port of a running `tests.conformance.echo_server`, which is gone at the end."""
    command = [sys.executable, "-m", "tests.conformance.echo_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            if not select.select([server.stdout], [], [], READY_TIMEOUT_S)[0]:
                raise TimeoutError("the echo server did not get ready")
            yield int(server.stdout.readline().removeprefix("ready port="))
        finally:
            server.stdin.close()
            try:
                server.wait(READY_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()


def run_suite(python: Path, port: int, cases: list[str], folder: Path) -> list[Verdict]:
    """Run the fuzzing client against the server on `port`; no verdict if none is there. A report stays in `folder`."""
    spec = {
        "outdir": str(folder / "report"),
        "servers": [{"agent": AGENT, "url": f"ws://127.0.0.1:{port}"}],
        "cases": cases,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [str(python), "-W", "ignore", "-c", _WSTEST, "-m", "fuzzingclient", "-s", "spec.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    index = folder / "report" / "index.json"
    if not index.exists():
        raise RuntimeError(f"the suite left no report: {done.stderr.strip()[-2000:]}")
    verdicts = json.loads(index.read_text()).get(AGENT, {})
    return [
        Verdict(case, verdict["behavior"], verdict["behaviorClose"])
        for case, verdict in sorted(verdicts.items(), key=lambda item: [int(part) for part in item[0].split(".")])
    ]


def main() -> None:
    """`python -m tests.conformance.autobahn [case..]`: run, print every verdict that is not OK, keep the report."""
    folder = Path(tempfile.mkdtemp(prefix="autobahn-report-"))
    started = time.monotonic()
    with echo_server() as port:
        verdicts = run_suite(suite_python(), port, sys.argv[1:] or ["*"], folder)
    for verdict in verdicts:
        if (verdict.behavior, verdict.behavior_close) != ("OK", "OK"):
            print(verdict.case, verdict.behavior, verdict.behavior_close)  # noqa: T201
    print(f"{len(verdicts)} cases in {time.monotonic() - started:.0f} s, report: {folder / 'report'}")  # noqa: T201


if __name__ == "__main__":
    main()
