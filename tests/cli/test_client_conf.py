"""The settings of a node: gateway, system, image directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.cli.client_conf import ClientConf
from shiftergw.cli.exits import Misuse

CONF = """\
# nodes of mycluster
imageGateway = http://one:5000 two:5000
imageGateway = https://three
system = mycluster
imagePath = /images
"""


def write_conf(directory: Path, text: str) -> Path:
    """Return a file with this text."""
    path = directory / "client.conf"
    path.write_text(text)
    return path


def test_the_file(tmp_path: Path) -> None:
    """Gateways, system and image directory are read as in `udiRoot.conf`."""
    conf = ClientConf.read(write_conf(tmp_path, CONF), "good:ann")
    assert conf.settings.gateway_urls() == ["http://one:5000", "http://two:5000", "https://three"]
    assert conf.settings.single_system() == "mycluster"
    assert conf.settings.munge_socket_of("mycluster") is None
    assert conf.settings.answer_limit() is None
    assert conf.settings.credential == "good:ann"
    assert conf.image_directory == Path("/images")


def test_further_keys(tmp_path: Path) -> None:
    """A site may name its munge daemon, and how long a request may take."""
    conf = ClientConf.read(
        write_conf(tmp_path, f"{CONF}mungeSocket = /run/m.socket\ngatewayTimeout=30\n")
    )
    assert conf.settings.munge_socket_of("mycluster") == Path("/run/m.socket")
    assert conf.settings.answer_limit() == 30


def test_no_file(tmp_path: Path) -> None:
    """A missing file, or one that is no file, is named."""
    for path in (tmp_path / "absent.conf", tmp_path):
        with pytest.raises(Misuse, match=f"{path}, which names the gateway, cannot be read"):
            ClientConf.read(path)


@pytest.mark.parametrize("key", ["imageGateway", "system", "imagePath"])
def test_missing_keys(key: str, tmp_path: Path) -> None:
    """A missing key, or one without a value, is named."""
    rest = "".join(line for line in CONF.splitlines(True) if not line.startswith(key))
    for text in (rest, f"{rest}{key} =\n"):
        with pytest.raises(Misuse, match=f"lacks the key {key}"):
            ClientConf.read(write_conf(tmp_path, text))


@pytest.mark.parametrize("path", ["images", "~/images", "/im\x1bages"])
def test_image_directories_that_are_none(path: str, tmp_path: Path) -> None:
    """The image directory is an absolute path that can be printed in one line."""
    with pytest.raises(Misuse, match="imagePath must be an absolute path"):
        ClientConf.read(write_conf(tmp_path, CONF.replace("/images", path)))
