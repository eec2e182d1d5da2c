"""Where the command line finds gateway and system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shiftergw.cli.exits import Misuse
from shiftergw.cli.options import CommaList
from shiftergw.cli.settings import Settings, read_udiroot, sockets_of, systems_of

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
    assert from_file.gateway_urls() == [
        "http://one:5000",
        "http://two:5000",
        "http://three:5000",
        "https://four",
    ]
    assert from_file.single_system() == "mycluster"
    told = Settings(["http://here"], ["s"], "c", udiroot)
    assert (told.gateway_urls(), told.single_system()) == (["http://here"], "s")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://x", ("ftp://x", "http:// or https://")),
        ("file:///etc/passwd", ("http:// or https://",)),
        ("http://", ("http://HOST:PORT",)),
        ("", ("http://HOST:PORT",)),
        ("https:///x", ("http://HOST:PORT",)),
        (":5000", ("http://HOST:PORT",)),
        ("http://x:99999", ("http://x:99999", "ort")),
        ("http://x:0", ("http://HOST:PORT",)),
        ("http://x:abc", ("abc",)),
        ("http://[::1", ("http://[::1",)),
        ("http://a b", ("blank",)),
        ("http://image_gw:5000", ("'_'", "IP address")),
        ("http://a..b", ("a..b", "letters, digits")),
        ("http://x\x1b[2J", ("\\x1b",)),
        ("http://x?a=1", ("http://HOST:PORT",)),
        ("http://ann:hush@x", ("no login",)),
        ("ann:hush@x:5000", ("no login",)),
    ],
)
def test_what_is_no_gateway(url: str, words: tuple[str, ...]) -> None:
    """An address that can be none is told at once, with what is expected and without passwords."""
    with pytest.raises(Misuse) as told:
        Settings(gateways=["http://good:5000", url]).gateway_urls()
    for word in words:
        assert word in str(told.value)
    assert "hush" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "read"),
    [("gw", "http://gw"), ("gw:5000/", "http://gw:5000"), ("https://gw/pre/", "https://gw/pre"),
     ("[::1]:5000", "http://[::1]:5000"), ("HTTP://gw", "HTTP://gw")],
)  # fmt: skip
def test_what_is_a_gateway(url: str, read: str) -> None:
    """A host is enough; a port, a path and addresses of IPv6 are good, too."""
    assert Settings(gateways=[url]).gateway_urls() == [read]


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
    why = r"SHIFTERGW_GATEWAY, .*none \(which cannot be read: No such file or directory\)\."
    with pytest.raises(Misuse, match=why):
        nothing.gateway_urls()
    with pytest.raises(Misuse, match="--system NAME"):
        nothing.single_system()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_udiroot_without_an_end(kind: str, tmp_path: Path) -> None:
    """A pipe without a writer, or an endless device, is not read."""
    path = Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path := tmp_path / "pipe")
    with pytest.raises(Misuse, match="cannot be read: Not a regular file"):
        Settings(udiroot=path).gateway_urls()


def test_systems() -> None:
    """Comma lists and repeated options add up; each system counts once, in the order given."""
    assert systems_of(["b, a", "c", "a"]) == ("b", "a", "c")
    assert systems_of(["", " "]) == ()
    for gap in (["a,"], [","], ["a", "b,,c"]):
        with pytest.raises(Misuse, match="a name missing"):
            systems_of(gap)


def test_one_system_is_one() -> None:
    """A command for one system does not choose among several; it names them."""
    assert Settings(systems=["a"]).single_system() == "a"
    with pytest.raises(Misuse, match="for one system, and a, b are named"):
        Settings(systems=["a", "b"]).single_system()


def test_each_system_may_have_a_munge_daemon_of_its_own() -> None:
    """A path without a system is for all that have none; a path may hold signs and commas."""
    sockets = sockets_of(["/run/all=1,2", "a=/run/a", "b=run/b"])
    settings = Settings(munge_sockets=sockets)
    assert settings.munge_socket_of("a") == Path("/run/a")
    assert settings.munge_socket_of("b") == Path("run/b")
    assert settings.munge_socket_of("c") == Path("/run/all=1,2")
    assert Settings().munge_socket_of("a") is None
    assert sockets_of([""]) == {}
    for wrong in ("a=", "=/run/x"):
        with pytest.raises(Misuse, match="SYSTEM=PATH"):
            sockets_of([wrong])


def test_a_variable_names_several_sockets() -> None:
    """With a comma before the next system; another comma belongs to the path."""
    split = CommaList().split_envvar_value
    assert split("/run/munge,socket") == ["/run/munge,socket"]
    assert split("/run/m,a=/run/a,1,b=/run/b") == ["/run/m", "a=/run/a,1", "b=/run/b"]
