"""Wire what the gateway has for files of users: the spool of uploads, and imports."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.application.service import Service

from shiftergw.app.preparation import Preparation
from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.config import Config
from shiftergw.errors import Unavailable
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.rounds import Rounds
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageStore
from shiftergw.service.housekeeping import INTERVAL
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import CHUNKS_PER_USER, Uploads
from shiftergw.service.user_files import UserFileServices
from shiftergw.service.worker_downloads import WorkerDownloads
from shiftergw.sources.user_files.imports import check_user
from shiftergw.sources.user_files.public_files import check_path, check_public_file

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


IMPORT_CHECKS = 2
"""Files to import that are looked at together: each look may hang with its file system."""

IMPORT_CHECK_SECONDS = 20.0
"""Seconds that a look at a file to import may take."""


def user_files(
    reactor: Reactor, config: Config, store: ImageStore, preparation: Preparation
) -> tuple[UserFileServices, list[Service]]:
    """Return what the gateway needs for files of users, and its services, to start in order."""
    threads = Threads(reactor, CHUNKS_PER_USER + 8 + IMPORT_CHECKS, "uploads")
    calls = BoundedThreadCalls(
        threads, IMPORT_CHECKS, IMPORT_CHECK_SECONDS, threads.clock, _no_answer
    )
    spool = UploadFiles(config.upload_directory, threads, reactor)
    limits = UploadLimits(
        config.max_upload_size, config.upload_quota, config.upload_space, config.upload_keep
    )
    uploads = Uploads(spool, store, limits, reactor)
    files = UserFileServices(
        uploads,
        WorkerDownloads(spool, preparation.seal, reactor),
        partial(check_import, config, calls),
    )
    return files, [threads, spool, Rounds(uploads.cleanup.tidy_up, reactor, INTERVAL, "uploads")]


async def check_import(config: Config, calls: BoundedThreadCalls, path: str, user: str) -> None:
    """Raise an error unless a worker may read the file at `path` for this user."""
    check_path(path)
    if config.import_command:
        check_user(user)
    else:
        await check_public_file(path, calls)


def _no_answer() -> Unavailable:
    return Unavailable(
        "The file system of the file to import does not answer.",
        remedy="Try again later, or upload the file with `shiftergw import FILE NAME`.",
    )
