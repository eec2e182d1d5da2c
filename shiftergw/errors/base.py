"""The root of all errors, and the errors of requests, the configuration, and child processes."""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """A failure that this program understands and can explain."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    default_remedy: ClassVar[str] = "Tell the site's support; the gateway's log says more."

    def __init__(
        self,
        what: str,
        *,
        remedy: str | None = None,
        detail: str = "",
        retry_after: float | None = None,
    ) -> None:
        """Set the texts; `retry_after` is in seconds."""
        super().__init__(what)
        self.what = what
        self.remedy = self.default_remedy if remedy is None else remedy
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Return `what` and `remedy` on one line."""
        return f"{self.what} {self.remedy}".strip()

    def texts_for_users(self) -> tuple[str, str]:
        """Return `what` and `remedy` as the users of the gateway may read them."""
        return self.what, self.remedy


class BadRequest(GatewayError):
    """The request is malformed; the user must correct it."""

    http_status = 400
    code = "bad-request"
    default_remedy = "Correct the request."


class NotAuthenticated(GatewayError):
    """The credential is missing, wrong, expired or already used."""

    http_status = 401
    code = "not-authenticated"
    default_remedy = "Send a fresh credential."


class NotAllowed(GatewayError):
    """The user lacks the permission for this request."""

    http_status = 403
    code = "not-allowed"
    default_remedy = "Ask the site's support if you should be allowed to."


class NotFound(GatewayError):
    """The object does not exist, or the user must not learn that it exists."""

    http_status = 404
    code = "not-found"
    default_remedy = "Check the spelling; `shiftergw images` lists what is there."


class AmbiguousId(GatewayError):
    """The first digits of an image id stand for several images."""

    http_status = 409
    code = "ambiguous-id"
    default_remedy = "Write more digits of the id."


class TooLarge(GatewayError):
    """The request is larger than the gateway accepts."""

    http_status = 413
    code = "too-large"
    default_remedy = "Send less."


class TooSlow(GatewayError):
    """The request did not arrive completely within its time limit."""

    http_status = 408
    code = "too-slow"
    default_remedy = "Send the whole request at once."


class TooMany(GatewayError):
    """The queue, or the user's share of it, is full. Only new work is rejected."""

    http_status = 429
    code = "too-many"
    retryable = True
    default_remedy = "Try again later."


class Unavailable(GatewayError):
    """A service that the gateway needs is unavailable for the moment."""

    http_status = 503
    code = "unavailable"
    retryable = True
    default_remedy = "Try again in a moment."


class DatabaseBusy(Unavailable):
    """Another process holds the lock of the gateway's database."""

    code = "database-busy"


class DatabaseDamaged(Unavailable):
    """The gateway's database is corrupt, because a disk or memory has failed."""

    code = "database-damaged"
    retryable = False
    default_remedy = "Tell the site's support: the backup of the database must be restored."


class NoWorkers(Unavailable):
    """No worker process can be started."""

    code = "no-workers"
    default_remedy = "Tell the gateway's admins: its log says why."


class ConfigurationError(GatewayError):
    """The configuration or the machine does not meet the gateway's requirements."""

    code = "configuration"
    default_remedy = "Correct the configuration and start again."

    def texts_for_users(self) -> tuple[str, str]:
        """Return texts without keys and paths of the configuration, which are for its admins."""
        return "A setting of the gateway is wrong.", GatewayError.default_remedy


class PolicyInvalid(ConfigurationError):
    """The policy of a system cannot be read; until it can be, it refuses every image."""

    code = "policy-invalid"
    default_remedy = "Correct the policy; until then every image of the system is refused."


class Superseded(GatewayError):
    """A newer attempt has taken over this work; the old attempt stops silently."""

    http_status = 409
    code = "superseded"
    default_remedy = "Nothing: the newer attempt carries on."


class UploadConflict(GatewayError):
    """A chunk of an upload does not begin at the offset of the upload, or is being written.

    Attributes:
        offset: the offset in bytes at which the upload continues.

    """

    http_status = 409
    code = "upload-conflict"
    retryable = True
    default_remedy = "Continue the upload at the offset of this answer."

    def __init__(self, what: str, offset: int = 0, *, remedy: str | None = None) -> None:
        """Set the texts and the offset."""
        super().__init__(what, remedy=remedy)
        self.offset = offset


class ChildFailed(GatewayError):
    """A child process could not be started, exited with an error, or was killed."""

    code = "child-failed"

    def __init__(
        self, what: str, *, exit_code: int | None, signal: int | None, stderr: str
    ) -> None:
        """Exactly one of `exit_code` and `signal` is set if the child was started."""
        super().__init__(what, detail=stderr)
        self.exit_code = exit_code
        self.signal = signal


class TimedOut(GatewayError):
    """An operation exceeded its time limit."""

    http_status = 504
    code = "timed-out"
    retryable = True
