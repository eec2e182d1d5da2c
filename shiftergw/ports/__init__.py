"""Every seam of the program, as a `Protocol` with its contract.

Methods are coroutines unless they only look at memory. Each raises classes of `shiftergw.errors`
alone; adapters translate what their drivers raise. Twisted's types are named for the type checker
only. Times are seconds since 1970 and come in as arguments.
"""

from shiftergw.ports.images import (
    BlobCache,
    BlobSink,
    Download,
    ImageBuilder,
    ImageDirectory,
    ImageSource,
    InstalledFile,
    Layer,
    Report,
    Say,
    Swept,
    Verification,
)
from shiftergw.ports.people import (
    CREDENTIAL_SECONDS,
    Authenticator,
    Unproved,
    UsedCredentials,
    UserDirectory,
)
from shiftergw.ports.queue import JobEnd, JobQueue, QueueTrouble, runner_name
from shiftergw.ports.store import BreakerStore, ImageStore

__all__ = [
    "CREDENTIAL_SECONDS",
    "Authenticator",
    "BlobCache",
    "BlobSink",
    "BreakerStore",
    "Download",
    "ImageBuilder",
    "ImageDirectory",
    "ImageSource",
    "ImageStore",
    "InstalledFile",
    "JobEnd",
    "JobQueue",
    "Layer",
    "QueueTrouble",
    "Report",
    "Say",
    "Swept",
    "Unproved",
    "UsedCredentials",
    "UserDirectory",
    "Verification",
    "runner_name",
]
