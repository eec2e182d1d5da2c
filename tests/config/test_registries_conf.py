"""registries.conf of podman and skopeo: the names that it gives a meaning, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shiftergw.config import Config, LoadedConfig
from shiftergw.config.registries_conf import Endpoint, MirrorRule, RegistryRule, read_rules
from shiftergw.errors import BadRequest, ConfigurationError, NotAllowed
from shiftergw.model.references import ImageReference
from tests.configurations import SMALLEST

MIRROR = '[[registry]]\nlocation = "a"\n{}[[registry.mirror]]\nlocation = "b"\n'

EXAMPLE = """
unqualified-search-registries = ["example.com"]

[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"

[[registry.mirror]]
location = "mirror-0.example.net/mirror-for-foo"

[[registry.mirror]]
location = "mirror-1.example.net:5000/mirrors/foo"
insecure = true
pull-from-mirror = "digest-only"

[[registry]]
location = "registry.example.com:8443"
mirror-by-digest-only = true

[[registry.mirror]]
location = "mirror.example.com"

[[registry]]
prefix = "*.example.org"
[[registry.mirror]]
location = "mirror.example.com/org"

[[registry]]
prefix = "evil.example.org"
location = "evil.example.org"
blocked = true

[[registry]]
prefix = "docker.io"
location = "docker.io"
"""


def write(directory: Path, content: str, **parts: str) -> Path:
    """Write registries.conf and its drop-in files, by their names without `.conf`."""
    file = directory / "registries.conf"
    file.write_text(content)
    if parts:
        drop_ins = directory / "registries.conf.d"
        drop_ins.mkdir()
        for name, text in parts.items():
            (drop_ins / f"{name}.conf").write_text(text)
    return file


def load(directory: Path, content: str) -> LoadedConfig:
    """Load a configuration with this registries.conf."""
    write(directory, content)
    file = directory / "imagemanager.json"
    file.write_text(json.dumps(SMALLEST | {"RegistriesConf": "registries.conf"}))
    return Config.load(file, {})


def test_rules(tmp_path: Path) -> None:
    """All keys of the format that concern pulls are read."""
    rules, warnings = read_rules(write(tmp_path, EXAMPLE))
    foo, host, domain, evil, hub = rules.rules
    assert foo == RegistryRule(
        "example.com",
        "foo",
        Endpoint("https://internal.example.net", "bar"),
        mirrors=(
            MirrorRule(Endpoint("https://mirror-0.example.net", "mirror-for-foo")),
            MirrorRule(Endpoint("http://mirror-1.example.net:5000", "mirrors/foo"), "digest-only"),
        ),
    )
    assert host.prefix == "registry.example.com:8443"
    assert host.mirrors == (MirrorRule(Endpoint("https://mirror.example.com"), "digest-only"),)
    assert (domain.host, domain.endpoint) == ("*.example.org", None)
    assert evil.is_blocked
    assert hub.endpoint == Endpoint("https://docker.io")
    assert [warning.partition(": has")[0].partition(": the")[0] for warning in warnings] == [
        f"RegistriesConf: {tmp_path}/registries.conf: unqualified-search-registries",
        f"RegistriesConf: {tmp_path}/registries.conf: [[registry]] 1, mirror 2: insecure",
    ]


@pytest.mark.parametrize(
    ("host", "repository", "prefix"),
    [
        ("example.com", "foo/app", "example.com/foo"),
        ("example.com", "foo", "example.com/foo"),
        ("EXAMPLE.com:443", "foo", "example.com/foo"),
        ("example.com", "foobar/app", None),
        ("example.com", "bar/foo", None),
        ("registry.example.com:8443", "x", "registry.example.com:8443"),
        ("registry.example.com", "x", None),
        ("a.b.example.org", "x", "*.example.org"),
        ("example.org", "x", None),
        ("evilexample.org", "x", None),
        ("evil.example.org", "x", "evil.example.org"),
        ("evil.example.org:8443", "x", "evil.example.org"),
        ("example.com:8443", "foo", None),
        ("docker.io", "ubuntu", "docker.io"),
        ("index.docker.io", "library/ubuntu", "docker.io"),
    ],
)
def test_the_longest_prefix_counts(
    tmp_path: Path, host: str, repository: str, prefix: str | None
) -> None:
    """A prefix ends at a slash, and the most special one of a name is used."""
    rules, _ = read_rules(write(tmp_path, EXAMPLE))
    rule = rules.find(host, repository)
    assert (rule and rule.prefix) == prefix


def test_official_images_have_their_namespace(tmp_path: Path) -> None:
    """A prefix below `docker.io/library` is for names without a namespace, too."""
    text = '[[registry]]\nprefix = "docker.io/library/alpine"\nlocation = "mirror.example/alpine"'
    rules, _ = read_rules(write(tmp_path, text))
    assert rules.find("docker.io", "alpine") is not None
    assert rules.find("docker.io", "library/alpine") is not None
    assert rules.find("docker.io", "alpine/git") is None


def test_drop_in_files_replace_rules(tmp_path: Path) -> None:
    """Drop-in files are read in the order of their names; a later rule of a prefix replaces it."""
    first = (
        '[[registry]]\nlocation = "a.example"\nblocked = true\n[[registry]]\nlocation = "b.example"'
    )
    file = write(
        tmp_path,
        first,
        **{
            "20-c": '[[registry]]\nprefix = "a.example"\nlocation = "c.example"',
            "10-d": '[[registry]]\nprefix = "a.example"\nlocation = "d.example"\nblocked = true',
        },
    )
    (tmp_path / "registries.conf.d" / "30-e.toml").write_text("not read")
    rules, _ = read_rules(file)
    assert [rule.prefix for rule in rules.rules] == ["a.example", "b.example"]
    assert rules.rules[0].endpoint == Endpoint("https://c.example")
    assert not rules.rules[0].is_blocked


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[registry]", "this is not TOML: "),
        ("[[registry]]\nlocation = 1", "[[registry]] 1: location: must be text"),
        ('[[registry]]\nlocation = "a"\ninsecure = "yes"', "insecure: must be true or false"),
        ('[[registry]]\nlocation = "https://a"', "must be HOST[:PORT][/PATH], without https://"),
        ('[[registry]]\nprefix = "a/b:tag"\nlocation = "c"', "must be HOST[:PORT][/PATH]"),
        ('[[registry]]\nprefix = "a"', "location is required"),
        ("[[registry]]", "must be HOST[:PORT][/PATH]"),
        ('[[registry]]\nprefix = "*.a/b"', "is followed by a domain alone"),
        ('[[registry]]\nprefix = "*.a:5000"', "is followed by a domain alone"),
        ('[[registry]]\nprefix = "a.*.b"\nlocation = "c"', "must be HOST[:PORT][/PATH]"),
        ('registry = "a"', "registry: must be an array of tables"),
        ('[[registry]]\nlocation = "a"\nmirror = ["b"]', "mirror: must be an array of tables"),
        ('[[registry]]\nlocation = "a"\n[[registry.mirror]]', "[[registry]] 1, mirror 1: location"),
        (
            MIRROR.format("") + 'pull-from-mirror = "never"',
            "must be one of all, digest-only, tag-only",
        ),
        (
            MIRROR.format("mirror-by-digest-only = true\n") + 'pull-from-mirror = "all"',
            "is not allowed together with mirror-by-digest-only",
        ),
        ('[[registry]]\nlocation = "a"\n[[registry]]\nlocation = "a"', "appears more than once"),
        ('[registries.search]\nregistries = ["a"]', "this is version 1 of the format"),
    ],
)
def test_problems(tmp_path: Path, text: str, problem: str) -> None:
    """A problem is an error at the start that names the file and the place in it."""
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert f"RegistriesConf: {tmp_path}/registries.conf: " in caught.value.what
    assert problem in caught.value.what


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file is an error, a missing directory of drop-in files is none."""
    with pytest.raises(ConfigurationError, match=r"registries.conf: cannot be read: No such file"):
        read_rules(tmp_path / "registries.conf")
    file = write(tmp_path, "", x="")
    assert read_rules(file)[0].rules == ()
    (tmp_path / "registries.conf.d" / "x.conf").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"x.conf: line 1: this is not UTF-8"):
        read_rules(file)


def test_names_of_images(tmp_path: Path) -> None:
    """Locations win; blocked names are refused; names without a host mean the default location."""
    text = EXAMPLE + '[[registry]]\nlocation = "registry.example.com"\nblocked = true'
    config = load(tmp_path, text).config
    for name, expected in {
        "registry.example.com/x:1": ("registry.example.com", "x"),
        "ubuntu": ("registry.example.com", "ubuntu"),
        "example.com/foo/app:1": ("example.com", "foo/app"),
        "Sub.Example.org/x": ("sub.example.org", "x"),
        "index.docker.io/ubuntu": ("docker.io", "ubuntu"),
    }.items():
        assert config.locate(ImageReference.parse(name)) == expected
    with pytest.raises(NotAllowed, match=r"blocked evil.example.org"):
        config.locate(ImageReference.parse("evil.example.org/x"))
    with pytest.raises(BadRequest, match=r"no registry example.com"):
        config.locate(ImageReference.parse("example.com/other"))
