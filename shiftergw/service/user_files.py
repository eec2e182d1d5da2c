"""What the gateway has to make images of files of users: uploads, and imports."""

from __future__ import annotations

from dataclasses import dataclass

from shiftergw.service.imports import CheckFile
from shiftergw.service.uploads import Uploads
from shiftergw.service.worker_downloads import WorkerDownloads


@dataclass(frozen=True, slots=True)
class UserFileServices:
    """The uploads of users, their way to worker machines, and the check of files to import."""

    uploads: Uploads
    downloads: WorkerDownloads
    check_file: CheckFile
