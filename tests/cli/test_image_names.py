"""Names and ids of images on the command line, and similar names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted
from click.testing import CliRunner

from shiftergw.cli import image_names
from shiftergw.cli.exits import Misuse
from shiftergw.cli.image_names import image_of, meanings_of, near_names, repository_of
from shiftergw.cli.main import main
from shiftergw.errors import AmbiguousId, BadRequest, NotFound
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from tests.cli.command import ask
from tests.web.fakes import IMAGE_ID, READY, FakeGateway


class GatewayOfIds(FakeGateway):
    """A gateway that finds images by the first digits of their ids, too."""

    async def lookup(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Return the image."""
        if itype != "id":
            return await super().lookup(session, itype, text)
        await self._turn("lookup", session, itype, text)
        if text == "abcd":
            raise AmbiguousId("Several images have this id: a; b.")
        if IMAGE_ID.startswith(text):
            return READY
        raise NotFound("There is no such id.")


class OldGateway(FakeGateway):
    """A gateway of a version that has no ids and no names."""

    async def lookup(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Return the image."""
        if itype == "id":
            raise BadRequest("'id' is not an image type.")
        self.raises = NotFound(f"There is no image {text}.")
        return await super().lookup(session, itype, text)


def test_types() -> None:
    """`docker` and `custom` are types; any other first word belongs to the name."""
    assert image_of("x:1") == ("docker", "x:1")
    assert image_of("docker:x:1") == ("docker", "x:1")
    assert image_of("custom:x:1") == ("custom", "x:1")
    assert image_of("docker") == ("docker", "docker")
    assert image_of("docker://x:1") == ("docker", "x:1")
    assert image_of("docker:docker://x:1") == ("docker", "x:1")
    assert image_of("https://ghcr.io/x:1") == ("docker", "ghcr.io/x:1")
    assert image_of("oci:dir") == ("docker", "oci:dir")


def test_the_site_has_a_default_type() -> None:
    """The default type of udiRoot.conf is used for names without a type."""
    assert image_of("x:1", "custom") == ("custom", "x:1")
    assert image_of("docker:x:1", "custom") == ("docker", "x:1")
    with pytest.raises(Misuse, match="local"):
        image_of("x:1", "local")


def test_names_come_before_ids() -> None:
    """Hexadecimal digits are an id if no image has them for a name; `id:` is always one."""
    assert meanings_of("cafe", "custom") == [("custom", "cafe"), ("id", "cafe")]
    assert meanings_of("id:cafe", "docker") == [("id", "cafe")]
    for text in ("caf", "CAFE", "cafe:1", "custom:cafe", "docker:cafe"):
        assert len(meanings_of(text, "docker")) == 1
    with pytest.raises(Misuse, match="4 to 64"):
        meanings_of("id:caf", "docker")


def test_similar_names() -> None:
    """At most three names are similar, with the type where it must be written."""
    images = [
        *(("docker", f"ubuntu:2{number}.04") for number in range(5)),
        ("docker", "quay.io/x/tool:1"),
        ("custom", "analysis:1"),
    ]
    assert near_names("docker", "ubunt:24.04", images)[0] == "ubuntu:24.04"
    assert "ubuntu:20.04" in near_names("docker", "ubuntu", images)
    assert len(near_names("docker", "ubuntu:25.04", images)) == 3
    assert near_names("docker", "quay.io/x/toll", images) == ["quay.io/x/tool:1"]
    assert near_names("docker", "analysis:1", images) == ["custom:analysis:1"]
    assert near_names("custom", "analysys:1", images) == ["custom:analysis:1"]
    assert near_names("docker", "z" * 10**6, images) == []


@pytest.mark.parametrize(
    ("name", "repository"),
    [("a", "a"), ("a:1", "a"), ("h:5000/a", "h:5000/a"), ("h:5000/a:1", "h:5000/a"),
     ("a:1@sha256:ab", "a")],
)  # fmt: skip
def test_repositories(name: str, repository: str) -> None:
    """The port of a registry is no tag."""
    assert repository_of(name) == repository


@pytest_twisted.ensureDeferred
async def test_lookup_by_id() -> None:
    """`lookup` finds an image by its name, and else by its id."""
    fake = GatewayOfIds(images=[replace(READY, tags=("abab:latest", "beef"), id="cd" * 32)])
    for text in ("ababab", "id:abab", f"id:{IMAGE_ID}"):
        assert (await ask(fake, "lookup", text)).stdout == f"{IMAGE_ID}\n"
    assert (await ask(fake, "lookup", "beef")).stdout == f"{'cd' * 32}\n"
    result = await ask(fake, "lookup", "abcd")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Several images have this id: a; b." in result.stderr


@pytest_twisted.ensureDeferred
async def test_an_unknown_image() -> None:
    """The error about a name has similar ones that the user may use; that about an id has none."""
    fake = GatewayOfIds(images=[replace(READY, tags=("beef:1", "ubuntu:24.04"))])
    result = await ask(fake, "lookup", "beer:1")
    assert (result.returncode, result.stdout) == (4, "")
    assert "There is no image beer:1." in result.stderr
    assert result.stderr.endswith(" Do you mean beef:1?\n")
    assert [call[0] for call in fake.calls] == ["lookup", "list"]
    result = await ask(fake, "lookup", "beee")
    assert "There is no image beee." in result.stderr
    assert result.stderr.endswith(" Do you mean beef:1?\n")
    result = await ask(fake, "lookup", "id:beee")
    assert "There is no such id." in result.stderr
    assert "mean" not in result.stderr


@pytest_twisted.ensureDeferred
async def test_a_gateway_without_ids() -> None:
    """A gateway of an earlier version answers with its own words about the name."""
    result = await ask(OldGateway(), "lookup", "beef")
    assert (result.returncode, "There is no image beef." in result.stderr) == (4, True)
    result = await ask(OldGateway(), "lookup", "id:beef")
    assert (result.returncode, "'id' is not an image type." in result.stderr) == (2, True)


def test_misuse() -> None:
    """What cannot be a name or an id is refused before any request."""
    for text in ("id:xyz", "local:a", "docker:", "a/"):
        assert CliRunner().invoke(main, ["lookup", text]).exit_code == 2
    assert image_names.id_of("id:beef") == image_names.id_of("beef") == "beef"
