"""The work of kinds pull and acl: from a reference to a delivered image that its readers may use.

The pipeline makes the file; here stand the rules around it: what is current already, who may read
the result, in which order the files appear, and what the record says in the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import ImageBlocked, NoSpace, NotStorable, Unavailable, amount, too_slow
from shiftergw.image import BuiltImage, ImageConfig, ResolvedImage
from shiftergw.job.attempt import Attempt
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.recordable import recordable
from shiftergw.job.targets import FILE_FACTS, Target
from shiftergw.model import ImageRecord, ImageReference, Login, Origin, Ready
from shiftergw.plumbing.patience import patiently
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore
from shiftergw.rules import access
from shiftergw.rules.access import Access
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

_FACTS = (
    "format", "arch", "os", "location", "remotetype", "replication", "env", "entry", "cmd",
    "workdir", "labels", "origin", *FILE_FACTS,
)  # fmt: skip
"""What a record says of an image whoever pulled it, under whichever tag."""


class Pull:
    """Brings one image at a time to where its system looks for it."""

    _log = Logger()

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        pipeline: Pipeline,
        targets: Mapping[str, Target],
        seal: Seal,
        clock: IReactorTime,
    ) -> None:
        """Serve `targets` (system name → target)."""
        self._config = config
        self._store = store
        self._pipeline = pipeline
        self._targets = targets
        self._seal = seal
        self._clock = clock

    async def run(self, attempt: Attempt) -> Ready:
        """Do the work of a record to its good end, or raise why not.

        The attempt's lease on the files is still held then: until the store knows of the end,
        nobody else must touch them.
        """
        record = attempt.record
        target = self._targets[record.system]
        await target.directory.reach()  # while the system is away the registry is not asked either
        reference = ImageReference.parse(record.pulltag or "")
        login = self._login(record)
        current = await self._stored(
            lambda: self._store.find(record.system, record.itype, [str(reference)])
        )
        lost: set[str] = set()
        if current is not None and (
            access.is_about_readers(record, current)
            or (
                not self._lacks_labels(current)
                and await self._is_unchanged(current, reference, login, attempt)
            )
        ):
            ready = await self._reuse(attempt, target, current, lost)
            if ready is not None:
                return ready

        image, config = await self._pipeline.resolve(reference, target.platform, login, attempt)
        if not self._config.enable_labels:
            config = replace(config, labels={})
        config, omitted = recordable(config, self._config.max_record_size)
        await self._check_allowed(image, target)
        proven = False
        for known in await self._held(target, image.id):
            if image.id in lost:
                break
            if not proven and _wants_proof(record, known, image):
                await self._pipeline.prove(image, login, attempt)
                proven = True
            if access.may_skip_bytes(record, known, image, proven=proven):
                resolved = image, config
                ready = await self._reuse(attempt, target, known, lost, resolved, proven=proven)
                if ready is not None:
                    return self._labelled(ready, config)
        await self._check_space(image, target)
        options = target.options
        async with self._pipeline.convert(image, config, login, options, attempt) as built:
            return await self._deliver(attempt, target, current, image, config, built, omitted)

    async def _stored(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what the store says; one that is away for a moment ends no pull."""
        return await patiently(lambda _: ask(), self._clock, "a pull")

    async def _held(
        self, target: Target, image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """Return the records of an image where the target's files are."""
        return await self._stored(
            lambda: self._store.find_id(target.systems, image_id, expiring=expiring)
        )

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

        Not for a private image and a user who is not among its readers: what he must show first is
        more than that the manifest is there. The original stored the digest of the index as the id,
        and nothing of its origin.
        """
        if current.is_private and not access.is_reader(attempt.record, current):
            return False
        attempt.entered(State.PULLING, "Getting manifest")
        digest = await self._pipeline.head(reference, login, attempt)
        stored = current.origin.source_digest if current.origin else f"sha256:{current.id}"
        return digest is not None and digest == stored

    async def _check_allowed(self, image: ResolvedImage, target: Target) -> None:
        ids = {image.id, image.source_digest.hex}
        if await self._stored(lambda: self._store.blocked(target.name, ids)):
            raise ImageBlocked("The admins of this system have taken this image down.")

    async def _check_space(self, image: ResolvedImage, target: Target) -> None:
        """Refuse early what surely does not fit, here or where it is to go.

        As in `ImageBuilder.check_space`, half of the layers' size is asked for.
        """
        await self._pipeline.check_space(image)
        free = await target.directory.free_space()
        if free < image.download_size // 2:
            raise NoSpace(
                f"The image needs about {amount(image.download_size)} and the system's image"
                f" directory has {amount(free)} left."
            )

    async def _reuse(
        self,
        attempt: Attempt,
        target: Target,
        known: ImageRecord,
        lost: set[str],
        resolved: tuple[ResolvedImage, ImageConfig] | None = None,
        *,
        proven: bool = False,
    ) -> Ready | None:
        """End a pull whose image is there: nothing to download, metadata only if it is to change.

        `resolved` is what a user has just read at the registry, `proven` that he may read its blobs
        there; None, that he did not ask. None is returned if the file is not there after all, or if
        he must read it there first: another may have removed or changed it before we held the
        lease. The id of a file that is not there is `lost` from then on.
        """
        assert known.id is not None
        image, config = resolved or (None, None)
        await attempt.lease(target.name, known.id)
        records = await self._held(target, known.id)
        held = _same(known, records)
        if held is None or not _is_trusted(attempt.record, held, image, proven=proven):
            await attempt.release()
            return None
        found = await target.found(held, records, attempt.say)
        if found is None:
            lost.add(known.id)
            await attempt.release()
            return None
        wanted_login = held.is_private if image is None else image.private
        readers, puller = self._readers(attempt.record, held, None, private=wanted_login)
        if readers != access.of(held) or not await target.describes(held):
            whole = await target.completed(held, config)
            if whole is None:  # the registry knows, and has not been asked
                await attempt.release()
                return None
            attempt.entered(State.TRANSFER, "Transferring metadata")
            wanted = _with(whole, readers)
            await self._stored(lambda: self._install_meta(attempt, target, wanted, whole))
        facts = {name: getattr(found, name) for name in _FACTS}
        known_facts = {name: fact for name, fact in facts.items() if fact is not None}
        return self._ready(target, known.id, known_facts, readers, puller)

    async def _deliver(
        self,
        attempt: Attempt,
        target: Target,
        current: ImageRecord | None,
        image: ResolvedImage,
        config: ImageConfig,
        built: BuiltImage,
        omitted: Sequence[str],
    ) -> Ready:
        """Put the image, then its metadata, into the image directory; return the new record."""
        attempt.entered(State.TRANSFER, "Transferring image")
        # Known since the conversion began, perhaps; the converted file stays for the next attempt.
        await target.directory.reach()
        await attempt.lease(target.name, image.id)
        await attempt.confirm()
        name = f"{image.id}.squashfs"
        seconds = self._config.stage_limits.transfer
        checked = await within(
            seconds,
            self._clock,
            target.directory.install(built.path, name, built.sha256, attempt.report),
            partial(too_slow, "Transferring", seconds, "transfer"),
        )
        there = await target.directory.exists(name)
        known = await self._held(target, image.id, expiring=True)
        held = _same(None, known)
        if current is not None and current.origin and not access.is_of(current.origin, image):
            current = None  # the tag means another place by now: its readers there are not asked
        readers, puller = self._readers(attempt.record, held, current, private=image.private)
        facts: dict[str, Any] = {
            "format": "squashfs",
            "arch": config.architecture or target.platform.architecture,
            "os": config.os or target.platform.os,
            "location": image.location,
            "remotetype": "dockerv2",
            "ostcount": str(target.ost_count),
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
            "modified": there.modified if there is not None else None,
            "options": target.options.key,
        }
        attempt.entered(State.TRANSFER, "Transferring metadata")
        delivered = _with(replace(attempt.record, id=image.id, **facts), readers)
        await self._stored(lambda: self._install_meta(attempt, target, delivered, held))
        if omitted:
            self._log.warn(
                "attempt {n} at {claim}: left out of the image's metadata: {names}",
                n=attempt.record.attempt,
                claim=attempt.record.claim,
                names=", ".join(omitted),
            )
        facts["report"] = {
            **built.report.to_document(),
            "metadata": list(omitted),
            "verification": asdict(checked),
        }
        return self._labelled(self._ready(target, image.id, facts, readers, puller), config)

    def _lacks_labels(self, current: ImageRecord) -> bool:
        """Say whether a READY image's labels are wanted, and were not when it was pulled.

        Those of the original gateway stay as they are: their ids tell too little of the image.
        """
        return self._config.enable_labels and current.origin is not None and current.labels is None

    def _labelled(self, ready: Ready, config: ImageConfig) -> Ready:
        """Return an outcome with the image's labels, if the site wants them."""
        if not self._config.enable_labels:
            return ready
        return replace(ready, changes={**ready.changes, "labels": config.labels})

    async def _install_meta(
        self, attempt: Attempt, target: Target, record: ImageRecord, held: ImageRecord | None
    ) -> None:
        """Deliver the metadata of a record, and say the same in all records of its files.

        In this order: should we die in between, this
        attempt's successor does both again. If the store is away then, the metadata goes back to
        what was `held`, since the two must not part, and all is to be done again.
        """
        assert record.id is not None
        meta = target.meta_of(record)
        await attempt.confirm()
        await target.directory.write(meta.content, f"{record.id}.meta")
        readers = access.of(record)
        try:
            await self._store.set_access(
                target.systems, record.id, readers.private, readers.user_acl, readers.group_acl
            )
        except (Unavailable, NotStorable):
            if held is not None:
                await target.directory.write(target.meta_of(held).content, f"{record.id}.meta")
            raise

    def _readers(
        self,
        record: ImageRecord,
        held: ImageRecord | None,
        previous: ImageRecord | None,
        *,
        private: bool,
    ) -> tuple[Access, int | None]:
        without_acl = self._config.private_images_without_acl
        return access.after_pull(record, held, previous, private=private, without_acl=without_acl)

    def _ready(
        self,
        target: Target,
        image_id: str,
        facts: Mapping[str, Any],
        readers: Access,
        puller: int | None,
    ) -> Ready:
        now, timeout = self._clock.seconds(), self._config.image_expiration_timeout
        changes = {
            **facts,
            **asdict(readers),
            "requested_by": puller,
            "expiration": None if timeout is None else now + timeout,
        }
        return Ready(image_id, changes, now + self._config.keep_untagged, target.name)


def _wants_proof(asker: ImageRecord, known: ImageRecord, image: ResolvedImage) -> bool:
    """Say whether the asker may have a private image once he has proven that he may read it."""
    return (
        known.is_private
        and access.is_of(known.origin, image)
        and not access.is_reader(asker, known)
    )


def _is_trusted(
    asker: ImageRecord, held: ImageRecord, image: ResolvedImage | None, *, proven: bool
) -> bool:
    """Say whether the asker may have an image by what he has shown, as it is held now."""
    if image is None:
        return access.may_skip_registry(asker, held)
    return access.may_skip_bytes(asker, held, image, proven=proven)


def _same(known: ImageRecord | None, records: Sequence[ImageRecord]) -> ImageRecord | None:
    """Return the record that was looked at as it is now, or another one of the same files."""
    for record in records:
        if known is not None and record.key == known.key:
            return record
    return records[0] if records else None


def _with(record: ImageRecord, readers: Access) -> ImageRecord:
    return replace(record, **asdict(readers))
