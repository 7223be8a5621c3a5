"""A broker that finds its disk full while a file exists: see full_disk.c. Needs a C compiler and Linux's glibc."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

BROKER_LOOKS_EACH_S = 10.0
"""RocketMQ 5.5.0, DefaultMessageStore: isSpaceFull, each 10 s."""

_SOURCE = Path(__file__).with_name("full_disk.c")


def can_be_built() -> bool:
    return sys.platform == "linux" and shutil.which("cc") is not None


def variables(folder: Path, flag: Path) -> dict[str, str]:
    """Build it into `folder`; what goes into the broker's environment. The disk is full while `flag` exists."""
    library = folder / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "CHAOS_DISK_FULL_WHILE": str(flag)}
