"""Tests of the configuration as a whole: files, defaults, values and methods."""

from __future__ import annotations

import json
import os
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from shiftergw.config import Config, LoadedConfig
from shiftergw.errors import ConfigurationError
from shiftergw.model.build_options import BuildLimits, SquashOptions, StageLimits
from shiftergw.model.images import Platform
from shiftergw.model.postponement import PostponeLimits
from tests.configurations import BASE, EVERY_KEY, SMALLEST, change_document, load_config


def test_every_key_is_known() -> None:
    """No key of the original or of this gateway causes a warning about an unknown key."""
    result = Config.from_document(EVERY_KEY, base=BASE, environ={})
    assert [warning for warning in result.warnings if "unknown" in warning] == []


def test_each_limit_of_a_build_arrives() -> None:
    """Every key that limits the work on an image is a member of the limits of builds."""
    limits = {
        "MaxImageSize": 1001,
        "MaxEntries": 1002,
        "MaxLayers": 1003,
        "MaxLayersSize": 1004,
        "MaxLayersEntries": 1005,
        "MaxRatio": 1006,
        "MaxNamesSize": 1007,
        "MaxPathSteps": 1008,
        "StageLimits": {"fetch": 11, "examination": 12, "conversion": 13, "transfer": 14},
    }
    config = Config.from_document(SMALLEST | limits, base=BASE, environ={}).config
    assert config.build_limits() == BuildLimits(
        size=1001,
        entries=1002,
        layers=1003,
        layers_size=1004,
        layers_entries=1005,
        ratio=1006,
        names_size=1007,
        path_steps=1008,
        stages=StageLimits(fetch=11, examination=12, conversion=13, transfer=14),
    )


def test_values_arrive() -> None:
    """Every key sets its attribute: durations in seconds, sizes in bytes."""
    config = Config.from_document(EVERY_KEY, base=BASE, environ={}).config
    system, location = config.systems["mycluster"], config.locations["registry.example.com"]
    assert config.image_expiration_timeout == 93784
    assert config.keep_untagged == 7 * 86400
    assert config.keep_layers == 86400
    assert config.max_image_size == 150 * 2**30
    assert config.build_limits() == BuildLimits(150 * 2**30, 1000)
    assert (config.user_limits.waiting, config.user_limits.running) == (5, 1)
    assert config.listen == ("tcp:5000", "unix:/run/shiftergw.socket")
    assert config.private_images_without_acl == "public"
    assert config.allow_anonymous
    assert config.metrics
    assert config.log_level == "debug"
    assert (config.pull_update_timeout, config.heartbeat_limit, config.failure_hold) == (60, 30, 1)
    assert (config.worker_threads, config.queue_limit) == (3, 10)
    assert (config.default_ost_count, config.ost_count_of("mycluster")) == (16, -1)
    assert location.name == "registry.example.com"
    assert location.url == "http://127.0.0.1:5001"
    assert location.auth_method == "basic"
    assert location.trusted_hosts == ("tokens.example.com", "[fd00::1]:8443")
    assert system.host == ("login1", "login2")
    assert system.admins == ("root", 1000)
    assert system.architecture == Platform("arm64", "v8")
    assert system.image_dir == Path("/scratch/images")
    assert system.groups_command == ("getent", "group")
    assert system.ssh is not None
    assert (system.ssh.port, system.ssh.transfer) == (2222, "scp")
    assert system.squash_options(config) == SquashOptions(
        "zstd",
        3,
        "1M",
        "2G",
        2,
        keep_setuid=True,
        enroot_files=True,
        extra=("-no-xattrs", "-no-fragments"),
    )


def test_relative_paths_start_at_the_file() -> None:
    """A relative path starts at the configuration's directory, not at the working directory."""
    config = Config.from_document(EVERY_KEY, base=BASE, environ={}).config
    system, location = config.systems["mycluster"], config.locations["registry.example.com"]
    assert system.ssh is not None
    assert system.local is not None
    assert [
        config.cache_directory, config.expand_directory, config.state_directory,
        config.secret_key_file, location.ca_certificate, system.munge_socket_path,
        system.local.image_dir, system.ssh.key, system.ssh.known_hosts,
        system.ssh.passphrase_file, Path(config.mksquashfs),
    ] == [
        BASE / name
        for name in (
            "cache", "expand", "state", "keys/secret", "ca.pem", "munge.socket", "images",
            "id_rsa", "known_hosts", "passphrase", "tools/mksquashfs",
        )
    ]  # fmt: skip


def test_a_relative_name_of_the_file_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are absolute even if the name of the file is relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    document = change_document({"CacheDirectory": "cache"})
    (tmp_path / "site" / "gateway.json").write_text("\ufeff" + json.dumps(document))
    config = Config.load(Path("site/gateway.json"), {}).config
    assert config.cache_directory == tmp_path / "site" / "cache"
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == ["gateway.json"]


