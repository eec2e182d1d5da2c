"""Upload an image of the user's own to a gateway, so that a pull can use it.

The client declares size and digest, then sends chunks. The gateway says how many bytes it has,
after each chunk and after the same declaration by a later run, and the client goes on from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from random import random as system_random
from typing import Any, Protocol

from twisted.internet.defer import CancelledError

from shiftergw.cli import answers
from shiftergw.cli.answers import UploadState
from shiftergw.cli.directory_tar import SourceChanged
from shiftergw.cli.exits import NoGateway, RequestRefused, Stop, WrongOffset
from shiftergw.cli.gateways import ANSWER_LIMIT
from shiftergw.cli.input_spool import HEAD_BYTES, InputSpool
from shiftergw.cli.remote import Remote
from shiftergw.cli.upload_source import UploadSource, open_source
from shiftergw.model.source_names import LocalSourceName
from shiftergw.plumbing.backoff import Backoff

BACKOFF = Backoff(first=0.5, longest=10.0)
"""Pauses between attempts to reach a gateway."""

SILENCE_LIMIT = 60.0
"""Seconds of failures in a row after which an upload is given up; the gateway may be restarting."""

LEAST_FAILURES = 3
"""Failures in a row after which it may be given up: a slow one can take all of the time."""

LARGEST_CHUNK = 16 << 20
SMALLEST_CHUNK = 1 << 20
"""Bytes of a chunk: a broken connection costs one. Only the last of an upload is smaller."""

LEAST_RATE = 64 * 1024
"""Bytes per second below which a chunk is given up, and tried again with fewer bytes."""

SLOW = 4.0
FAST = 1.0
"""Seconds of a chunk after which the next one is smaller, and below which it is larger.

If the gateway is killed, the chunk that is on its way is lost: about a second's bytes.
"""


class UploadDisplay(Protocol):
    """Where the progress is shown."""

    def stage(self, text: str) -> None:
        """Show that a stage begins."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """Show how far the stage is; `total` 0 means not known."""
        ...

    def notify(self, text: str) -> None:
        """Show one line."""
        ...


InThread = Callable[..., Any]
"""Awaits a function that blocks, such as `TwistedExchange.in_thread`."""


SizeCheck = Callable[[int | None], Awaitable[int | None]]
"""Raises an error if an upload of this size, None if that is not known, will be refused.

Returns the bytes of the largest upload, None if the gateway does not say.
"""


@asynccontextmanager
async def prepared_source(
    source: LocalSourceName, in_thread: InThread, display: UploadDisplay, check: SizeCheck
) -> AsyncIterator[UploadSource]:
    """Yield a source with its digest, which needs all of its bytes; raise `Misuse`.

    `check` is awaited before the file is read. Raises `ManifestInvalid`, as its worker would, for
    a file that shows by its first bytes that it has no image.
    """
    is_input = source.kind == "stdin"
    if is_input:
        spool = InputSpool()
        try:
            limit = await check(None)
            display.stage("Copying standard input")
            is_checked = False
            while await in_thread(spool.copy_piece, limit):
                display.bytes(spool.size, 0)
                if not is_checked and len(spool.head) == HEAD_BYTES:
                    is_checked = True
                    _check_form(spool.head, "")
            content = spool.source()
        except BaseException:
            spool.close()
            raise
    else:
        content = await in_thread(open_source, source)
    try:
        if not is_input:
            await check(content.size)
        _check_form(await in_thread(content.read, 0, HEAD_BYTES), content.kind)
        display.stage(f"Hashing {content.name}")
        while content.hashed_size < content.size:
            await in_thread(content.hash_piece)
            display.bytes(content.hashed_size, content.size)
        yield content
    finally:
        content.close()


def _check_form(head: bytes, kind: str) -> None:
    # Loads what reads archives; an upload that is refused before does without.
    from shiftergw.app.upload_check import check_file  # noqa: PLC0415

    check_file(head, kind)


async def upload(
    remote: Remote,
    display: UploadDisplay,
    clock: Any,
    in_thread: InThread,
    source: UploadSource,
    image: Mapping[str, Any],
) -> str | Mapping[str, Any]:
    """Send what the gateway does not have of a source; return the id of the upload.

    `image` has the `name` of the image to be made, its `selector`, and who may use it, as members
    of the declaration. If this image is READY, and made of the same file, nothing is sent, and its
    record is returned.

    Raises `NoGateway` after `SILENCE_LIMIT` seconds without progress, and the gateway's refusal.
    """
    try:
        return await _Sender(remote, clock, in_thread, source, image, display).send()
    except _ImageReady as ready:
        display.notify(f"{source.name} is not sent: the image made of it is there already.")
        return ready.record


class _ImageReady(Exception):
    """The image that an upload is for is READY; `record` is its record."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__()
        self.record = record


