"""One tree of errors: each class knows its HTTP status, its wire word, and whether a retry helps.

An error carries three texts for three readers:

* `what`: one sentence for the user; it names no host path, no other user and no secret.
* `remedy`: what the reader can do about it.
* `detail`: for admins and the log only (a host, a path, the end of a tool's stderr).

Foreign text (a registry's message, a tool's stderr) goes through `printable` before it enters any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from shiftergw.states import WaitCause

FOREIGN_TEXT_LIMIT = 300
"""Characters of foreign text that an error repeats."""


def printable(text: str | bytes, limit: int = FOREIGN_TEXT_LIMIT) -> str:
    """Return foreign `text` as one printable line of at most `limit` characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if len(text) <= limit and text.isprintable():
        return text
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: 2 * limit])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def amount(count: int) -> str:
    """Return a number of bytes as people write it, such as `1.5 GB` (a GB is 10**9 bytes)."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if size < 999.95:  # noqa: PLR2004 - would be shown as 1000.0
            break
        size, unit = size / 1000, larger
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


_UNITS = (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))


def duration(seconds: float) -> str:
    """Return a time span in its largest unit: `45 seconds`, `15 minutes`, `1.5 hours`."""
    for unit, size in _UNITS:
        number = round(seconds / size, 1)
        if number >= 1 or size == 1:
            return f"{number:g} {unit}{'' if number == 1 else 's'}"
    raise AssertionError("seconds are the last unit")


class GatewayError(Exception):
    """Something that this program understands and can explain."""

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
        """Keep the texts; `retry_after` is in seconds."""
        super().__init__(what)
        self.what = what
        self.remedy = self.default_remedy if remedy is None else remedy
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Return what happened and what to do, on one line."""
        return f"{self.what} {self.remedy}".strip()


# What a request can do wrong.


class BadRequest(GatewayError):
    """The request cannot be understood: the requester's to mend."""

    http_status = 400
    code = "bad-request"
    default_remedy = "Correct the request."


class NotAuthenticated(GatewayError):
    """The credential is absent, wrong, expired or used."""

    http_status = 401
    code = "not-authenticated"
    default_remedy = "Send a fresh credential."


class NotAllowed(GatewayError):
    """This user may not do this."""

    http_status = 403
    code = "not-allowed"
    default_remedy = "Ask the site's support if you should be allowed to."


class NotFound(GatewayError):
    """There is no such thing, or this user may not know of it."""

    http_status = 404
    code = "not-found"
    default_remedy = "Check the spelling; `shiftergw images` lists what is there."


class TooLarge(GatewayError):
    """The request is larger than the gateway reads."""

    http_status = 413
    code = "too-large"
    default_remedy = "Send less."


class TooSlow(GatewayError):
    """The request did not come in within the time that it may take."""

    http_status = 408
    code = "too-slow"
    default_remedy = "Send the whole request at once."


class TooMany(GatewayError):
    """The queue, or this user's share of it, is full; new work only."""

    http_status = 429
    code = "too-many"
    retryable = True
    default_remedy = "Try again later."


class Unavailable(GatewayError):
    """Something that the gateway needs is away for the moment."""

    http_status = 503
    code = "unavailable"
    retryable = True
    default_remedy = "Try again in a moment."


class DatabaseBusy(Unavailable):
    """Another process keeps the gateway's database locked."""

    code = "database-busy"


class DatabaseDamaged(Unavailable):
    """The gateway's database holds bytes that are none of its own: a disk or memory has failed."""

    code = "database-damaged"
    retryable = False
    default_remedy = "Tell the site's support: the backup of the database must be restored."


class NoWorkers(Unavailable):
    """No worker process can start."""

    code = "no-workers"
    default_remedy = "Tell the gateway's admins: its log says why."


# What the operator must mend before the gateway runs.


class ConfigurationError(GatewayError):
    """The configuration, or the machine, is not as the gateway needs it."""

    code = "configuration"
    default_remedy = "Correct the configuration and start again."


# What can go wrong with one image: these become the cause of a FAILURE.


class PullError(GatewayError):
    """A pull that failed; the base of everything a worker reports."""

    code = "pull-failed"


class ImageNotFound(PullError):
    """The registry has no such repository, tag or digest."""

    http_status = 404
    code = "image-not-found"
    default_remedy = "Check the name and the tag of the image."


class RegistryDenied(PullError):
    """The registry refused: no login, a wrong one, or no permission."""

    http_status = 403
    code = "registry-denied"
    default_remedy = "Log in to the registry (`shiftergw login`), or check that you may read it."


class RegistryUnavailable(PullError):
    """The registry did not answer, or answered with an error, after all tries."""

    code = "registry-unavailable"
    retryable = True
    default_remedy = "Try again later; if it lasts, tell the site's support."