def test_defaults() -> None:
    """A key that the document lacks has the default that the manual names."""
    config = load_config().config
    system, location = config.systems["mycluster"], config.locations["registry.example.com"]
    assert config.default_image_format == "squashfs"
    assert config.image_expiration_timeout is None
    assert config.mongodb_uri is None
    assert config.broker_url is None
    assert config.state_directory == Path("/var/lib/shiftergw")
    assert config.secret_key_file == Path("/var/lib/shiftergw/secret.key")
    assert config.worker_threads == min(4, len(os.sched_getaffinity(0)))
    assert config.keep_untagged == 30 * 86400
    assert config.keep_layers == 30 * 86400
    assert config.build_limits() == BuildLimits()
    assert (config.pull_update_timeout, config.heartbeat_limit, config.failure_hold) == (
        300,
        60,
        10,
    )
    assert (config.queue_limit, config.user_limits.waiting, config.user_limits.running) == (
        10_000,
        500,
        4,
    )
    assert config.private_images_without_acl == "owner"
    assert not config.allow_anonymous
    assert not config.metrics
    assert config.mksquashfs == "mksquashfs"
    assert config.log_level == "info"
    assert config.ost_count_of("mycluster") == 0
    assert location.auth_method == "token"
    assert location.trusted_hosts == ()
    assert system.admins == ()
    assert system.architecture == Platform()
    assert system.squash_options(config) == SquashOptions()


def test_state_directory_of_systemd() -> None:
    """StateDirectory defaults to the first directory of systemd; the key has priority."""
    assert load_config(STATE_DIRECTORY="/run/a:/run/b").config.secret_key_file == Path(
        "/run/a/secret.key"
    )
    config = load_config({"StateDirectory": "/here"}, STATE_DIRECTORY="/run/a").config
    assert config.state_directory == Path("/here")
    assert config.secret_key_file == Path("/here/secret.key")


def test_listen_follows_authentication() -> None:
    """Without Listen, mock uses the loopback interface; munge uses all, like the original."""
    assert load_config().config.listen == ("tcp:5000:interface=127.0.0.1",)
    munge = {"Authentication": "munge", "Platforms/mycluster/mungeSocketPath": "/run/munge"}
    assert load_config(munge).config.listen == ("tcp:5000:backlog=2048",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", None),
        ("none", ()),
        ("None", ()),
        (None, ()),
        (["alice"], ("alice",)),
        ([], ()),
        (..., ()),
    ],
)
def test_import_users(value: Any, expected: tuple[str, ...] | None) -> None:
    """Only "all" lets every user import; with an empty list, or by default, no user may."""
    changes = {} if value is ... else {"ImportUsers": value}
    assert load_config(changes).config.import_users == expected


@pytest.mark.parametrize(
    ("admins", "expected", "warnings"),
    [
        (["root", 1000], ("root", 1000), ()),
        ([], (), ()),
        (
            "root",
            ("root",),
            ("Platforms.mycluster.admins: text is read as one name; write a list",),
        ),
    ],
)
def test_admins(admins: Any, expected: tuple[str | int, ...], warnings: tuple[str, ...]) -> None:
    """Admins are names and uids; a string is one name, not many letters, and causes a warning."""
    result = load_config({"Platforms/mycluster/admins": admins})
    assert result.config.systems["mycluster"].admins == expected
    assert result.warnings == warnings


@pytest.mark.parametrize(
    ("squashfs", "level"),
    [
        ({}, 5),
        ({"compressor": "gzip", "level": 9}, 9),
        ({"compressor": "xz"}, None),
        ({"compressor": "zstd"}, None),
        ({"compressor": "zstd", "level": 22}, 22),
    ],
)
def test_level_of_the_compressor(squashfs: dict[str, Any], level: int | None) -> None:
    """The default level 5 is for gzip only; other compressors have their own default."""
    config = load_config({"Platforms/mycluster/squashfs": squashfs}).config
    assert config.systems["mycluster"].squash_options(config).level == level


@pytest.mark.parametrize("options", ["-no-xattrs -b 1M", ["-b", "1M"]])
def test_converter_options(options: Any) -> None:
    """Text is one argument, as in the original; each item of a list is an argument."""
    config = load_config({"ConverterOptions": {"squashfs": options}}).config
    expected = (options,) if isinstance(options, str) else tuple(options)
    assert config.systems["mycluster"].squash_options(config).extra == expected


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [(16, ..., 16), ("16", ..., 16), (16, 0, 0), (16, "2", 2), (..., -1, -1), ("-1", ..., -1)],
)
def test_ost_count(default: Any, own: Any, expected: int) -> None:
    """OST counts are numbers or digits as text; that of a system overrides the default."""
    counts = {"DefaultOstCount": default, "Platforms/mycluster/ostCount": own}
    changes = {path: value for path, value in counts.items() if value is not ...}
    assert load_config(changes).config.ost_count_of("mycluster") == expected


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [
        (..., ..., "packs"),
        ("whole", ..., "whole"),
        ("whole", "packs", "packs"),
        (..., "whole", "whole"),
    ],
)
def test_builder(default: Any, own: Any, expected: str) -> None:
    """The builder of a system overrides that of the site, which is packs by default."""
    builders = {"Builder": default, "Platforms/mycluster/Builder": own}
    changes = {path: value for path, value in builders.items() if value is not ...}
    config = load_config(changes).config
    assert config.systems["mycluster"].squash_options(config).builder == expected


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [(..., ..., "mksquashfs"), ("direct", ..., "direct"), ("direct", "mksquashfs", "mksquashfs")],
)
def test_packer(default: Any, own: Any, expected: str) -> None:
    """The packer of a system overrides that of the site, which is `mksquashfs` by default."""
    packers = {"Packer": default, "Platforms/mycluster/Packer": own}
    changes = {path: value for path, value in packers.items() if value is not ...}
    config = load_config(changes).config
    assert config.systems["mycluster"].squash_options(config).packer == expected


