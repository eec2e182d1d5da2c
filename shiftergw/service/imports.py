"""Import files of users: the route `doimport` of the original gateway, under stricter rules.

The file is read by a worker, as its user may read it, and the image is built anew from its content;
nothing of the file itself is delivered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from shiftergw.config import Config
from shiftergw.errors import BadRequest, NotAllowed, printable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import PullRequest, Session
from shiftergw.model.uploads import ImageFile
from shiftergw.service.claims import check_readers
from shiftergw.service.custom_claims import CustomClaims, check_name

CheckFile = Callable[[str, str], Awaitable[None]]
"""Raises an error unless a path is proper and the user of this name may import the file."""


@dataclass(frozen=True, slots=True)
class ImportChoice:
    """What a user imports: the absolute path of the file, its format, and if it is public."""

    path: str
    format: str
    public: bool = False


class FileImports:
    """Answers requests to import a file, and polls of such a request."""

    def __init__(self, config: Config, claims: CustomClaims, check_file: CheckFile) -> None:
        """Create work by `claims`; `check_file` looks at the file before."""
        self._config = config
        self._claims = claims
        self._check_file = check_file

    async def import_file(
        self, session: Session, request: PullRequest, choice: ImportChoice
    ) -> ImageRecord:
        """Return the record of the image that is made of a file, starting work if necessary.

        Raises `NotAllowed` for a user whom `ImportUsers` does not list, and for a file that the
        gateway may not read for this user.
        """
        self._check_user(session)
        if choice.format != "squashfs":
            raise BadRequest(
                f"{printable(choice.format, 40)!r} is not a format that can be imported.",
                remedy="The format is squashfs; upload other files with `shiftergw import`.",
            )
        check_name(session, request)
        check_readers(session, request)
        has_readers = bool(request.user_acl or request.group_acl)
        if choice.public and has_readers:
            raise BadRequest("An image that everybody may use has no list of readers.")
        # Without a command only files are read that everybody may read, so that the image may be
        # for everybody as well, as with the original gateway.
        public = choice.public or not (self._config.import_command or has_readers)
        file = ImageFile(kind="squashfs", path=choice.path, user=session.user, public=public)

        async def describe() -> ImageFile:
            await self._check_file(choice.path, session.user)
            return file

        request = replace(request, location=None)
        return await self._claims.pull_file(session, request, file, describe)

    def _check_user(self, session: Session) -> None:
        names = self._config.import_users
        if names is not None and session.user not in names:
            raise NotAllowed(
                "You may not import files by their path (ImportUsers).",
                remedy="Upload the file with `shiftergw import FILE NAME`, or ask the site's"
                " support.",
            )