class RetryLater(PullError):
    """A pull has to wait for something outside; it has not failed yet.

    `at` is the time of the next try. `why` names the cause in a few words for the user, such as
    `ghcr.io (rate limit)`. `failure` is the error of the pull if it does not wait. `registry` is
    the registry whose `Retry-After` named the time, else "". A pull that has waited before may wait
    longer unless the time is `fixed`. `limit` is the number of seconds that a pull may wait for
    other pulls of this site. `system` is the system that does not answer, else "". Without both the
    pull waits for a registry. The limits on waits for registries and systems are in the
    configuration.
    """

    code = "retry-later"
    retryable = True

    def __init__(
        self,
        at: float,
        why: str,
        failure: PullError,
        *,
        registry: str = "",
        fixed: bool = False,
        limit: float | None = None,
        system: str = "",
    ) -> None:
        """Take the words of `failure` for the user."""
        super().__init__(failure.what, remedy=failure.remedy, detail=failure.detail)
        self.at = at
        self.why = why
        self.failure = failure
        self.registry = registry
        self.fixed = fixed
        self.limit = limit
        self.system = system

    @property
    def cause(self) -> WaitCause:
        """Return what the pull waits for."""
        if self.limit is not None:
            return "pull"
        return "system" if self.system else "registry"


class RegistryUntrusted(PullError):
    """The registry sent the gateway somewhere it must not go, or its certificate is not trusted."""

    code = "registry-untrusted"


class BlobCorrupt(PullError):
    """A blob or manifest has other bytes than its digest or size says."""

    code = "blob-corrupt"
    retryable = True
    default_remedy = "Try again; if it lasts, push the image once more."


class ManifestInvalid(PullError):
    """The manifest or configuration of the image is not what the OCI specification allows."""

    code = "manifest-invalid"
    default_remedy = "Build and push the image once more with a current tool."


class ImageBlocked(PullError):
    """An admin has taken this image down."""

    http_status = 403
    code = "image-blocked"
    default_remedy = "Use another version of the image, or ask the site's support why."


class NoMatchingPlatform(PullError):
    """The image has no variant for the system's architecture."""

    code = "no-matching-platform"
    default_remedy = "Ask for, or build, an image for this system's architecture."


class LayerInvalid(PullError):
    """A layer is not the archive it claims to be, or leaves the root."""

    code = "layer-invalid"
    default_remedy = "Build and push the image once more with a current tool."


class ImageTooLarge(PullError):
    """The image exceeds a limit of the configuration."""

    http_status = 413
    code = "image-too-large"
    default_remedy = "Make the image smaller, or ask the site to raise the limit."

    @classmethod
    def beyond(cls, what: str, key: str) -> Self:
        """Return the error of an image beyond the limit that `key` of the configuration sets."""
        return cls(
            what,
            remedy="Make the image smaller, or ask the gateway's admins to raise"
            f" `{key}` in its configuration.",
        )


class ConversionFailed(PullError):
    """`mksquashfs` failed, or its result is not what was planned."""

    code = "conversion-failed"


class NoSpace(PullError):
    """A disk of the gateway or of the system is full."""

    http_status = 507
    code = "no-space"
    retryable = True
    default_remedy = "Tell the site's support: a disk, or a quota, is full."


class DeliveryFailed(PullError):
    """The file could not be put into the image directory."""

    code = "delivery-failed"
    retryable = True


class WorkerLost(PullError):
    """The worker died again and again on this image."""

    code = "worker-lost"


class NotStorable(PullError):
    """The database does not take what the record of this image would say, however often it is told.

    It is too large, or holds a value that the database has not.
    """

    code = "not-storable"


class Superseded(GatewayError):
    """A newer attempt has taken this work over; the old one stops without a word."""

    http_status = 409
    code = "superseded"
    default_remedy = "Nothing: the newer attempt carries on."


# What plumbing reports; adapters translate these.


class ChildFailed(GatewayError):
    """A child process could not be started, exited with an error, or was killed."""

    code = "child-failed"

    def __init__(
        self, what: str, *, exit_code: int | None, signal: int | None, stderr: str
    ) -> None:
        """Exactly one of `exit_code` and `signal` is set once the child has run."""
        super().__init__(what, detail=stderr)
        self.exit_code = exit_code
        self.signal = signal


class TimedOut(GatewayError):
    """A wait reached its limit."""

    http_status = 504
    code = "timed-out"
    retryable = True


def too_slow(work: str, seconds: float, stage: str) -> TimedOut:
    """Return the error of a stage beyond the time that the configuration allows for it."""
    return TimedOut(
        f"{work} the image took longer than {duration(seconds)}.",
        remedy="Try again when registry and system are faster, or ask the gateway's admins to raise"
        f" `StageLimits.{stage}` in its configuration.",
    )
