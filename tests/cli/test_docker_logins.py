"""The files of Docker and podman: which login they have for a registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shiftergw.cli.docker_logins import (
    DockerConfig,
    DockerLogin,
    UnusableLogin,
    login_files,
    login_in,
    registry_host,
)
from shiftergw.cli.exits import Misuse
from tests.cli.docker_files import entry, helper_of, write_config, write_helper


def config_of(path: Path, document: Any) -> DockerConfig:
    """Return a file with this content."""
    config = DockerConfig.read(write_config(path / "config.json", document))
    assert config is not None
    return config


def pair(login: DockerLogin | None) -> tuple[bytes, bytes] | None:
    """Return user and password."""
    return None if login is None else (login.user, login.password)


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("docker.io/library", "docker.io"),
        ("reg.example:443", "reg.example"),
        ("https://reg.example:443/v2/", "reg.example"),
        ("HTTPS://Reg.Example/", "reg.example"),
        ("http://reg.example:80", "reg.example"),
        ("http://reg.example:443", "reg.example:443"),
        ("reg.example:80", "reg.example:80"),
        ("reg.example:5000/team/app", "reg.example:5000"),
        ("[fe80::1]:443", "[fe80::1]"),
    ],
)
def test_names_of_servers(key: str, host: str) -> None:
    """Every form that Docker writes for a registry means the same host."""
    assert registry_host(key) == host


@pytest.mark.parametrize(
    "key",
    ["https://reg.example/v1/", "https://reg.example/v2/", "reg.example", "reg.example:443",
     "http://reg.example:80/", "REG.example"],
)  # fmt: skip
def test_entries(tmp_path: Path, key: str) -> None:
    """An entry counts under each name of the registry, and for no other registry."""
    config = config_of(tmp_path, {"auths": {"other.example": {}, key: entry("ann", "a:b")}})
    assert pair(config.login_for("reg.example")) == (b"ann", b"a:b")
    assert config.login_for("other.example") is None
    assert config.login_for("reg.example:5000") is None


@pytest.mark.parametrize(
    ("content", "login"),
    [
        ({"username": "ann", "password": "x"}, (b"ann", b"x")),
        ({"auth": "YW5uOng="}, (b"ann", b"x")),
        ({"auth": "YW5uOngAAAA="}, (b"ann", b"x")),  # old versions of Docker append NULs
        ({"auth": "YW5uOg==", "identitytoken": "t:1"}, (b"<token>", b"t:1")),
        (entry("<token>", "t:1"), (b"<token>", b"t:1")),
        ({**entry("ann", "x"), "identitytoken": ""}, (b"ann", b"x")),
        ({}, None),
        ({"email": "ann@example.org"}, None),
        ({"auth": ""}, None),
    ],
)
def test_forms_of_an_entry(tmp_path: Path, content: Any, login: Any) -> None:
    """User and password stand in `auth`, or beside each other; an empty entry is no login."""
    config = config_of(tmp_path, {"auths": {"reg.example": content}})
    assert pair(config.login_for("reg.example")) == login


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**entry("ann", "hush"), "identitytoken": ["hush"]}, "not a login as Docker writes it"),
        ({"auth": "hush!"}, "not a login as Docker writes it"),
        ({"auth": "aHVzaA=="}, "not a login as Docker writes it"),
        ({"auth": "hüsh"}, "not a login as Docker writes it"),
        ({"auth": 5}, "not a login as Docker writes it"),
        ({"username": "ann", "password": ["hush"]}, "not a login as Docker writes it"),
        ({"username": "ann", "password": "\ud800"}, "not a login as Docker writes it"),
    ],
)
def test_unusable_entries(tmp_path: Path, content: Any, words: str) -> None:
    """The message gives the reason, and quotes no part of the entry."""
    config = config_of(tmp_path, {"auths": {"reg.example": content}})
    with pytest.raises(UnusableLogin, match=words) as caught:
        config.login_for("reg.example")
    assert "hush" not in str(caught.value)


def test_logins_for_parts_of_a_registry(tmp_path: Path) -> None:
    """A login for a namespace counts if it is the only one; of the registry itself, it wins."""
    auths = {"reg.example/a": entry("ann", "1")}
    assert pair(config_of(tmp_path, {"auths": auths}).login_for("reg.example")) == (b"ann", b"1")
    auths["reg.example/b"] = entry("bob", "2")
    with pytest.raises(UnusableLogin, match=r"\(reg.example/a, reg.example/b\)"):
        config_of(tmp_path, {"auths": auths}).login_for("reg.example")
    auths["reg.example"] = entry("eve", "3")
    assert pair(config_of(tmp_path, {"auths": auths}).login_for("reg.example")) == (b"eve", b"3")


def test_helpers_count_more_than_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`credHelpers` counts for its server, `credsStore` for the others; then the file itself."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    store = {"https://index.docker.io/v1/": ("hub", "1"), "https://reg.example": ("ann", "2")}
    write_helper(tmp_path, "store", helper_of(store))
    write_helper(tmp_path, "special", helper_of({"special.example": ("eve", "<3")}))
    document = {
        "auths": {
            "https://reg.example": {},
            "file.example": entry("bob", "4"),
            "own.example": entry("own", "5"),
        },
        "credsStore": "store",
        "credHelpers": {"special.example": "special", "own.example": ""},
    }
    config = config_of(tmp_path, document)
    assert pair(config.login_for("docker.io")) == (b"hub", b"1")
    assert pair(config.login_for("reg.example")) == (b"ann", b"2")
    assert pair(config.login_for("special.example")) == (b"eve", b"<3")
    assert pair(config.login_for("file.example")) == (b"bob", b"4")
    assert pair(config.login_for("own.example")) == (b"own", b"5")
    assert config.login_for("none.example") is None
    assert set(config.hosts()) == {
        "reg.example", "file.example", "own.example", "special.example"
    }  # fmt: skip


def test_a_helper_with_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user `<token>` marks an identity token also in a helper's answer."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_helper(tmp_path, "store", helper_of({"reg.example": ("<token>", "hush")}))
    login = config_of(tmp_path, {"credsStore": "store"}).login_for("reg.example")
    assert pair(login) == (b"<token>", b"hush")
    assert "hush" not in repr(login)
    with pytest.raises(UnusableLogin, match="docker-credential-other is not installed"):
        config_of(tmp_path, {"credsStore": "other"}).login_for("reg.example")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "7", '{"auths": [1]}', '{"credHelpers": {"a": 1}}', '{"credsStore": [1]}',
     "[" * 100_000],
)  # fmt: skip
def test_files_of_another_form(tmp_path: Path, content: str) -> None:
    """The error names the file and quotes nothing of it."""
    with pytest.raises(Misuse, match="is not a JSON file as Docker"):
        DockerConfig.read(write_config(tmp_path / "config.json", content))


def test_empty_and_missing_files(tmp_path: Path) -> None:
    """An empty file has no logins, and a missing one is no error."""
    assert config_of(tmp_path, "").login_for("reg.example") is None
    assert config_of(tmp_path, {"auths": None}).login_for("reg.example") is None
    assert DockerConfig.read(tmp_path / "none" / "config.json") is None
    assert DockerConfig.read(tmp_path / "config.json" / "config.json") is None


def test_unsafe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that others can write, or that is theirs, is refused; one that they read is not."""
    path = tmp_path / "config.json"
    for mode in (0o602, 0o620, 0o666):
        with pytest.raises(Misuse, match="can be written by others"):
            DockerConfig.read(write_config(path, {}, mode))
    config = DockerConfig.read(write_config(path, {}, 0o644))
    assert config is not None
    assert "the permissions 0644" in config.warning
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(Misuse, match="belongs to somebody else"):
        DockerConfig.read(write_config(path, {}))


