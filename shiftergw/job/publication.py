"""Write the metadata and the access list of an image, and describe it in its new record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from shiftergw.config import Config
from shiftergw.errors import NotStorable, Unavailable
from shiftergw.job.attempt import Attempt
from shiftergw.job.targets import FILE_FACTS, Target
from shiftergw.model.images import ImageConfig, ResolvedImage
from shiftergw.model.records import ImageRecord, Origin, Ready
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.plumbing.retry import retry_while_unavailable
from shiftergw.ports import ImageStore
from shiftergw.rules import access
from shiftergw.rules.access import Access
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")


_IMAGE_FACTS = (
    "format", "arch", "os", "location", "remotetype", "replication", "env", "entry", "cmd",
    "workdir", "labels", "origin", *FILE_FACTS,
)  # fmt: skip
"""Members of a record that depend on the image and its file only, not on its tags or its users."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The image that a reference means, and the verdict of the system's policy on it.

    `config` is what its record stores of `image_config`, and `omissions` names settings that it
    cannot store. Without a policy there is no verdict.
    """

    image: ResolvedImage
    image_config: ImageConfig
    config: ImageConfig
    omissions: tuple[str, ...]
    verdict: PolicyVerdict | None = None

    def facts(self, target: Target) -> dict[str, Any]:
        """Return the members of a record that describe the image itself."""
        image, config = self.image, self.config
        return {
            "format": "squashfs",
            "arch": config.architecture or target.platform.architecture,
            "os": config.os or target.platform.os,
            "location": image.location,
            "remotetype": image.source_kind,
            "ostcount": str(target.ost_count),
            "replication": "1",
            "env": config.env,
            "entry": config.entrypoint or None,
            "cmd": config.cmd or None,
            "workdir": config.workdir or None,
            "origin": Origin(
                image.location, image.repository, str(image.source_digest), image.private
            ),
        }


def facts_of(record: ImageRecord) -> dict[str, Any]:
    """Return what a record says of its image and file, without its tags and users."""
    facts = {name: getattr(record, name) for name in _IMAGE_FACTS}
    return {name: fact for name, fact in facts.items() if fact is not None}


class Publisher:
    """Publishes images: their metadata, the access lists of all records of a file, new records."""

    def __init__(self, config: Config, store: ImageStore, clock: IReactorTime) -> None:
        """Publish in `store` by the rules of `config`."""
        self.store = store
        self._config = config
        self._clock = clock

    async def query(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a store query, retrying while the store is unavailable (at most a minute)."""
        return await retry_while_unavailable(lambda _: call(), self._clock, "a pull")

    async def records_of(
        self, target: Target, image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """Return the READY records of an image's files, of all systems that share the directory.

        With `expiring`, also returns records whose files a worker is about to remove.
        """
        return await self.query(
            lambda: self.store.find_id(target.systems, image_id, expiring=expiring)
        )

    def access_after_pull(
        self,
        request: ImageRecord,
        ready: ImageRecord | None,
        previous: ImageRecord | None,
        records: Sequence[ImageRecord],
        *,
        private: bool,
    ) -> tuple[Access, int | None]:
        """Return who may read the image after a pull, and its puller of record.

        See `rules.access.after_upload` for files of users, whose `records` count; and else
        `after_pull`, which gets the site's rule for private images without a list.
        """
        if request.upload is not None:
            return access.after_upload(request, records)
        without_acl = self._config.private_images_without_acl
        return access.after_pull(request, ready, previous, private=private, without_acl=without_acl)

    async def write_metadata(
        self,
        attempt: Attempt,
        target: Target,
        record: ImageRecord,
        readers: Access,
        previous: ImageRecord | None,
    ) -> None:
        """Give an image's readers access to its files, and write them into all its records.

        The access of the image file comes first, then the `.meta` file, then the records: after a
        crash in between, the next attempt repeats all of it. While the store is unavailable, it is
        retried. Whenever the store fails after the files were changed, they are put back to those
        of `previous`, if any, because files and records must agree. Raises `Unavailable` in the
        end, and `NotStorable` at once.
        """
        assert record.id is not None
        attempt.enter_stage(State.TRANSFER, "Transferring metadata")
        content = target.meta_of(replace(record, **asdict(readers))).content
        await self.query(
            lambda: self._write(attempt, target, record.id or "", content, readers, previous)
        )

    async def _write(
        self,
        attempt: Attempt,
        target: Target,
        image_id: str,
        content: bytes,
        readers: Access,
        previous: ImageRecord | None,
    ) -> None:
        name = f"{image_id}.meta"
        await attempt.confirm()
        await target.set_access(image_id, readers)
        await target.directory.write(content, name)
        try:
            await self.store.set_access(
                target.systems, image_id, readers.private, readers.user_acl, readers.group_acl
            )
        except (Unavailable, NotStorable):
            if previous is not None:
                await target.directory.write(target.meta_of(previous).content, name)
                await target.set_access(image_id, Access.from_record(previous))
            raise

    def ready(
        self,
        target: Target,
        image_id: str,
        facts: Mapping[str, Any],
        readers: Access,
        puller: int | None,
        resolution: Resolution | None,
        verdict: PolicyVerdict | None = None,
    ) -> Ready:
        """Return the outcome of a successful pull: the content of the READY record.

        `verdict` is that of the system's policy, if it has one. The labels come from `resolution`,
        if the pull has read it and the site stores labels.
        """
        now, timeout = self._clock.seconds(), self._config.image_expiration_timeout
        changes = {
            **facts,
            **asdict(readers),
            "requested_by": puller,
            "expiration": None if timeout is None else now + timeout,
        }
        if verdict is not None:
            changes["verdict"] = verdict.to_document()
        if resolution is not None and self._config.enable_labels:
            changes["labels"] = resolution.config.labels
        return Ready(image_id, changes, now + self._config.keep_untagged, target.name)
