"""One tree of errors: each class has an HTTP status, a code for clients, and `retryable`.

An error carries three texts:

* `what`: one sentence for the user, without host paths, other users or secrets.
* `remedy`: what the reader can do about it.
* `detail`: for admins and the log only, such as a host, a path or the end of a tool's stderr.

Foreign text, such as a registry's message or a tool's stderr, passes through `printable` before it
becomes part of an error.
"""

from shiftergw.errors.base import (
    BadRequest,
    ChildFailed,
    ConfigurationError,
    DatabaseBusy,
    DatabaseDamaged,
    GatewayError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NoWorkers,
    PolicyInvalid,
    Superseded,
    TimedOut,
    TooLarge,
    TooMany,
    TooSlow,
    Unavailable,
    UploadConflict,
)
from shiftergw.errors.pulls import (
    BlobCorrupt,
    ConversionFailed,
    DeliveryFailed,
    ImageBlocked,
    ImageNotFound,
    ImageRefused,
    ImageTooLarge,
    LayerInvalid,
    ManifestInvalid,
    NoMatchingPlatform,
    NoSpace,
    NotStorable,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
    RetryLater,
    SourceUnreadable,
    SquashfsCorrupt,
    SquashfsUnsupported,
    WorkerLost,
    stage_timeout,
)
from shiftergw.errors.text import FOREIGN_TEXT_LIMIT, amount, duration, printable

__all__ = [
    "FOREIGN_TEXT_LIMIT",
    "BadRequest",
    "BlobCorrupt",
    "ChildFailed",
    "ConfigurationError",
    "ConversionFailed",
    "DatabaseBusy",
    "DatabaseDamaged",
    "DeliveryFailed",
    "GatewayError",
    "ImageBlocked",
    "ImageNotFound",
    "ImageRefused",
    "ImageTooLarge",
    "LayerInvalid",
    "ManifestInvalid",
    "NoMatchingPlatform",
    "NoSpace",
    "NoWorkers",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "NotStorable",
    "PolicyInvalid",
    "PullError",
    "RegistryDenied",
    "RegistryUnavailable",
    "RegistryUntrusted",
    "RetryLater",
    "SourceUnreadable",
    "SquashfsCorrupt",
    "SquashfsUnsupported",
    "Superseded",
    "TimedOut",
    "TooLarge",
    "TooMany",
    "TooSlow",
    "Unavailable",
    "UploadConflict",
    "WorkerLost",
    "amount",
    "duration",
    "printable",
    "stage_timeout",
]