@pytest.mark.parametrize("kind", ["pipe", "directory", "long"])
def test_things_that_are_no_file(tmp_path: Path, kind: str) -> None:
    """A named pipe is not waited for, and a file without end is not read."""
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(Misuse, match="cannot be read"):
        DockerConfig.read(path)


def test_places_of_the_files(tmp_path: Path) -> None:
    """Variables name the files; one that names no file is an error."""
    assert login_files({}, tmp_path) == [
        tmp_path / ".docker/config.json",
        tmp_path / ".config/containers/auth.json",
    ]
    file = write_config(tmp_path / "auth", {})
    environ = {
        "REGISTRY_AUTH_FILE": str(file),
        "DOCKER_CONFIG": "/d",
        "XDG_RUNTIME_DIR": "/run/user/7",
        "XDG_CONFIG_HOME": "/c",
    }
    expected = [str(file), "/d/config.json", "/run/user/7/containers/auth.json",
                "/c/containers/auth.json"]  # fmt: skip
    assert login_files(environ, tmp_path) == [Path(path) for path in expected]
    with pytest.raises(Misuse, match="REGISTRY_AUTH_FILE names"):
        login_files({"REGISTRY_AUTH_FILE": str(tmp_path / "none")}, tmp_path)


def test_the_first_usable_login(tmp_path: Path) -> None:
    """A file whose login is unusable does not hide that of the next one."""
    bad = config_of(tmp_path / "1", {"auths": {"reg.example": {"auth": "x"}}})
    good = config_of(tmp_path / "2", {"auths": {"reg.example": entry("ann", "x")}})
    login, problems = login_in([bad, good], "reg.example")
    assert (pair(login), problems) == ((b"ann", b"x"), ())
    assert login_in([good], "none.example") == (None, [])
    login, problems = login_in([bad, bad], "reg.example")
    assert login is None
    assert len(problems) == 1