class _Sender:
    """One run of an upload."""

    def __init__(
        self,
        remote: Remote,
        clock: Any,
        in_thread: InThread,
        source: UploadSource,
        image: Mapping[str, Any],
        display: UploadDisplay,
    ) -> None:
        self._remote = remote
        self._clock = clock
        self._in_thread = in_thread
        self._source = source
        self._image = image
        self._display = display
        self._is_lost = False
        """Whether the gateway has to say again what it has."""
        self._chunk = SMALLEST_CHUNK
        self._failures = 0
        self._failing_since = 0.0
        self._highest = -1

    async def send(self) -> str:
        self._remote.prefer_by(self._source.digest)
        state = await self._declare()
        offset = state.offset
        while offset < self._source.size:
            try:
                if self._is_lost:
                    state = await self._declare()
                    offset = state.offset
                else:
                    offset = await self._send_chunk(state, offset)
                self._note_progress(offset)
            except CancelledError:
                raise
            except SourceChanged:
                await self._discard(state)
                raise
            except WrongOffset as error:
                offset = error.offset
                self._note_progress(offset)
                await self._pause_after(error)
            except (NoGateway, RequestRefused) as error:
                # The gateway says what of the chunk it has; an upload that has expired begins anew.
                if self._is_lost and isinstance(error, RequestRefused):
                    raise
                self._is_lost = True
                self._chunk = max(SMALLEST_CHUNK, self._chunk // 2)
                await self._pause_after(error)
        return state.key

    async def _declare(self) -> UploadState:
        """Declare the upload; show how much of it the gateway has. Raises `_ImageReady`."""
        source = self._source
        members = {
            "size": source.size,
            "sha256": source.digest,
            "kind": source.kind,
            "filename": source.name,
            **self._image,
        }
        # Another gateway would need all bytes again, so one that is restarting is waited for.
        state = await self._remote.declare(members, to_last=self._is_lost)
        if not isinstance(state, UploadState):
            raise _ImageReady(state)
        self._check(state)
        self._is_lost = False
        self._display.stage(f"Uploading {source.name}")
        self._display.bytes(state.offset, source.size)
        return state

    async def _send_chunk(self, state: UploadState, offset: int) -> int:
        """Send the chunk at `offset`; return how many bytes the gateway has then."""
        size = min(self._chunk, state.chunk, self._source.size - offset)
        content = await self._in_thread(self._source.read, offset, size)
        start = self._clock.seconds()
        answer = await self._remote.ask_last(
            "PUT",
            ["upload", state.key],
            answers.parse_upload,
            body=content,
            query=f"?offset={offset}",
            limit=ANSWER_LIMIT + size / LEAST_RATE,
        )
        self._check(answer)
        seconds = self._clock.seconds() - start
        if seconds > SLOW:
            self._chunk = max(SMALLEST_CHUNK, self._chunk // 2)
        elif seconds < FAST:
            self._chunk = min(LARGEST_CHUNK, self._chunk * 2)
        self._display.bytes(answer.offset, self._source.size)
        return answer.offset

    def _check(self, state: UploadState) -> None:
        """Raise `RequestRefused` for more bytes than the upload has."""
        if state.offset > self._source.size:
            raise RequestRefused("The gateway says that it has more bytes than the upload.")

    def _note_progress(self, offset: int) -> None:
        if offset > self._highest:
            self._highest = offset
            self._failures = 0

    async def _pause_after(self, error: Stop) -> None:
        """Wait before the next attempt; raise the error once there were too many failures."""
        now = self._clock.seconds()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        if self._failures >= LEAST_FAILURES and now >= self._failing_since + SILENCE_LIMIT:
            raise error
        if not isinstance(error, WrongOffset):
            self._display.notify(f"{error.message} Still trying.")
        spread = 0.5 + system_random() / 2  # noqa: S311 - no secret
        await BACKOFF.pause(self._failures, self._clock, spread)

    async def _discard(self, state: UploadState) -> None:
        """Remove an upload that can never be complete; a gateway that is away removes it later."""
        try:
            await self._remote.ask_last("DELETE", ["upload", state.key], answers.parse_object)
        except Stop:
            return
