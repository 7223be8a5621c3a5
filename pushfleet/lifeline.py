"""
Children that do not outlive their parent, and the lock that keeps two parents off one data folder.

On Linux the kernel itself ends a child whose parent is gone, however that ended (prctl(2), PR_SET_PDEATHSIG). The
signal comes when the thread that started the child ends, so children are started from the main thread only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class DataFolderInUse(Exception):
    """Another process works in the folder; the text says which and what to do."""


def end_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` for subprocess that ties the child's life to this process's; None where that cannot be had."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it went between fork and prctl
            os._exit(1)

    return tie


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """
    Make the folder and hold its lock. Raises DataFolderInUse at once if somebody else does.

    The folder ignores itself in Git: it may stand in the middle of anybody's work tree.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "owner.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(lock, 20, 0).decode() or "unknown"
            raise DataFolderInUse(
                f"{folder} is in use by process {owner}; stop that one, or name another folder with --data"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        (folder / ".gitignore").write_text("*\n")
        yield folder
    finally:
        os.close(lock)
