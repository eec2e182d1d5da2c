"""The configuration of an image: the settings for the runtime, and its platform."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.errors import ManifestInvalid, NoMatchingPlatform
from shiftergw.model.images import Digest, ImageConfig
from shiftergw.oci.manifest import (
    Manifest,
    check_layers,
    check_platform,
    parse_config,
)
from tests.oci.documents import AMD64, digest, manifest, parse

# Configurations.


def config(**changes: Any) -> bytes:
    """Return a configuration with changes."""
    return json.dumps({"architecture": "amd64", "os": "linux", **changes}).encode()


def test_configuration_is_read() -> None:
    """The settings for the runtime are returned unchanged."""
    parsed_document = parse_config(
        config(
            created="2024-02-29T12:00:00.123456789+01:00",
            config={
                "Env": ["PATH=/bin", "A=ü", "B=x\ny"],
                "Entrypoint": ["/bin/sh", "-c"],
                "Cmd": ["echo 'hi'"],
                "WorkingDir": "/srv",
                "Volumes": {"/var/lib/db": {}, "/data": None},
                "Labels": {"a": "b", "n": None},
                "User": "nobody",
            },
            rootfs={"type": "layers", "diff_ids": [digest("a"), digest("b")]},
        )
    )
    assert parsed_document == ImageConfig(
        architecture="amd64",
        os="linux",
        created=1709204400,
        env=("PATH=/bin", "A=ü", "B=x\ny"),
        entrypoint=("/bin/sh", "-c"),
        cmd=("echo 'hi'",),
        workdir="/srv",
        volumes=("/data", "/var/lib/db"),
        labels={"a": "b", "n": ""},
        diff_ids=(Digest.parse(digest("a")), Digest.parse(digest("b"))),
    )


@pytest.mark.parametrize("value", [["/data"], "/data", None, 7])
def test_volumes_of_another_type(value: object) -> None:
    """Images with such a member have always been accepted; they have no volumes."""
    assert parse_config(config(config={"Volumes": value})).volumes == ()


@pytest.mark.parametrize("empty", ["{}", '{"config": null, "rootfs": null}', '{"config": {}}'])
def test_empty_configuration(empty: str) -> None:
    """Every member may be missing or null."""
    assert parse_config(empty.encode()) == ImageConfig()


@pytest.mark.parametrize(
    ("platform_text", "read"),
    [(None, ()), ([], ()), ("", ()), ("/bin/sh", ("/bin/sh",)), (["a", ""], ("a", ""))],
)
def test_entrypoint_forms(platform_text: object, read: tuple[str, ...]) -> None:
    """`Entrypoint` and `Cmd` are a list, one string, or null."""
    parsed_document = parse_config(
        config(config={"Entrypoint": platform_text, "Cmd": platform_text})
    )
    assert (parsed_document.entrypoint, parsed_document.cmd) == (read, read)


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01t00:00:01z", 1),
        ("2024-01-01T00:00:00Z", 1704067200),
        ("0001-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+14:00", 0),
        ("2024-01-01T00:00:00", 0),
        ("2024-01-01", 0),
        ("20240101T000000Z", 0),
        ("2024-13-01T00:00:00Z", 0),
        ("yesterday", 0),
        (1704067200, 0),
        (None, 0),
    ],
)
def test_dates(created: object, seconds: int) -> None:
    """An RFC 3339 date becomes seconds since 1970; any other date is 0, never an error."""
    assert parse_config(config(created=created)).created == seconds


def test_values_of_other_builders() -> None:
    """Labels may be numbers, and lists may hold null, which counts as an empty string."""
    runtime = {
        "Env": [None, "A=1", ""],
        "Cmd": ["a", None],
        "Labels": {"one": 1, "half": 0.5, "yes": True, "null": None},
    }
    config = parse_config(json.dumps({"config": runtime}).encode())
    assert config.env == ("A=1",)
    assert config.cmd == ("a", "")
    assert config.labels == {"one": "1", "half": "0.5", "yes": "true", "null": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": 1},
        {"os": []},
        {"config": []},
        {"config": {"Env": "A=1", "Cmd": 7}},
        {"config": {"Env": [1]}},
        {"config": {"Env": [None, True]}},
        {"config": {"Env": {"A": "1"}}},
        {"config": {"Entrypoint": {"a": 1}}},
        {"config": {"Cmd": [["a"]]}},
        {"config": {"WorkingDir": ["/"]}},
        {"config": {"Labels": ["a"]}},
        {"config": {"Labels": {"a": {}}}},
        {"rootfs": "layers"},
        {"rootfs": {"type": "tarball"}},
        {"rootfs": {"diff_ids": "sha256:" + 64 * "0"}},
        {"rootfs": {"diff_ids": ["sha256:0"]}},
        {"rootfs": {"diff_ids": [None]}},
    ],
)
def test_wrong_types_in_a_configuration(changes: dict[str, Any]) -> None:
    """The error names the member with the wrong type."""
    with pytest.raises(ManifestInvalid):
        parse_config(config(**changes))


def test_lone_surrogates_become_replacement_characters() -> None:
    """Text that UTF-8 cannot encode is replaced; a proper pair is one character."""
    parsed_document = parse_config(
        b'{"config": {"Env": ["A=\\ud800"], "WorkingDir": "/\\udfff", "Cmd": "\\ud83d\\ude00",'
        b' "Labels": {"\\ud800": "\\udc00"}}}'
    )
    assert parsed_document.env == ("A=\ufffd",)
    assert parsed_document.workdir == "/\ufffd"
    assert parsed_document.cmd == ("😀",)
    assert parsed_document.labels == {"\ufffd": "\ufffd"}


def test_layers_need_as_many_diff_ids() -> None:
    """Each layer needs a `diff_id`, and each `diff_id` a layer."""
    parsed_document = parse(manifest())
    assert isinstance(parsed_document, Manifest)
    check_layers(parsed_document, ImageConfig(diff_ids=(Digest.of(b"a"),)))
    for diff_ids in ((), (Digest.of(b"a"), Digest.of(b"b"))):
        with pytest.raises(ManifestInvalid, match="diff_ids"):
            check_layers(parsed_document, ImageConfig(diff_ids=diff_ids))


def test_configuration_for_another_platform() -> None:
    """An image without an index is an error if its configuration names another platform."""
    check_platform(ImageConfig(), AMD64)
    check_platform(parse_config(config(architecture="x86_64")), AMD64)
    with pytest.raises(NoMatchingPlatform, match="made for linux/arm64"):
        check_platform(parse_config(config(architecture="arm64")), AMD64)
    with pytest.raises(NoMatchingPlatform, match="made for windows/amd64"):
        check_platform(parse_config(config(os="Windows")), AMD64)
