"""Carry out a pull: deliver the image of a reference, or change a delivered image's access list.

`rules.pull` decides what a pull needs and `rules.access` who may read the result; the pipeline
makes the file. This module asks the registry and the store for what the decision depends on, and
then does what was decided; `job.installation` converts and delivers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from shiftergw.config import Config
from shiftergw.errors import ImageBlocked, ImageNotFound
from shiftergw.job.attempt import Attempt
from shiftergw.job.installation import Installation, PullJob
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.policy import ImagePolicies
from shiftergw.job.publication import Publisher, Resolution, facts_of
from shiftergw.job.recordable import recordable
from shiftergw.job.targets import Target
from shiftergw.model.records import ImageRecord, Ready
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import ImageSource, ImageStore, Notify, Report
from shiftergw.rules import access
from shiftergw.rules.access import Access
from shiftergw.rules.pull import (
    Build,
    Prove,
    Readers,
    Reuse,
    decide_from_manifest,
    decide_from_tag,
    should_ask_digest,
)
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class _Obstacle(Enum):
    """Why a delivered image cannot be reused after all, as seen under its lease."""

    ACCESS = auto()
    """The image has been removed, or the user has not proven access to it as it is now."""
    FILE = auto()
    """The file is not in the image directory as recorded."""
    SETTINGS = auto()
    """The metadata must be written, and only the registry has all of its settings."""


OpenFile = Callable[[ImageRecord, Notify, Report], AbstractAsyncContextManager[ImageSource]]
"""Opens the file of a record (`ImageRecord.upload`) as a source, for the time of the context.

