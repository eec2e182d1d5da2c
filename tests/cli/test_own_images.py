"""rm, pin and unpin: as processes against a gateway."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner

from shiftergw.cli.main import main
from shiftergw.errors import NotAllowed, NotFound
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from tests.cli.command import ask
from tests.web.fakes import IMAGE_ID, READY, FakeGateway


@dataclass
class OwnersGateway(FakeGateway):
    """A gateway on which `mine:1` and `other:1` are images of the user, and `theirs:1` is not."""

    def _image(self, itype: str, text: str) -> ImageRecord:
        if text == "theirs:1":
            raise NotAllowed("Others use it.")
        if text not in {"mine:1", "other:1", "beef"} or (itype == "docker") == (text == "beef"):
            raise NotFound(f"There is no image {text}.")
        return replace(READY, tags=(text, f"{text}\x1b"))

    async def remove(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Remove an image."""
        await self._turn("remove", session, itype, text)
        return self._image(itype, text)

    async def pin(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Pin an image."""
        await self._turn("pin", session, itype, text)
        return self._image(itype, text)

    async def unpin(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Unpin an image."""
        await self._turn("unpin", session, itype, text)
        return self._image(itype, text)


@pytest_twisted.ensureDeferred
async def test_rm() -> None:
    """Each image is tried, each end is printed, and the exit code is that of the worst."""
    fake = OwnersGateway()
    result = await ask(fake, "rm", "mine:1", "theirs:1", "none:1", "other:1", "mine:1")
    assert result.returncode == 4
    assert result.stdout.splitlines() == [
        "docker:mine:1 is removed.",
        "docker:mine:1\\x1b is removed.",
        "docker:other:1 is removed.",
        "docker:other:1\\x1b is removed.",
    ]
    assert "Others use it." in result.stderr
    assert "There is no image none:1." in result.stderr
    names = [call[3] for call in fake.calls if call[0] == "remove"]
    assert names == ["mine:1", "theirs:1", "none:1", "other:1"]


@pytest_twisted.ensureDeferred
async def test_rm_of_an_image_without_a_tag() -> None:
    """An image that is named by its id is removed as that."""
    fake = OwnersGateway()
    result = await ask(fake, "rm", "beef")
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "docker:beef is removed.")
    assert [call[2] for call in fake.calls] == ["docker", "id"]


@pytest_twisted.ensureDeferred
async def test_pin_and_unpin() -> None:
    """Both print the id of the image, and end with 4 where the gateway refuses."""
    fake = OwnersGateway()
    result = await ask(fake, "pin", "mine:1")
    assert (result.returncode, result.stdout) == (0, f"{IMAGE_ID} is pinned.\n")
    result = await ask(fake, "unpin", "mine:1", "theirs:1")
    assert (result.returncode, result.stdout) == (4, f"{IMAGE_ID} is not pinned any more.\n")
    assert "Others use it." in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["rm"], ["rm", "a:1", "--now", IMAGE_ID], ["rm", "id:xyz"], ["pin"], ["unpin", "local:a"]],
)
def test_misuse(arguments: list[Any]) -> None:
    """A command line that could mean another image is refused before any request."""
    assert CliRunner().invoke(main, arguments).exit_code == 2
