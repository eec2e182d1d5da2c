"""The errors of a pull: they become the cause of a FAILURE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from shiftergw.errors.base import GatewayError, TimedOut
from shiftergw.errors.text import duration

if TYPE_CHECKING:
    from shiftergw.states import WaitCause


class PullError(GatewayError):
    """A pull has failed. This is the base of all errors that a worker reports."""

    code = "pull-failed"


class ImageNotFound(PullError):
    """The registry has no such repository, tag or digest."""

    http_status = 404
    code = "image-not-found"
    default_remedy = "Check the name and the tag of the image."


class RegistryDenied(PullError):
    """The registry denied access: the login is missing or wrong, or lacks permission."""

    http_status = 403
    code = "registry-denied"
    default_remedy = "Log in to the registry (`shiftergw login`), or check that you may read it."


class RegistryUnavailable(PullError):
    """The registry did not respond, or responded with an error, to all attempts."""

    code = "registry-unavailable"
    retryable = True
    default_remedy = "Try again later; if it lasts, tell the site's support."


class RetryLater(PullError):
    """A pull has to wait for something outside; it has not failed yet.

    Attributes:
        at: the time of the next attempt, in seconds since 1970.
        why: the cause in a few words for the user, such as `ghcr.io (rate limit)`.
        failure: the error of the pull if it does not wait.
        registry: the registry whose `Retry-After` named the time, else "".
        is_fixed: whether the wait ends at that time; otherwise it may get longer with each wait.
        limit: the seconds that a pull may wait for other pulls of this site, else None.
        system: the system that does not respond, else "".

    Without `limit` and `system` the pull waits for a registry. The configuration has the limits on
    waits for registries and systems.

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
        is_fixed: bool = False,
        limit: float | None = None,
        system: str = "",
    ) -> None:
        """Use the texts of `failure`."""
        super().__init__(failure.what, remedy=failure.remedy, detail=failure.detail)
        self.at = at
        self.why = why
        self.failure = failure
        self.registry = registry
        self.is_fixed = is_fixed
        self.limit = limit
        self.system = system

    @property
    def cause(self) -> WaitCause:
        """Return what the pull waits for."""
        if self.limit is not None:
            return "pull"
        return "system" if self.system else "registry"


class RegistryUntrusted(PullError):
    """The registry redirects to a forbidden address, or its certificate is not trusted."""

    code = "registry-untrusted"


class SourceUnreadable(PullError):
    """A file or directory that has the image cannot be read."""

    code = "source-unreadable"
    default_remedy = "Check that the file may be read, and that its disk works."


class BlobCorrupt(PullError):
    """The bytes of a blob or manifest do not have its digest or size."""

    code = "blob-corrupt"
    retryable = True
    default_remedy = "Try again; if it lasts, push the image once more."


class PackCorrupt(BlobCorrupt):
    """A pack that stood for a layer is damaged, or gone: the layer has to be downloaded."""

    code = "pack-corrupt"
    default_remedy = "Try again; if it lasts, tell the site's support: a disk may be failing."


class SquashfsCorrupt(PullError):
    """A squashfs file is damaged: its metadata contradicts itself, or leads out of the file."""

    code = "squashfs-corrupt"
    retryable = True
    default_remedy = "Try again; if it lasts, tell the site's support: a disk may be failing."


class SquashfsUnsupported(PullError):
    """A squashfs file uses what the gateway cannot read, or would need what squashfs cannot hold.

    Examples are the compressors lzo and lz4, and an owner with the 65,536th different id.
    """

    code = "squashfs-unsupported"
    default_remedy = "Use gzip, zstd or xz, or the builder for whole images."


class ManifestInvalid(PullError):
    """The manifest or configuration of the image violates the OCI specification."""

    code = "manifest-invalid"
    default_remedy = "Build and push the image once more with a current tool."


class ImageBlocked(PullError):
    """An admin has blocked this image."""

    http_status = 403
    code = "image-blocked"
    default_remedy = "Use another version of the image, or ask the site's support why."


class ImageRefused(PullError):
    """The policy of the system does not accept this image, or cannot be asked."""

    http_status = 403
    code = "image-refused"
    default_remedy = "Use an image that the policy of this system accepts, or ask its admins."


class NoMatchingPlatform(PullError):
    """The image has no variant for the system's architecture."""

    code = "no-matching-platform"
    default_remedy = "Ask for, or build, an image for this system's architecture."


class LayerInvalid(PullError):
    """A layer is not a valid archive, or has a path that leaves the root."""

    code = "layer-invalid"
    default_remedy = "Build and push the image once more with a current tool."


class ImageTooLarge(PullError):
    """The image exceeds a limit of the configuration."""

    http_status = 413
    code = "image-too-large"
    default_remedy = "Make the image smaller, or ask the site to raise the limit."

    @classmethod
    def for_limit(cls, what: str, key: str) -> Self:
        """Return the error of an image that exceeds the limit `key` of the configuration."""
        return cls(
            what,
            remedy="Make the image smaller, or ask the gateway's admins to raise"
            f" `{key}` in its configuration.",
        )


class ConversionFailed(PullError):
    """`mksquashfs` failed, or its result differs from the plan."""

    code = "conversion-failed"


class NoSpace(PullError):
    """A disk of the gateway or of the system is full."""

    http_status = 507
    code = "no-space"
    retryable = True
    default_remedy = "Tell the site's support: a disk, or a quota, is full."


class DeliveryFailed(PullError):
    """The file could not be installed in the image directory."""

    code = "delivery-failed"
    retryable = True


class WorkerLost(PullError):
    """Workers died on this image repeatedly."""

    code = "worker-lost"


class NotStorable(PullError):
    """The database rejects the record of this image, and would do so again.

    The record is too large, or contains a value that the database cannot represent.
    """

    code = "not-storable"


def stage_timeout(work: str, seconds: float, stage: str) -> TimedOut:
    """Return the error of a stage that exceeded its time limit of the configuration."""
    return TimedOut(
        f"{work} the image took longer than {duration(seconds)}.",
        remedy="Try again when registry and system are faster, or ask the gateway's admins to raise"
        f" `StageLimits.{stage}` in its configuration.",
    )
