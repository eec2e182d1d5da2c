"""Convert the image of a pull, and put it into the image directory of its system."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import DeliveryFailed, GatewayError, NoSpace, Unavailable, stage_timeout
from shiftergw.job.attempt import Attempt
from shiftergw.job.delta import Deltas, may_use_base
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.publication import Publisher, Resolution
from shiftergw.job.targets import Target
from shiftergw.model.images import BuiltImage, ResolvedImage
from shiftergw.model.layer_texts import layers_text
from shiftergw.model.records import ImageRecord, Progress, Ready
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.plumbing.timing import within
from shiftergw.ports import Verification
from shiftergw.rules import access
from shiftergw.rules.time_left import REPORTS, learn_costs
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

REMOTE_CHECK = "remote-check"
"""The step in which a delivered file is compared on its system, which is part of the delivery."""


_MESSAGES = {
    "deliver": "Transferring image",
    "compare": "Comparing the image on the system",
}
"""The message for the user in each stage of `ImageDirectory.install`."""


@dataclass(frozen=True, slots=True)
class PullJob:
    """One pull: its attempt, the image directory it delivers to, and what the user asks for.

    `verdict` is that of the system's policy, if it is known without the registry.
    """

    attempt: Attempt
    target: Target
    pipeline: Pipeline
    reference: ImageReference
    login: RegistryLogin | None
    verdict: PolicyVerdict | None = None


class Installation:
    """Builds and delivers the images of pulls that cannot reuse a delivered file."""

    _log = Logger()

    def __init__(self, config: Config, publisher: Publisher, clock: IReactorTime) -> None:
        """Deliver within the limits of `config`; `publisher` publishes what was delivered."""
        self._config = config
        self._publisher = publisher
        self._clock = clock
        self._deltas = Deltas(publisher.store, clock)

    async def build(
        self, job: PullJob, resolution: Resolution, tag_record: ImageRecord | None
    ) -> Ready:
        """Download and convert the image, then deliver it."""
        image, target = resolution.image, job.target
        await job.pipeline.check_space(image, target.options)
        await target.check_space(image)
        await self._learn(job, image)
        async with job.pipeline.convert(
            image, resolution.image_config, job.login, target.options, job.attempt
        ) as squashfs:
            job.attempt.timeline.steps = squashfs.seconds
            return await self._deliver(job, resolution, squashfs, tag_record)

    async def _learn(self, job: PullJob, image: ResolvedImage) -> None:
        """Prepare the estimate of the time left; skip that while the store is unavailable."""
        try:
            reports = await self._publisher.store.reports(job.attempt.record.system, REPORTS)
        except Unavailable:
            return
        job.attempt.estimate.learn(learn_costs(reports), image.download_size)

    async def _deliver(
        self,
        job: PullJob,
        resolution: Resolution,
        squashfs: BuiltImage,
        tag_record: ImageRecord | None,
    ) -> Ready:
        """Put the image, then its metadata, into the image directory; return the new record."""
        attempt, target, image = job.attempt, job.target, resolution.image
        attempt.enter_stage(State.TRANSFER, _MESSAGES["deliver"])
        # The system may be down since the conversion began; the next attempt finds the built file.
        await target.directory.reach()
        await attempt.lease(target.name, image.id)
        await attempt.confirm()
        verification, progress = await self._install(job, image.id, squashfs)
        if verification.seconds:
            seconds = {REMOTE_CHECK: verification.seconds}
            attempt.timeline.steps = {**attempt.timeline.steps, **seconds}
        file = await target.directory.exists(f"{image.id}.squashfs")
        records = await self._publisher.records_of(target, image.id, expiring=True)
        ready = records[0] if records else None
        if tag_record is not None and _is_of_another_repository(tag_record, image):
            tag_record = None  # its readers do not count
        readers, puller = self._publisher.access_after_pull(
            attempt.record, ready, tag_record, records, private=image.private
        )
        facts = {
            **resolution.facts(target),
            "size": squashfs.size,
            "sha256": squashfs.sha256,
            "modified": file.modified if file is not None else None,
            "options": target.options.key,
        }
        record = replace(attempt.record, id=image.id, **facts)
        try:
            await target.set_access(image.id, readers)
        except DeliveryFailed:
            if not records:  # nothing refers to the file
                await target.directory.remove(f"{image.id}.squashfs")
            raise
        await self._publisher.write_metadata(attempt, target, record, readers, ready)
        if resolution.omissions:
            self._log.warn(
                "attempt {n} at {claim}: left out of the image's metadata: {names}",
                n=attempt.record.attempt,
                claim=attempt.record.claim,
                names=", ".join(resolution.omissions),
            )
        await self._deltas.record(image.id, squashfs)
        facts["report"] = _report(attempt, resolution, squashfs, verification, progress)
        return self._publisher.ready(
            target, image.id, facts, readers, puller, resolution, resolution.verdict
        )

    async def _install(
        self, job: PullJob, image_id: str, squashfs: BuiltImage
    ) -> tuple[Verification, Progress]:
        """Put the image into the directory; return how it was compared, and what was sent."""
        attempt, target, size = job.attempt, job.target, squashfs.size
        seconds = self._config.stage_limits.transfer
        name = f"{image_id}.squashfs"
        delta = None
        if may_use_base(attempt.record):
            delta = await self._deltas.find(target, image_id, squashfs)
        progress = Progress()
        last_report = Progress("deliver", 0, size)

        def report(latest_progress: Progress) -> None:
            nonlocal progress, last_report
            if latest_progress.stage != last_report.stage:
                attempt.notify(_MESSAGES[latest_progress.stage])
            last_report = latest_progress
            if latest_progress.stage == "deliver":
                progress = latest_progress
            attempt.report(latest_progress)

        attempt.report(last_report)
        try:
            verification = await within(
                seconds,
                self._clock,
                target.directory.install(squashfs.path, name, squashfs.sha256, report, delta),
                partial(stage_timeout, "Transferring", seconds, "transfer"),
            )
        except NoSpace:
            raise  # it says nothing of the base
        except (CancelledError, GatewayError):
            if delta is not None:
                self._deltas.avoid(target, delta.name)
            raise
        if delta is not None and progress.done and not progress.copied_bytes:
            self._deltas.avoid(target, delta.name)  # the whole file was sent, perhaps after a wait
        # A hard link has reported nothing.
        attempt.report(replace(last_report, done=size, total=size))
        attempt.timeline.sent_bytes = progress.done - progress.copied_bytes
        return verification, progress


def _is_of_another_repository(tag_record: ImageRecord, image: ResolvedImage) -> bool:
    """Return whether the tag meant an image of another repository until now."""
    return tag_record.origin is not None and not access.is_origin_of(tag_record.origin, image)


def _report(
    attempt: Attempt,
    resolution: Resolution,
    squashfs: BuiltImage,
    verification: Verification,
    progress: Progress,
) -> dict[str, Any]:
    """Return what the record tells of its conversion and delivery.

    `progress` is the last one of the delivery. A hard link has neither copied nor sent bytes.
    """
    timeline, layers = attempt.timeline, resolution.image.layers
    return {
        **squashfs.report.to_document(),
        "layers": layers_text(layers),
        "layer_count": len(layers),
        "layer_bytes": resolution.image.download_size,
        "metadata": list(resolution.omissions),
        "verification": {"method": verification.method, "reason": verification.reason},
        "copied_bytes": progress.copied_bytes,
        "sent_bytes": progress.done - progress.copied_bytes,
        "seconds": {stage: round(seconds, 2) for stage, seconds in timeline.seconds().items()},
        "steps": {step: round(seconds, 2) for step, seconds in timeline.steps.items()},
    }