The file is fetched, if necessary, and compared with its digest. The functions get what begins, and
the progress.
"""


class Pull:
    """Delivers images, one at a time, and changes their access lists."""

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        pipeline: Pipeline,
        policies: ImagePolicies,
        targets: Mapping[str, Target],
        seal: Seal,
        clock: IReactorTime,
        open_file: OpenFile,
    ) -> None:
        """Serve `targets` (system name → target); `open_file` opens uploads and imports."""
        self._config = config
        self._store = store
        self._publisher = Publisher(config, store, clock)
        self._installation = Installation(config, self._publisher, clock)
        self._pipeline = pipeline
        self._policies = policies
        self._targets = targets
        self._seal = seal
        self._clock = clock
        self._open_file = open_file

    async def run(self, attempt: Attempt) -> Ready:
        """Do the work of a record of kind pull or acl; return the content of its READY record.

        Raises a `GatewayError` if the pull fails, `Superseded` if another attempt has taken over.
        The attempt still holds the lease on the image's files at the end: nothing else may touch
        them until the store knows of the new record.
        """
        request = attempt.record
        target = self._targets[request.system]
        await target.directory.reach()  # before the registry is asked: the system may be down
        reference = ImageReference.parse(request.pulltag or "")
        job = PullJob(attempt, target, self._pipeline, reference, self._login(request))
        if request.upload is None:
            return await self._with_owners(job, await self._run(job))
        begin = partial(attempt.enter_stage, State.PULLING)
        async with self._open_file(request, begin, attempt.report) as source:
            ready = await self._run(replace(job, pipeline=self._pipeline.with_source(source)))
        # By this member the next poll knows that the image is that of its upload.
        ready = replace(ready, changes={**ready.changes, "upload": request.upload})
        return await self._with_owners(job, ready)

    async def _with_owners(self, job: PullJob, ready: Ready) -> Ready:
        """Add the owners of the tags to the outcome of a pull, if its image has the type custom."""
        request = job.attempt.record
        if request.itype != "custom":
            return ready
        records = await self._publisher.records_of(job.target, ready.id, expiring=True)
        own = (r for r in records if (r.system, r.itype) == (request.system, request.itype))
        owners = access.tag_owners(request, next(own, None))
        return replace(ready, changes={**ready.changes, "owners": owners})

    async def _run(self, job: PullJob) -> Ready:
        attempt, target, request = job.attempt, job.target, job.attempt.record
        tag_record = await self._publisher.query(
            lambda: self._store.find(request.system, request.itype, [str(job.reference)])
        )
        missing_id = None
        decision = decide_from_tag(request, tag_record, await self._digest_of_tag(job, tag_record))
        if isinstance(decision, Reuse) and self._policies.is_required(request.system):
            verdict = await self._policies.recall(request, job.reference, decision.ready)
            job = replace(job, verdict=verdict)
            decision = None if verdict is None else decision
        # A change of readers alone asks no policy: an owner may always exclude somebody.
        if isinstance(decision, Readers | Reuse):
            result = await self._reuse(job, decision.ready)
            if isinstance(result, Ready):
                return result
            if decision.ready.upload is not None and request.upload is None:
                raise _file_is_gone()
            if result is _Obstacle.FILE:
                missing_id = decision.ready.id

        resolution = await self._resolve(job)
        ready_records = await self._publisher.records_of(target, resolution.image.id)
        match decide_from_manifest(request, resolution.image, ready_records, missing_id):
            case Reuse(record):
                result = await self._reuse(job, record, resolution)
            case Prove(record):
                await job.pipeline.prove(resolution.image, job.login, attempt)
                result = await self._reuse(job, record, resolution, proven=True)
            case Build():
                return await self._installation.build(job, resolution, tag_record)
        if isinstance(result, Ready):
            return result
        return await self._installation.build(job, resolution, tag_record)

    def _login(self, request: ImageRecord) -> RegistryLogin | None:
        if request.sealed is None:
            return None
        return RegistryLogin.parse(self._seal.open(request.sealed, request.claim or ""))

    async def _digest_of_tag(self, job: PullJob, tag_record: ImageRecord | None) -> str | None:
        """Return the digest of the tag, by a HEAD request, or None if it decides nothing."""
        if not should_ask_digest(
            job.attempt.record, tag_record, stores_labels=self._config.enable_labels
        ):
            return None
        job.attempt.enter_stage(State.PULLING, "Getting manifest")
        return await job.pipeline.head(job.reference, job.login, job.attempt)

    async def _resolve(self, job: PullJob) -> Resolution:
        """Read the manifest and the configuration of the image, and ask the system's policy.

        Raises `ImageBlocked` if the system's admins have taken the image, or its index, down, and
        `ImageRefused` if the policy does not accept it.
        """
        target = job.target
        image, image_config = await job.pipeline.resolve(
            job.reference, target.platform, job.login, job.attempt
        )
        job.attempt.image_id = image.id
        config = image_config
        if not self._config.enable_labels:
            config = replace(config, labels={})
        config, omissions = recordable(config, self._config.max_record_size)
        ids = {image.id, image.source_digest.hex}
        if await self._publisher.query(lambda: self._store.is_blocked(target.name, ids)):
            raise ImageBlocked("The admins of this system have taken this image down.")
        verdict = await self._policies.check(job.attempt, job.reference, image, job.login)
        return Resolution(image, image_config, config, omissions, verdict)

    async def _reuse(
        self,
        job: PullJob,
        candidate: ImageRecord,
        resolution: Resolution | None = None,
        *,
        proven: bool = False,
    ) -> Ready | _Obstacle:
        """End a pull with the delivered file of `candidate`; write the metadata if it has changed.

        `resolution` is what this pull has read at the registry, if that was necessary; `proven`
        says that its user may also read the blobs there. Takes the lease on the image's files and
        reads their records again, since another job may have changed or removed the image while
        this one waited. Returns the obstacle, and gives the lease back, if the image cannot be
        reused.
        """
        assert candidate.id is not None
        await job.attempt.lease(job.target.name, candidate.id)
        result = await self._reuse_under_lease(job, candidate, candidate.id, resolution, proven)
        if isinstance(result, _Obstacle):
            await job.attempt.release()
        return result

    async def _reuse_under_lease(
        self,
        job: PullJob,
        candidate: ImageRecord,
        image_id: str,
        resolution: Resolution | None,
        proven: bool,
    ) -> Ready | _Obstacle:
        attempt, target, request = job.attempt, job.target, job.attempt.record
        records = await self._publisher.records_of(target, image_id)
        if not records:
            return _Obstacle.ACCESS
        ready = next((record for record in records if record.key == candidate.key), records[0])
        if resolution is None:
            may_reuse = access.may_skip_registry(request, ready)
            private = ready.is_private
        else:
            may_reuse = access.may_skip_download(request, ready, resolution.image, proven=proven)
            private = resolution.image.private
        if not may_reuse:
            return _Obstacle.ACCESS
        verified_record = await target.verify_file(ready, records, attempt.notify)
        if verified_record is None:
            return _Obstacle.FILE
        readers, puller = self._publisher.access_after_pull(
            request, ready, None, records, private=private
        )
        if not await target.set_access(image_id, readers):
            return _Obstacle.FILE
        if readers != Access.from_record(ready) or not await target.has_metadata_of(ready):
            config = None if resolution is None else resolution.config
            complete = await target.add_missing_settings(ready, config)
            if complete is None:
                return _Obstacle.SETTINGS
            await self._publisher.write_metadata(attempt, target, complete, readers, complete)
        facts = facts_of(verified_record)
        verdict = job.verdict if resolution is None else resolution.verdict
        return self._publisher.ready(target, image_id, facts, readers, puller, resolution, verdict)


def _file_is_gone() -> ImageNotFound:
    return ImageNotFound(
        "The image's file on the system is not as it was delivered, and the upload that it was"
        " made of is gone.",
        remedy="Upload the image again.",
    )
