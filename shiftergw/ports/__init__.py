"""All seams of the program, each as a `Protocol` that states the contract.

A method is a coroutine unless it only reads memory. Methods raise no exceptions but the classes of
`shiftergw.errors`: adapters translate the errors of their drivers. Twisted's types are imported for
the type checker only. Times are arguments, in seconds since 1970.
"""

from shiftergw.ports.breakers import BreakerStore
from shiftergw.ports.explanations import Explainer
from shiftergw.ports.image_directories import (
    DeltaSource,
    FileAccess,
    ImageDirectory,
    InstalledFile,
    SharedRange,
    Verification,
)
from shiftergw.ports.images import (
    BlobCache,
    BlobSink,
    Download,
    ImageBuilder,
    ImageSource,
    Layer,
    Notify,
    Report,
    Scrubbable,
    Sweepable,
)
from shiftergw.ports.leases import LeaseStore
from shiftergw.ports.login_checks import LoginChecker
from shiftergw.ports.lookups import LookupStore
from shiftergw.ports.metrics import NO_METRICS, Metrics
from shiftergw.ports.people import (
    CREDENTIAL_SECONDS,
    Authenticator,
    GroupDirectory,
    ReplayUnchecked,
    UsedCredentials,
    UserDirectory,
)
from shiftergw.ports.queue import JobEnd, JobQueue, QueueTrouble, runner_name
from shiftergw.ports.ranges import DeltaBase, RangeStore
from shiftergw.ports.signatures import SignatureSource, SignatureVerifier
from shiftergw.ports.store import ImageStore
from shiftergw.ports.uploads import UploadSpool, UploadWriter

__all__ = [
    "CREDENTIAL_SECONDS",
    "NO_METRICS",
    "Authenticator",
    "BlobCache",
    "BlobSink",
    "BreakerStore",
    "DeltaBase",
    "DeltaSource",
    "Download",
    "Explainer",
    "FileAccess",
    "GroupDirectory",
    "ImageBuilder",
    "ImageDirectory",
    "ImageSource",
    "ImageStore",
    "InstalledFile",
    "JobEnd",
    "JobQueue",
    "Layer",
    "LeaseStore",
    "LoginChecker",
    "LookupStore",
    "Metrics",
    "Notify",
    "QueueTrouble",
    "RangeStore",
    "ReplayUnchecked",
    "Report",
    "Scrubbable",
    "SharedRange",
    "SignatureSource",
    "SignatureVerifier",
    "Sweepable",
    "UploadSpool",
    "UploadWriter",
    "UsedCredentials",
    "UserDirectory",
    "Verification",
    "runner_name",
]
