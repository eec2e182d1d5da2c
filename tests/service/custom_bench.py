"""A gateway that takes uploads and imports."""

from __future__ import annotations

from typing import Any

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.errors import (
    GatewayError,
    ImageRefused,
)
from shiftergw.model.records import ImageRecord, Ready
from shiftergw.model.requests import Session
from shiftergw.model.uploads import UploadChoice, UploadDeclaration
from shiftergw.rules.access import tag_owners
from shiftergw.service.gateway import Gateway, GatewayOptions
from shiftergw.service.imports import ImportChoice
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import Uploads
from shiftergw.service.user_files import UserFileServices
from shiftergw.service.worker_downloads import WorkerDownloads
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.service.gateway_bench import (
    ALICE,
    ID,
    Bench,
)

PATH = "/data/x.squashfs"


class CustomBench(Bench):
    """A gateway with uploads.

    `refusal` is raised for every file that is imported, and `policy_refusal` for delivered images.
    """

    def __init__(self, store: SqliteStore, spool: UploadFiles, **changes: Any) -> None:
        """Configure the gateway with `changes`."""
        super().__init__(store, **changes)
        self.spool = spool
        self.refusal: GatewayError | None = None
        self.policy_refusal: ImageRefused | None = None
        self.checks: list[tuple[str, str]] = []
        files = UserFileServices(
            Uploads(spool, store, UploadLimits(), self.clock),
            WorkerDownloads(spool, lambda: self.seal, self.clock),
            self._check_file,
        )
        config = load_config({"FailureHold": 10, "PullUpdateTimeout": 300, **changes}).config
        self.gateway = Gateway(
            config,
            store,
            lambda: self.seal,
            self._wake,
            self.clock,
            self.queue,
            GatewayOptions(files, self._is_judged),
        )

    async def _is_judged(self, record: ImageRecord) -> bool:
        if self.policy_refusal is not None:
            raise self.policy_refusal
        return await super()._is_judged(record)

    async def _check_file(self, path: str, user: str) -> None:
        self.checks.append((path, user))
        if self.refusal is not None:
            raise self.refusal

    async def upload(self, session: Session = ALICE, content: bytes = b"0123456789") -> str:
        """Upload a file and return the id of the upload."""
        declaration = UploadDeclaration(
            session.system, session.uid, len(content), content[:1].hex() * 32, "sif"
        )
        upload = await self.gateway.files.uploads.declare(session, declaration)
        chunk = await self.gateway.files.uploads.receive(session, upload.id, 0, len(content))
        await chunk.write(content)
        await chunk.finish()
        return upload.id

    async def make(
        self, upload_id: str, session: Session = ALICE, name: str = "app:1", **members: Any
    ) -> Any:
        """Request an image of an upload."""
        users = members.pop("users", ())
        itype = members.pop("itype", "custom")
        choice = UploadChoice(upload_id, **members)
        return await self.gateway.pull(session, itype, name, users, (), "request", choice)

    async def import_file(
        self, session: Session = ALICE, path: str = PATH, name: str = "app:1", **members: Any
    ) -> Any:
        """Request to import a file."""
        users = members.pop("users", ())
        itype = members.pop("itype", "custom")
        choice = ImportChoice(path, members.pop("format", "squashfs"), **members)
        return await self.gateway.import_file(session, itype, name, users, (), "request", choice)

    async def finish(self, image_id: str = ID, uid: int = ALICE.uid) -> None:
        """End the work that waits longest as the worker does."""
        (waiting,) = await self.store.waiting(self.clock.seconds(), 1)
        assert waiting.upload is not None
        ready = next(iter(await self.store.find_id([waiting.system], image_id)), None)
        owners = tag_owners(waiting, ready)
        users = dict.fromkeys((*(waiting.user_acl or ()), uid, *owners.values()))
        acl = {"private": not waiting.upload.public, "user_acl": tuple(users), "group_acl": ()}
        changes = {"upload": waiting.upload, "requested_by": uid, "owners": owners, **acl}
        await self.end(Ready(image_id, changes))
