"""Install packs in the background, while an image is planned and composed of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.build.pack_files import Pack
from shiftergw.build.written_pack import WrittenPack
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.timing import wait_to_end

if TYPE_CHECKING:
    MakePack = Callable[[Callable[[WrittenPack], None]], Coroutine[Deferred[Any], Any, Pack]]
    """Makes or finds a pack; calls the function with a new pack, before it is installed."""

_log = Logger()


class BackgroundPacking:
    """The packing of one layer: the pack is installed in the background once it is written."""

    def __init__(self, make: MakePack, at_end: Callable[[], object]) -> None:
        """Begin to make the pack; `at_end` is called when that has ended in any way.

        The caller waits until it is written, and registers `leave` with its exit stack.
        """
        self._first_result = SharedResult[WrittenPack | Pack | BaseException]()
        self._last_result = SharedResult[Pack | BaseException]()
        self._at_end = at_end
        self._work = Deferred.fromCoroutine(make(self._first_result.set_result))
        self._work.addBoth(self._end)

    def _end(self, result: Pack | Failure) -> None:
        self._at_end()
        outcome = result.value if isinstance(result, Failure) else result
        assert outcome is not None
        self._last_result.set_result(outcome)
        self._first_result.set_result(outcome)

    async def wait_until_written(self) -> WrittenPack | Pack:
        """Return the pack once its file is complete; raise the error of the packing, if it fails.

        A cancellation ends the packing.
        """
        waiting = Deferred.fromCoroutine(self._first_result.wait())
        outcome = await wait_to_end(waiting, self._work.cancel)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def wait_until_installed(self) -> Pack:
        """Return the pack once it is in its place; raise the error of the packing, if it fails."""
        outcome = await self._last_result.wait()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def leave(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        """Wait for the end of the packing; see `AsyncExitStack.push_async_exit`.

        A cancellation, before or meanwhile, ends it soon. After other errors of the build the pack
        is kept for the next one.
        """
        if isinstance(error, CancelledError):
            self._work.cancel()
        waiting = Deferred.fromCoroutine(self._last_result.wait())
        outcome = await wait_to_end(waiting, self._work.cancel)
        if isinstance(outcome, BaseException) and error is None:
            _log.warn(
                "a converted layer was not kept, and is converted again when it is needed"
                " ({problem})",
                problem=str(outcome),
            )
