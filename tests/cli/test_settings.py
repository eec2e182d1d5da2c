"""Where the command line finds gateway and system."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.cli.exits import Misused
from shiftergw.cli.settings import Settings, read_udiroot

UDIROOT = """\
# gateways = old
system = mycluster
imageGateway=http://one:5000 http://two:5000/ \\
    three:5000
imageGateway = https://four
#system=other
defaultImageType
"""


@pytest.fixture
def udiroot(tmp_path: Path) -> Path:
    """Return a client's configuration."""
    path = tmp_path / "udiRoot.conf"
    path.write_text(UDIROOT)
    return path


def test_udiroot(udiroot: Path) -> None:
    """Comments, continued lines, and repeated keys are read as the client reads them."""
    found = read_udiroot(udiroot)
    assert found["imageGateway"].split() == [
        "http://one:5000",
        "http://two:5000/",
        "three:5000",
        "https://four",
    ]
    assert found["system"] == "mycluster"
    assert set(found) == {"imageGateway", "system"}


def test_udiroot_is_the_last_resort(udiroot: Path) -> None:
    """Options win; without them the file counts; URLs get a scheme and lose their last slash."""
    from_file = Settings(udiroot=udiroot)
    assert from_file.found_gateways() == [
        "http://one:5000",
        "http://two:5000",
        "http://three:5000",
        "https://four",
    ]
    assert from_file.found_system() == "mycluster"
    told = Settings(["http://here"], "s", "c", udiroot)
    assert (told.found_gateways(), told.found_system()) == (["http://here"], "s")


def test_what_the_site_says_of_types_and_limits(tmp_path: Path) -> None:
    """`defaultImageType` and `gatewayTimeout` count as they do for the existing client."""
    path = tmp_path / "udiRoot.conf"
    assert Settings(udiroot=path).default_type() == "docker"
    assert Settings(udiroot=path).answer_limit() is None
    path.write_text("defaultImageType=custom\ngatewayTimeout=30\n")
    assert Settings(udiroot=path).default_type() == "custom"
    assert Settings(udiroot=path).answer_limit() == 30
    for text in ("0", "-1", "soon", ""):
        path.write_text(f"gatewayTimeout={text}\n")
        assert Settings(udiroot=path).answer_limit() is None


def test_a_credential_is_not_shown() -> None:
    """It is a secret like any other, for mock or not."""
    assert "hush" not in repr(Settings(credential="good:hush"))


def test_what_is_not_known_says_how_to_tell(tmp_path: Path) -> None:
    """Without gateway or system the error names option and variable."""
    nothing = Settings(udiroot=tmp_path / "none")
    with pytest.raises(Misused, match="SHIFTERGW_GATEWAY"):
        nothing.found_gateways()
    with pytest.raises(Misused, match="--system NAME"):
        nothing.found_system()
