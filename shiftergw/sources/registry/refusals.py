"""Explain to users why a registry refuses a request for an image."""

from __future__ import annotations

from http import HTTPStatus

from shiftergw.errors import ImageNotFound, PullError, RegistryDenied


class RefusalError(Exception):
    """The registry, or its token service, refused a request; `text` has its words.

    `login_sent` tells whether the login was shown to either of them. `failure` is the error that
    the user gets instead of a refusal, if any.
    """

    def __init__(
        self, status: int, text: str, *, login_sent: bool, failure: PullError | None = None
    ) -> None:
        """Keep what the user's error depends on; `text` is printable."""
        super().__init__(status)
        self.status = status
        self.text = text
        self.login_sent = login_sent
        self.failure = failure


class RefusalWords:
    """Makes the errors of one repository for one user."""

    def __init__(self, registry: str, location: str, repository: str, *, has_login: bool) -> None:
        """`registry` begins sentences, and `location` is the name under which users log in."""
        self._registry = registry
        self._location = location
        self._repository = repository
        self._has_login = has_login

    def failure(
        self, refusal: RefusalError, path: str, anonymous: RefusalError | None = None
    ) -> PullError:
        """Return the error for a refusal, and for that of an anonymous request before it.

        Registries may answer 404 to users who may not see a private repository. If both refusals
        are 404, or the anonymous one is, the image does not exist as far as anybody knows.
        """
        if refusal.failure is not None:
            return refusal.failure
        is_hidden = anonymous is not None and anonymous.status == HTTPStatus.NOT_FOUND
        if is_hidden or refusal.status == HTTPStatus.NOT_FOUND:
            return self._not_found(refusal, path, anonymous if is_hidden else None)
        words = f" ({refusal.text})" if refusal.text else ""
        log_in = f"(`shiftergw login {self._location}`, or `shifterimg login {self._location}`)"
        if not self._has_login:
            what = f"to a user without a login{words}."
            remedy = f"Log in to it {log_in}, or check that you may read the image."
        elif not refusal.login_sent:
            what = f"without asking for your login{words}."
            remedy = "Check the name of the image, or ask its owner for permission."
        else:
            what = f"to your login{words}."
            remedy = (
                f"Check the name of the image; log in anew {log_in} if your password has changed;"
                " or ask the image's owner for permission."
            )
        return RegistryDenied(
            f"{self._registry} refused {self._repository} {what}",
            remedy=self._unknown_host() or remedy,
        )

    def _not_found(
        self, refusal: RefusalError, path: str, anonymous: RefusalError | None
    ) -> ImageNotFound:
        text = (anonymous or refusal).text
        words = f" ({text})" if text else ""
        if anonymous and refusal.login_sent and refusal.status == HTTPStatus.UNAUTHORIZED:
            words += ", and refused your login" + (f" ({refusal.text})" if refusal.text else "")
        kind, _, reference = path.partition("/")
        if kind == "blobs":
            return ImageNotFound(
                f"{self._registry} lacks a part of {self._repository}, {reference}{words}.",
                remedy="Push the image once more, all its layers with it.",
            )
        mark = "@" if ":" in reference else ":"
        return ImageNotFound(
            f"{self._registry} has no image {self._repository}{mark}{reference}{words}.",
            remedy=self._unknown_host(),
        )

    def _unknown_host(self) -> str | None:
        """Return the remedy if the name begins with a host that is not a location."""
        host, slash, _ = self._repository.partition("/")
        if not (slash and "." in host):
            return None
        return (
            f"If {host} is meant to be a registry: this gateway does not have it, so ask its admins"
            " for it. Otherwise check the name and the tag of the image."
        )
