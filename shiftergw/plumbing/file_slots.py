"""Slots that all processes of a machine share, as locks on files of one directory.

`N.slot` is the lock of slot N, and `QUEUE-TIME-PROCESS-NUMBER.ticket` that of a place in a queue.
The kernel releases the locks of a dead process. Within a queue, processes get slots in the order
of their tickets. If the first processes of two queues wait for the same slot, either may get it.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.locks import POLL_SECONDS, try_lock, unlock
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

_SLOT = ".slot"
_TICKET = ".ticket"
_ticket_numbers = count()


@dataclass(frozen=True, slots=True)
class TakenSlot:
    """A slot that this process holds.

    `holders` is how many slots all processes hold, this one included. The slot of a process
    that was killed counts until it is taken again.
    """

    number: int
    path: Path
    descriptor: int
    holders: int


class FileSlots:
    """The slots in a directory, which is made when the first slot is taken."""

    def __init__(self, directory: Path, threads: Threads, clock: IReactorTime) -> None:
        """Lock files of `directory` in `threads`."""
        self._directory = directory
        self._threads = threads
        self._clock = clock

    @asynccontextmanager
    async def try_take(self, numbers: Sequence[int], queue: str) -> AsyncIterator[TakenSlot | None]:
        """Hold the first free of these slots during the block.

        Yields None if none is free, or if others wait in the queue.
        """
        await self._threads.run(private_directory, self._directory)
        slot = await self._acquire(numbers, queue, None)
        try:
            yield slot
        finally:
            if slot is not None:
                await self._threads.release(_release, slot)

    @asynccontextmanager
    async def take(
        self,
        numbers: Sequence[int],
        queue: str,
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> AsyncIterator[TakenSlot]:
        """Hold one of these slots during the block; wait for it in the queue, without a limit.

        A context of `waiting` is open during the wait. Cancellable.
        """
        await self._threads.run(private_directory, self._directory)
        slot = await self._acquire(numbers, queue, None)
        if slot is None:
            slot = await self._wait(numbers, queue, waiting)
        try:
            yield slot
        finally:
            await self._threads.release(_release, slot)

    async def has_queue(self, queue: str) -> bool:
        """Return whether a process waits in the queue."""
        return await self._threads.run(self._is_waiting, queue, None)

    async def _wait(
        self,
        numbers: Sequence[int],
        queue: str,
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> TakenSlot:
        with waiting():
            ticket, descriptor = await self._threads.acquire(
                partial(self._take_ticket, queue), _return_ticket
            )
            try:
                while (slot := await self._acquire(numbers, queue, ticket)) is None:
                    await pause(POLL_SECONDS, self._clock)
            finally:
                await self._threads.release(unlock, ticket, descriptor)
        return slot

    async def _acquire(
        self, numbers: Sequence[int], queue: str, ticket: Path | None
    ) -> TakenSlot | None:
        return await self._threads.acquire(partial(self._try, numbers, queue, ticket), _release)

    def _try(self, numbers: Sequence[int], queue: str, ticket: Path | None) -> TakenSlot | None:
        """Lock a free slot, unless a process waits in the queue before this ticket."""
        if self._is_waiting(queue, ticket):
            return None
        for number in numbers:
            path = self._directory / f"{number}{_SLOT}"
            descriptor = try_lock(path)
            if descriptor is not None:
                holders = sum(name.endswith(_SLOT) for name in os.listdir(self._directory))  # noqa: PTH208
                return TakenSlot(number, path, descriptor, holders)
        return None

    def _is_waiting(self, queue: str, ticket: Path | None) -> bool:
        """Return whether a living process waits before this ticket, or at all if it is None."""
        try:
            names = sorted(os.listdir(self._directory))  # noqa: PTH208 - the times have equal lengths
        except FileNotFoundError:
            return False
        for name in names:
            if not name.startswith(f"{queue}-") or not name.endswith(_TICKET):
                continue
            if ticket is not None and name >= ticket.name:
                return False
            path = self._directory / name
            descriptor = try_lock(path)
            if descriptor is None:
                return True
            unlock(path, descriptor)  # its process is dead, or has just returned it
        return False

    def _take_ticket(self, queue: str) -> tuple[Path, int]:
        """Take a place at the end of the queue."""
        while True:
            # The time since the start of the machine is the same in all processes.
            name = f"{queue}-{time.monotonic_ns():020}-{os.getpid()}-{next(_ticket_numbers)}"
            path = self._directory / f"{name}{_TICKET}"
            descriptor = try_lock(path)
            if descriptor is not None:  # else another process just checks whether this one is dead
                return path, descriptor


def _return_ticket(ticket: tuple[Path, int]) -> None:
    unlock(*ticket)


def _release(slot: TakenSlot | None) -> None:
    if slot is not None:
        unlock(slot.path, slot.descriptor)
