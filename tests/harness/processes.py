"""Processes that are not our children: whether they run, and waiting for their end."""

from __future__ import annotations

import asyncio
import os

DEADLINE_S = 30.0


class Watch:
    """Holds on to processes by pidfd_open(2), so that an end is seen though it is somebody else's child."""

    def __init__(self, *pids: int) -> None:
        self._descriptors = {pid: os.pidfd_open(pid) for pid in pids}

    async def until_all_ended(self) -> None:
        """Raises AssertionError with the pid of one that still runs."""
        loop = asyncio.get_running_loop()
        for pid, descriptor in self._descriptors.items():
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)  # readable once the process has ended, reaped or not
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await ended.wait()
            except TimeoutError:
                raise AssertionError(f"process {pid} still runs") from None
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
