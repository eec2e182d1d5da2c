"""Frozen values of requests and work: references, sessions, records, progress.

Input is parsed into these values once, where it enters the program.
"""

from shiftergw.model.postponement import Breaker, PostponeLimits, Postponement, WaitLimits
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
    IDENTITY_TOKEN_USER,
    IMAGE_TYPES,
    PullRequest,
    QueueLimits,
    RegistryLogin,
    Session,
    UserAccount,
)
from shiftergw.model.source_names import LocalSourceName, SourceKind, parse_source
from shiftergw.model.uploads import (
    CHUNK_LIMIT,
    SELECTOR_LIMIT,
    SHA256,
    UPLOAD_ID,
    UPLOAD_KINDS,
    ImageFile,
    UploadChoice,
    UploadDeclaration,
    UserUpload,
    data_file,
    state_file,
)

__all__ = [
    "ANONYMOUS",
    "CHUNK_LIMIT",
    "IDENTITY_TOKEN_USER",
    "IMAGE_TYPES",
    "MEMBERS",
    "NOTICE_LIMIT",
    "REFERENCE_LIMIT",
    "SELECTOR_LIMIT",
    "SHA256",
    "UPLOAD_ID",
    "UPLOAD_KINDS",
    "Breaker",
    "Expired",
    "Failed",
    "ImageFile",
    "ImageRecord",
    "ImageReference",
    "LocalSourceName",
    "Origin",
    "PostponeLimits",
    "Postponement",
    "Progress",
    "PullRequest",
    "QueueLimits",
    "Ready",
    "RegistryLogin",
    "Session",
    "SourceKind",
    "UploadChoice",
    "UploadDeclaration",
    "UserAccount",
    "UserUpload",
    "WaitLimits",
    "WorkerMachine",
    "data_file",
    "document_of",
    "parse_source",
    "state_file",
]
