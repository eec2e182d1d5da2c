"""The names that pyxis passes on, as the gateway has them."""

from __future__ import annotations

import pytest

from shiftergw.cli.enroot_names import LONGEST, image_of_uri
from shiftergw.cli.exits import Misuse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("docker://ubuntu", "ubuntu:latest"),
        ("docker://ubuntu:24.04", "ubuntu:24.04"),
        ("docker://org/app:1", "org/app:1"),
        ("docker://nvcr.io#nvidia/pytorch:24.05-py3", "nvcr.io/nvidia/pytorch:24.05-py3"),
        ("docker://nvcr.io/nvidia/pytorch:24.05-py3", "nvcr.io/nvidia/pytorch:24.05-py3"),
        ("docker://GHCR.io#org/app:1", "ghcr.io/org/app:1"),
        ("docker://localhost:5000#app", "localhost:5000/app:latest"),
        ("docker://[::1]:5000#app:1", "[::1]:5000/app:1"),
        ("docker://$oauthtoken@nvcr.io#nvidia/app:1", "nvcr.io/nvidia/app:1"),
        ("docker://ann@example.org@ghcr.io#org/app:1", "ghcr.io/org/app:1"),
        ("docker://ann@app", "app:latest"),
        (f"docker://app@{DIGEST}", f"app@{DIGEST}"),
        (f"docker://app:1@{DIGEST}", f"app:1@{DIGEST}"),
        (f"docker://ann@ghcr.io#org/app:1@{DIGEST}", f"ghcr.io/org/app:1@{DIGEST}"),
    ],
)
def test_images_of_registries(uri: str, name: str) -> None:
    """Registry, tag and digest are kept; a user, who chooses nothing, is left out."""
    assert image_of_uri(uri) == ("docker", name)


@pytest.mark.parametrize(
    ("uri", "name"),
    [("docker://custom:app:1", "app:1"), ("docker://custom:app", "app:latest")],
)
def test_uploads(uri: str, name: str) -> None:
    """An image that users have uploaded has the name that it has for `shiftergw`."""
    assert image_of_uri(uri) == ("custom", name)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "docker://",
        "docker://@",
        "docker://ann@",
        "docker://#app",
        "docker://ghcr.io#",
        "docker://a#b#c",
        "docker://App",
        "docker://app:",
        "docker://app:1:2",
        "docker://app@sha256:ab",
        "docker://app@md5:ab",
        "docker://../etc/passwd",
        "docker:///etc/passwd",
        "docker://docker://app",
        "docker://app\n/etc/passwd",
        "docker://app;reboot",
        "docker://$(reboot)",
        "docker://a b@ghcr.io#app",
        "docker://ann\x1b[2J@ghcr.io#app",
        "docker://app\udcff",
        "docker://custom:../x",
        "docker://custom:",
        "ubuntu:24.04",
        "oci:/etc",
        "--help",
        "docker://" + "a" * LONGEST,
    ],
)
def test_other_texts_are_refused(uri: str) -> None:
    """A text that names no image is refused, in a line that can be printed."""
    with pytest.raises(Misuse) as caught:
        image_of_uri(uri)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


def test_registries_without_a_host() -> None:
    """A word in front of # that is no host would be taken for a part of a repository."""
    with pytest.raises(Misuse, match=r"not the host of a registry\..*lab/app:1"):
        image_of_uri("docker://lab#app:1")


@pytest.mark.parametrize("uri", ["dockerd://app:1", "podman://app:1"])
def test_images_of_a_daemon(uri: str) -> None:
    """An image of a daemon of the node cannot come from the gateway; the error says what can."""
    with pytest.raises(Misuse, match="shiftergw pull"):
        image_of_uri(uri)
