"""
The jars of RocketMQ's name server, broker and admin tools: fetched by Maven, once, into a cache folder.

The folder is `$PUSH_CACHE`, or `~/.cache/pushfleet`. What was fetched is used only if each jar is the one that
`local_rocketmq.sha256` names, with none missing and none besides. Maven itself is told to refuse what the checksums of
its repository do not fit.

The list is renewed with the version: `python -m pushfleet.jars` fetches without it and writes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

VERSION = "5.5.0"
POM = Path(__file__).with_name("local_rocketmq.pom.xml")
CHECKSUMS = Path(__file__).with_name("local_rocketmq.sha256")


class LocalRocketMQError(Exception):
    """It could not be fetched or did not come up; the text says what to look at."""


def cache_folder() -> Path:
    """`$PUSH_CACHE`, or `~/.cache/pushfleet`."""
    return Path(os.environ.get("PUSH_CACHE") or Path.home() / ".cache" / "pushfleet")


def fetch_jars(say: Callable[[str], None] = lambda line: None) -> Path:
    """
    The folder with the jars, fetched if it is not there (about 100 MB). Blocks; `say` gets progress lines.

    Several processes may do this at once: each fetches into a folder of its own, the first to rename it wins.
    Raises LocalRocketMQError.
    """
    folder = cache_folder() / f"rocketmq-{VERSION}" / "lib"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching RocketMQ {VERSION} with Maven (about 100 MB, once)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        jars = _run_maven(Path(scratch))
        fault = jars_fault(jars)
        if fault:
            raise LocalRocketMQError(f"what Maven fetched is not what {CHECKSUMS.name} names: {fault}")
        try:
            jars.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    say(f"RocketMQ {VERSION} is in {folder}")
    return folder


def jars_fault(folder: Path) -> str:
    """What in the folder is not as the list says; empty when all is."""
    lines = (line.partition("  ") for line in CHECKSUMS.read_text().splitlines())
    wanted = {name: digest for digest, _, name in lines}
    found = checksums(folder)
    missing, besides = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    parts = {"not there": missing, "not on the list": besides, "other contents": other}
    return "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in parts.items() if names)


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, in hex, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _run_maven(scratch: Path) -> Path:
    """The folder with what it fetched. Raises LocalRocketMQError."""
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalRocketMQError("Maven (mvn) is not installed: it fetches the RocketMQ jars")
    pom = shutil.copy(POM, scratch / "pom.xml")
    command = [maven, "-B", "-q", "-ntp", "--strict-checksums", "-f", pom, "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={scratch / 'lib'}", f"-Drocketmq.version={VERSION}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise LocalRocketMQError(f"Maven failed ({done.returncode}): {(done.stdout + done.stderr)[-2000:]}")
    jars = scratch / "lib"
    if not jars.is_dir():
        raise LocalRocketMQError("Maven ended without an error, yet there are no jars")
    return jars


def main() -> None:
    """Write the list anew, of what Maven fetches now."""
    with tempfile.TemporaryDirectory() as scratch:
        found = checksums(_run_maven(Path(scratch)))
    CHECKSUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in found.items()))


if __name__ == "__main__":
    main()