def test_the_path_of_a_url_is_removed() -> None:
    """Of a registry's URL, scheme, host and port remain; a path causes a warning."""
    result = load_config({"Locations/registry.example.com/url": "https://[FD00::1]:5000/v2/"})
    assert result.config.locations["registry.example.com"].url == "https://[fd00::1]:5000"
    assert result.warnings == (
        "the path of the registry's URL https://[FD00::1]:5000/v2/ is not used",
    )


def load_text(tmp_path: Path, content: bytes) -> LoadedConfig:
    """Load a configuration file with a content."""
    path = tmp_path / "imagemanager.json"
    path.write_bytes(content)
    return Config.load(path, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "Platforms": {,}\n}', r"imagemanager.json: line 2, column 17: this is not JSON"),
        (b"", r"line 1, column 1"),
        (b"[1]", r"it must be an object"),
        (b'{"a": "\xff"}', r"is not UTF-8"),
        (b"{}", r"Platforms: is required"),
        (rb'{"DefaultImageLocation": "\ud800"}', r"cannot be used"),
    ],
)
def test_files_without_a_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    """The error about a file that is not a valid JSON object names the mistake."""
    with pytest.raises(ConfigurationError, match=message):
        load_text(tmp_path, content)


def test_absent_file(tmp_path: Path) -> None:
    """The error about a missing file names the file and the option `--config`."""
    with pytest.raises(ConfigurationError, match=r"gone.json cannot be read.*--config"):
        Config.load(tmp_path / "gone.json", {})


def test_duplicate_key_of_a_file(tmp_path: Path) -> None:
    """A duplicate key is an error, since it is unclear which value counts."""
    text = json.dumps(SMALLEST).replace('"accesstype"', '"accesstype": "remote", "accesstype"')
    with pytest.raises(ConfigurationError, match=re.escape("Platforms.mycluster.accesstype: ")):
        load_text(tmp_path, text.encode())


def test_frozen() -> None:
    """A loaded configuration cannot be changed."""
    with pytest.raises(ValueError, match="frozen"):
        load_config().config.metrics = True


@pytest.mark.parametrize(
    ("changes", "waiting", "has_warning"),
    [
        ({}, 500, False),
        ({"QueueLimit": 1000}, 100, False),
        ({"QueueLimit": 3}, 1, False),
        ({"QueueLimit": 1000, "UserLimits": {"running": 2}}, 100, False),
        ({"QueueLimit": 1000, "UserLimits": {"waiting": 90}}, 90, False),
        ({"QueueLimit": 1000, "UserLimits": {"waiting": 600}}, 600, True),
    ],
)
def test_a_share_of_the_queue(changes: dict[str, Any], waiting: int, has_warning: bool) -> None:
    """By default a user may fill a tenth of the queue; a larger share causes a warning."""
    result = load_config(changes)
    assert result.config.waiting_per_user == waiting
    assert any("tenth of QueueLimit" in warning for warning in result.warnings) is has_warning


@pytest.mark.parametrize(
    ("changes", "seconds", "of_registry"),
    [({}, 900, 1000), ({"RegistryWait": 0, "QueueLimit": 20}, 0, 50)],
)
def test_limits_of_waits(changes: dict[str, Any], seconds: float, of_registry: int) -> None:
    """A pull waits at most 15 minutes; a tenth of the queue may wait for one registry."""
    limits = load_config(changes).config.wait_limits()
    assert limits.seconds == seconds
    assert limits.registry_pulls == PostponeLimits(of_registry, of_registry // 4)
    assert limits.delivery_seconds == 1800
    assert limits.system_pulls == PostponeLimits(of_registry // 2, of_registry // 4)


def test_a_wait_is_a_number_of_seconds() -> None:
    """The error about a wait that is not a number of seconds names the key."""
    for key, wrong in product(("RegistryWait", "DeliveryWait"), (-1, "soon")):
        with pytest.raises(ConfigurationError, match=key):
            load_config({key: wrong})
