"""Prefixes of image names: those of registries are removed, others raise an explained error."""

from __future__ import annotations

import pytest

from shiftergw.errors import BadRequest
from shiftergw.model.references import ImageReference

AT = "@sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("docker://ubuntu", "ubuntu:latest"),
        ("docker://ubuntu:24.04", "ubuntu:24.04"),
        ("docker://ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("docker://host:5000/a", "host:5000/a:latest"),
        (f"docker://ghcr.io/a/b{AT}", f"ghcr.io/a/b{AT}"),
        ("DOCKER://ubuntu", "ubuntu:latest"),
        ("//ubuntu:24.04", "ubuntu:24.04"),
        ("docker:ubuntu:24.04", "ubuntu:24.04"),
        ("docker:ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("oci://ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("https://ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("https://ghcr.io/a/b/", "ghcr.io/a/b:latest"),
        ("http://host:5000/a:1", "host:5000/a:1"),
        # What these have in front is a repository or a host.
        ("docker", "docker:latest"),
        ("docker:24.0", "docker:24.0"),
        (f"docker:24.0{AT}", f"docker:24.0{AT}"),
        ("docker:5000/x", "docker:5000/x:latest"),
        ("docker/oci:dir", "docker/oci:dir"),
        ("oci", "oci:latest"),
        ("oci:5000/x:1", "oci:5000/x:1"),
    ],
)
def test_prefixes_of_registries_are_removed(text: str, normal: str) -> None:
    """The reference is the same as without the prefix."""
    assert str(ImageReference.parse(text)) == normal


@pytest.mark.parametrize(
    "name",
    [
        *("oci", "dir", "sif", "squashfs", "oci-archive", "docker-archive", "tarball", "file"),
        *("docker-daemon", "containers-storage", "ostree", "docker", "library", "http"),
    ],
)
def test_a_repository_that_is_called_like_a_prefix(name: str) -> None:
    """Its normalized name, which lists show, names it again; other tags look like a prefix."""
    assert str(ImageReference.parse(name)) == f"{name}:latest"
    assert str(ImageReference.parse(f"{name}:latest")) == f"{name}:latest"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("oci:dir", "directory of your own"),
        ("oci:/tmp/layout:tag", "directory of your own"),
        ("dir:/tmp/x", "directory of your own"),
        ("docker://oci:dir", "directory of your own"),
        ("docker-archive:image.tar", "file of your own"),
        ("squashfs:x.sqfs", "file of your own"),
        ("sif:x.sif", "file of your own"),
        ("oci-archive:/tmp/x.tar", "file of your own"),
        ("file:///tmp/x.tar", "file of your own"),
        ("docker-daemon:ubuntu:24.04", "your own machine"),
        ("containers-storage:localhost/x", "your own machine"),
        ("/home/ann/x.sif", "file or directory"),
        ("./x.tar", "file or directory"),
        ("../x", "file or directory"),
        ("~/x.tar", "file or directory"),
        ("docker:///x", "file or directory"),
        ("library://ann/x:1", "not a registry"),
        ("shub://ann/x", "not a registry"),
        ("oras://ghcr.io/a/b:1", "not a registry"),
    ],
)
def test_other_prefixes_are_rejected(text: str, why: str) -> None:
    """The error explains the prefix, and that images come from registries."""
    with pytest.raises(BadRequest, match=why) as caught:
        ImageReference.parse(text)
    assert "registries alone" in str(caught.value)
    assert "Push the image to a registry" in str(caught.value)


def test_a_login_is_not_repeated() -> None:
    """A password in a name appears neither in the response nor in a log."""
    with pytest.raises(BadRequest, match="no login in it") as caught:
        ImageReference.parse("https://ann:secret@ghcr.io/a/b")
    assert "secret" not in str(caught.value)


def test_a_page_of_docker_hub() -> None:
    """An address that users copy from their browser is explained."""
    with pytest.raises(BadRequest, match="pages of Docker Hub"):
        ImageReference.parse("https://hub.docker.com/_/ubuntu")
