"""The rules of one job: from a record that waits to a delivered image, or to a reason why not.

The pipeline makes the file; here stand the rules around it: what is current already, who may read
the result, in which order the files appear, and what the record says in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.attempt import Attempt
from shiftergw.config import Config
from shiftergw.errors import (
    GatewayError,
    ImageNotFound,
    NoSpace,
    RegistryDenied,
    Superseded,
    WorkerLost,
)
from shiftergw.image import BuiltImage, ImageConfig, Platform, ResolvedImage, SquashOptions
from shiftergw.model import (
    Failed,
    ImageRecord,
    ImageReference,
    Login,
    Origin,
    Ready,
)
from shiftergw.oci.meta import write_meta
from shiftergw.pipeline import Pipeline
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import ImageDirectory, ImageStore
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

MAX_ATTEMPTS = 5
"""Workers that may die on one record before it is given up."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a system's images go, and how they are made.

    `name` is the same for all systems that share the directory.
    """

    name: str
    directory: ImageDirectory
    platform: Platform
    options: SquashOptions


class Worker:
    """Takes one record at a time from waiting to its end."""

    _log = Logger()

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        pipeline: Pipeline,
        targets: Mapping[str, Target],
        seal: Seal,
        clock: IReactorTime,
        runner: str,
    ) -> None:
        """Serve `targets` (system name → target); `runner` names this process in the store."""
        self._config = config
        self._store = store
        self._pipeline = pipeline
        self._targets = targets
        self._seal = seal
        self._clock = clock
        self._runner = runner

    async def run(self, key: str) -> None:
        """Do the work of a record, if it is still to be done, and write down how it ended.

        Being cancelled leaves the record in flight: another attempt takes it up.
        """
        record = await self._store.begin(
            key, self._runner, self._clock.seconds(), self._config.heartbeat_limit
        )
        if record is None:
            return
        self._log.info("attempt {n} at {claim} begins", n=record.attempt, claim=record.claim)
        attempt = Attempt(record, self._store, self._clock, self._config.heartbeat_limit)
        work = Deferred.fromCoroutine(self._work(attempt))
        pulse = Deferred.fromCoroutine(attempt.keep_alive(work.cancel))
        try:
            outcome = await work
        except Superseded:
            outcome = None
        except CancelledError:
            if not attempt.lost:
                raise
            outcome = None
        finally:
            pulse.cancel()
            pulse.addErrback(lambda failure: failure.trap(CancelledError))
            await pulse
        if outcome is None:
            self._log.info(
                "attempt {n} at {claim} was superseded", n=record.attempt, claim=record.claim
            )
            return
        await self._finish(attempt, outcome)

    async def _finish(self, attempt: Attempt, outcome: Ready | Failed) -> None:
        record = attempt.record
        try:
            await self._store.finish(record.key, record.attempt, outcome, self._clock.seconds())
        except Superseded:
            return
        self._log.info(
            "attempt {n} at {claim} ends: {outcome}",
            n=record.attempt,
            claim=record.claim,
            outcome="READY" if isinstance(outcome, Ready) else outcome.cause,
        )

    async def _work(self, attempt: Attempt) -> Ready | Failed:
        """Do the work; turn every error but cancellation and supersession into a reason."""
        record = attempt.record
        try:
            return await self._pull(attempt)
        except (CancelledError, Superseded):
            raise
        except GatewayError as error:
            self._log.warn(
                "attempt {n} at {claim} failed: {what} {detail}",
                n=record.attempt,
                claim=record.claim,
                what=error.what,
                detail=error.detail,
            )
            # What a login, or the lack of one, has to do with is this user's matter alone.
            own = record.sealed is not None or isinstance(error, RegistryDenied | ImageNotFound)
            return Failed(attempt.stage, error.what, error.remedy, error.retryable, own=own)
        except Exception:  # noqa: BLE001 - one record's surprise must not end the worker
            self._log.failure("attempt {n} at {claim}", n=record.attempt, claim=record.claim)
            unknown = GatewayError("The gateway met a fault of its own.")
            return Failed(attempt.stage, unknown.what, unknown.remedy, retryable=False)
        finally:
            await attempt.release()

    async def _pull(self, attempt: Attempt) -> Ready:
        record = attempt.record
        if record.attempt > MAX_ATTEMPTS:
            raise WorkerLost(f"{MAX_ATTEMPTS} workers died on this image, one after the other.")
        target = self._targets[record.system]
        reference = ImageReference.parse(record.pulltag or "")
        login = self._login(record)
        current = await self._store.find(record.system, record.itype, [str(reference)])
        if current is not None and await self._is_unchanged(current, reference, login, attempt):
            return await self._refresh(attempt, target, current, private=bool(current.private))

        image, config = await self._pipeline.resolve(reference, target.platform, login, attempt)
        for known in await self._store.find_id(record.system, image.id):
            if _same_place(known, image) and await self._is_delivered(known, target):
                return await self._refresh(attempt, target, known, private=image.private)
        await self._preflight(image, target)
        layers = await self._pipeline.fetch(image, config, login, attempt)
        async with self._pipeline.build(image, config, layers, target.options, attempt) as built:
            return await self._deliver(attempt, target, image, config, built)

    def _login(self, record: ImageRecord) -> Login | None:
        if record.sealed is None:
            return None
        return Login.parse(self._seal.open(record.sealed, record.claim or ""))

    async def _is_unchanged(
        self,
        current: ImageRecord,
        reference: ImageReference,
        login: Login | None,
        attempt: Attempt,
    ) -> bool:
        """Ask the registry, in one request, whether the READY image is still what the tag means.

        The original stored the digest of the index as the id, and nothing of its origin.
        """
        attempt.entered(State.PULLING, "Getting manifest")
        digest = await self._pipeline.head(reference, login, attempt)
        if digest is None:
            return False
        stored = current.origin.source_digest if current.origin else f"sha256:{current.id}"
        target = self._targets[current.system]
        return digest == stored and await self._is_delivered(current, target)

    @staticmethod
    async def _is_delivered(record: ImageRecord, target: Target) -> bool:
        """Say whether the files of a READY record lie in the image directory as recorded."""
        image = await target.directory.exists(f"{record.id}.squashfs")
        meta = await target.directory.exists(f"{record.id}.meta")
        return (
            image is not None
            and meta is not None
            and (record.size is None or record.size == image.size)
        )

    async def _preflight(self, image: ResolvedImage, target: Target) -> None:
        """Refuse early what surely does not fit, here or where it is to go.

        As in `ImageBuilder.check_space`, half of the layers' size is asked for.
        """
        await self._pipeline.check_space(image)
        free = await target.directory.free_space()
        if free < image.download_size // 2:
            raise NoSpace(
                f"The image needs about {image.download_size} bytes and the system's image"
                f" directory has {free} left."
            )

    async def _refresh(
        self, attempt: Attempt, target: Target, known: ImageRecord, *, private: bool
    ) -> Ready:
        """End a pull whose image is there: nothing to download, metadata only if the ACL moved."""
        assert known.id is not None
        changes = self._access(attempt.record, known, private=private)
        acl = (known.private or False, known.user_acl or (), known.group_acl or ())
        if (changes["private"], changes["user_acl"], changes["group_acl"]) != acl:
            attempt.entered(State.TRANSFER, "Transferring metadata")
            await attempt.lease(target.name, known.id)
            await self._install_meta(attempt, target, known.id, replace(known, **changes))
        return Ready(known.id, {**changes, "expiration": self._expiration()})

    async def _deliver(
        self,
        attempt: Attempt,
        target: Target,
        image: ResolvedImage,
        config: ImageConfig,
        built: BuiltImage,
    ) -> Ready:
        """Put the image, then its metadata, into the image directory; return the new record."""
        attempt.entered(State.TRANSFER, "Transferring image")
        await attempt.lease(target.name, image.id)
        await attempt.confirm()
        await target.directory.install(
            built.path, f"{image.id}.squashfs", built.sha256, attempt.report
        )
        readers = await self._store.find_id(attempt.record.system, image.id)
        changes = {
            **self._access(attempt.record, readers[0] if readers else None, private=image.private),
            "format": "squashfs",
            "arch": config.architecture or target.platform.architecture,
            "os": config.os or target.platform.os,
            "location": image.location,
            "remotetype": "dockerv2",
            "ostcount": "0",
            "replication": "1",
            "env": config.env,
            "entry": config.entrypoint or None,
            "cmd": config.cmd or None,
            "workdir": config.workdir or None,
            "origin": Origin(
                image.location, image.repository, str(image.source_digest), image.private
            ),
            "size": built.size,
            "sha256": built.sha256,
            "options": target.options.key,
            "requested_by": attempt.record.requested_by,
            "expiration": self._expiration(),
        }
        record = replace(attempt.record, **changes)
        attempt.entered(State.TRANSFER, "Transferring metadata")
        dropped = await self._install_meta(attempt, target, image.id, record)
        changes["report"] = {**built.report.to_document(), "metadata": list(dropped)}
        return Ready(image.id, changes)

    async def _install_meta(
        self, attempt: Attempt, target: Target, image_id: str, record: ImageRecord
    ) -> tuple[str, ...]:
        """Deliver the metadata of a record; return what of it could not be written."""
        meta = write_meta(
            env=record.env or (),
            entry=record.entry or (),
            cmd=record.cmd or (),
            workdir=record.workdir or "",
            private=bool(record.private),
            user_acl=record.user_acl or (),
            group_acl=record.group_acl or (),
        )
        await attempt.confirm()
        await target.directory.write(meta.content, f"{image_id}.meta")
        return meta.dropped

    def _access(
        self, record: ImageRecord, known: ImageRecord | None, *, private: bool
    ) -> dict[str, Any]:
        """Return who may read the image after this pull.

        A public image has no ACL, and stays public. A private one is its puller's and of those he
        names; whoever was let in before stays.
        """
        if not private or (known is not None and not known.private):
            return {"private": False, "user_acl": (), "group_acl": ()}
        users = [*((known.user_acl or ()) if known else ()), *(record.user_acl or ())]
        groups = [*((known.group_acl or ()) if known else ()), *(record.group_acl or ())]
        if record.requested_by is not None:
            users.append(record.requested_by)
        return {
            "private": True,
            "user_acl": tuple(dict.fromkeys(users)),
            "group_acl": tuple(dict.fromkeys(groups)),
        }

    def _expiration(self) -> float | None:
        timeout = self._config.image_expiration_timeout
        return None if timeout is None else self._clock.seconds() + timeout


def _same_place(known: ImageRecord, image: ResolvedImage) -> bool:
    """Say whether a delivered image may be taken for a resolved one without its bytes.

    A public one always. A private one only for a caller who has just read the manifest where it
    came from: a copy of the manifest elsewhere proves nothing.
    """
    if not known.private:
        return True
    origin = known.origin
    return origin is not None and (origin.location, origin.repository) == (
        image.location,
        image.repository,
    )
