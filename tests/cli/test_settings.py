"""How the command line determines gateway, system and munge socket."""

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
    urls = read_udiroot(udiroot)
    assert urls["imageGateway"].split() == [
        "http://one:5000",
        "http://two:5000/",
        "three:5000",
        "https://four",
    ]
    assert urls["system"] == "mycluster"
    assert set(urls) == {"imageGateway", "system"}


def test_options_take_precedence_over_udiroot(udiroot: Path) -> None:
    """The file counts only without options; URLs get a scheme and lose their last slash."""
    from_file = Settings(udiroot=udiroot)
    assert from_file.gateway_urls() == [
        "http://one:5000",
        "http://two:5000",
        "http://three:5000",
        "https://four",
    ]
    assert from_file.single_system() == "mycluster"
    words = Settings(["http://here"], ["s"], "c", udiroot)
    assert (words.gateway_urls(), words.single_system()) == (["http://here"], "s")


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
def test_invalid_urls(url: str, words: tuple[str, ...]) -> None:
    """An invalid URL is refused at once, with the expected form and without passwords."""
    with pytest.raises(Misuse) as caught:
        Settings(gateways=["http://good:5000", url]).gateway_urls()
    for word in words:
        assert word in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "read"),
    [("gw", "http://gw"), ("gw:5000/", "http://gw:5000"), ("https://gw/pre/", "https://gw/pre"),
     ("[::1]:5000", "http://[::1]:5000"), ("HTTP://gw", "HTTP://gw")],
)  # fmt: skip
def test_valid_urls(url: str, read: str) -> None:
    """A host is enough; a port, a path and IPv6 addresses are valid, too."""
    assert Settings(gateways=[url]).gateway_urls() == [read]


def test_default_type_and_timeout_of_the_site(tmp_path: Path) -> None:
    """`defaultImageType` and `gatewayTimeout` mean the same as to `shifterimg`."""
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
    """The repr of the settings does not show the credential."""
    assert "hush" not in repr(Settings(credential="good:hush"))


def test_no_gateway_or_system(tmp_path: Path) -> None:
    """Without gateway or system the error names option and variable."""
    settings = Settings(udiroot=tmp_path / "none")
    why = r"SHIFTERGW_GATEWAY, .*none \(which cannot be read: No such file or directory\)\."
    with pytest.raises(Misuse, match=why):
        settings.gateway_urls()
    with pytest.raises(Misuse, match="--system NAME"):
        settings.single_system()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_udiroot_without_an_end(kind: str, tmp_path: Path) -> None:
    """A pipe without a writer, or an endless device, is not read."""
    path = Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path := tmp_path / "pipe")
    with pytest.raises(Misuse, match="cannot be read: Not a regular file"):
        Settings(udiroot=path).gateway_urls()


def test_systems() -> None:
    """Comma-separated lists and repeated options add up; each system is listed once, in order."""
    assert systems_of(["b, a", "c", "a"]) == ("b", "a", "c")
    assert systems_of(["", " "]) == ()
    for gap in (["a,"], [","], ["a", "b,,c"]):
        with pytest.raises(Misuse, match="a name missing"):
            systems_of(gap)


def test_a_command_for_one_system() -> None:
    """A command for one system refuses several, and lists them."""
    assert Settings(systems=["a"]).single_system() == "a"
    with pytest.raises(Misuse, match="for one system, and a, b are named"):
        Settings(systems=["a", "b"]).single_system()


def test_a_munge_socket_for_each_system() -> None:
    """A path without a system is the default; a path may have equals signs and commas."""
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


def test_several_sockets_in_a_variable() -> None:
    """A comma before `SYSTEM=` separates sockets; another comma belongs to the path."""
    split = CommaList().split_envvar_value
    assert split("/run/munge,socket") == ["/run/munge,socket"]
    assert split("/run/m,a=/run/a,1,b=/run/b") == ["/run/m", "a=/run/a,1", "b=/run/b"]
