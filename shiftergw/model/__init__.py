"""What the gateway says about requests: references, sessions, records, progress.

Everything is parsed once, at the door; inside, only these frozen values travel.
"""

from shiftergw.model.postponement import Breaker, Postponed, PostponeLimits, WaitLimits
from shiftergw.model.records import (
    MEMBERS,
    NOTICE_LIMIT,
    Expired,
    Failed,
    ImageRecord,
    Origin,
    Progress,
    Ready,
    WorkerMachine,
    document_of,
)
from shiftergw.model.references import REFERENCE_LIMIT, ImageReference
from shiftergw.model.requests import (
    ANONYMOUS,
    IMAGE_TYPES,
    PullRequest,
    QueueLimits,
    RegistryLogin,
    Session,
)

__all__ = [
    "ANONYMOUS",
    "IMAGE_TYPES",
    "MEMBERS",
    "NOTICE_LIMIT",
    "REFERENCE_LIMIT",
    "Breaker",
    "Expired",
    "Failed",
    "ImageRecord",
    "ImageReference",
    "Origin",
    "PostponeLimits",
    "Postponed",
    "Progress",
    "PullRequest",
    "QueueLimits",
    "Ready",
    "RegistryLogin",
    "Session",
    "WaitLimits",
    "WorkerMachine",
    "document_of",
]
