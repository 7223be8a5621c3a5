"""
`make lock`: the lock files beside this one, anew from pyproject.toml. Each holds exact versions with the SHA-256 of
every file of theirs that the index serves, for every platform; pip refuses any other (`--require-hashes`).

    run.txt             what a server needs; the image installs it
    develop.txt         that, the extra `embedded`, the group `dev` and what builds the project; .venv holds it
    build.txt           what builds the project
    fuzz.txt            what `make fuzz` needs besides
    tools.txt           uv, which makes these files, and pip-audit
    autobahn-maker.txt  what makes the Python 2.7 environment of the conformance tests

(autobahn-suite.txt is what goes into that environment. No tool of today resolves for Python 2.7, and its packages no
longer change: it was written once.)

The tool is installed from tools.txt into a throw-away environment. Versions that are locked stay unless they no longer
fit; `--upgrade` takes the newest. No address of an index gets into a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = Path(__file__).parent
TOP = PLACE.parent
OLDEST_PYTHON = "3.11"
# In order: a later file keeps to the versions of the first, so that what is tested is what runs.
LOCKS = {
    "develop.txt": ("--extra", "embedded", "--group", "dev", "--group", "build"),
    "run.txt": ("--constraints", "locks/develop.txt"),
    "build.txt": ("--group", "build", "--constraints", "locks/develop.txt"),
    "fuzz.txt": ("--group", "fuzz", "--constraints", "locks/develop.txt"),
    "tools.txt": ("--group", "tools"),
    "autobahn-maker.txt": ("--group", "autobahn"),
}
HEAD = "# Written by `make lock` from pyproject.toml; see locks/renew.py.\n"


@contextmanager
def tools() -> Iterator[Path]:
    """The folder of programs of an environment that has what tools.txt names, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="pushfleet-tools-") as scratch:
        venv.create(scratch, with_pip=True)
        pip = [str(Path(scratch, "bin", "python")), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(PLACE / "tools.txt")], check=True)
        yield Path(scratch, "bin")


def environment() -> dict[str, str]:
    """uv does not read pip's settings; the ones that say where packages come from are handed on."""
    own = dict(os.environ)
    for pip_name, names in {
        "global.index-url": ("UV_DEFAULT_INDEX",),
        "global.extra-index-url": ("UV_INDEX",),
        "global.cert": ("SSL_CERT_FILE",),
    }.items():
        variable = "PIP_" + pip_name.removeprefix("global.").replace("-", "_").upper()
        asked = [sys.executable, "-m", "pip", "config", "get", pip_name]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        value = os.environ.get(variable) or answer.stdout.strip()
        for name in names:
            if value:
                own.setdefault(name, value)
    return own


def renew(uv: Path, name: str, options: tuple[str, ...], *, upgrade: bool) -> None:
    """One file. The old one is read by uv for the versions to keep."""
    groups_alone = "--group" in options and "--extra" not in options
    command = [str(uv), "pip", "compile", "--quiet", *(() if groups_alone else ("pyproject.toml",)), *options]
    command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-header"]
    command += ["--output-file", f"locks/{name}", *(("--upgrade",) if upgrade else ())]
    subprocess.run(command, cwd=TOP, check=True, env=environment(), stdout=subprocess.DEVNULL)
    path = PLACE / name
    text = path.read_text()
    if "://" in text or "--index" in text:
        raise SystemExit(f"locks/{name} names an index, which is a matter of each machine's own settings")
    path.write_text(HEAD + text.removeprefix(HEAD))


def main() -> None:
    """`python -m locks.renew [--upgrade]`."""
    parser = argparse.ArgumentParser(description="Write the lock files anew from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    upgrade = parser.parse_args().upgrade
    with tools() as programs:
        for name, options in LOCKS.items():
            renew(programs / "uv", name, options, upgrade=upgrade)
            print(f"locks/{name}")


if __name__ == "__main__":
    main()
