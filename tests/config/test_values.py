"""Tests of single values: errors name the path, the problem and the allowed values."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from tests.configurations import BASE, EVERY_KEY, load_config


def refusal(changes: dict[str, Any]) -> str:
    """Return the error about the smallest configuration with changes."""
    with pytest.raises(ConfigurationError) as caught:
        load_config(changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("Platforms/mycluster/local/imageDir", 5, "must be text (it is 5)"),
        ("Platforms/mycluster/local/imageDir", "", "must be a path"),
        ("Platforms/mycluster/accesstype", "nfs", "must be 'local' or 'remote' (it is \"nfs\")"),
        ("Platforms/mycluster/admins", 7, "must be a list of user names and uids (it is 7)"),
        ("Platforms/mycluster/admins", [True], "must be a list of user names"),
        ("Platforms/mycluster/admins", [-1], "must be a list of user names"),
        ("Platforms/mycluster/architecture", "x86 64", "not an architecture"),
        ("Platforms/mycluster/architecture", 64, "not an architecture"),
        ("Platforms/mycluster/groupsCommand", "getent", "must be a list of texts"),
        ("Platforms/mycluster/FileMode", "0666", 'must be "0600", "0640" or "0644"'),
        ("Platforms/mycluster/FileMode", 644, 'must be "0600", "0640" or "0644"'),
        ("Platforms/mycluster/squashfs/compressor", "lzma", "must be 'gzip', 'lzo', 'lz4', 'xz'"),
        ("Platforms/mycluster/squashfs/level", 10, "must be 1 to 9 with gzip (it is 10)"),
        ("Platforms/mycluster/squashfs/level", True, "must be a whole number (it is true)"),
        ("Platforms/mycluster/squashfs/level", 0, "must be 1 to 9 with gzip (it is 0)"),
        ("Platforms/mycluster/squashfs/blockSize", "96K", "must be one of 4K, 8K"),
        ("Platforms/mycluster/squashfs/memory", "lots", 'must be text such as "512M"'),
        ("Platforms/mycluster/squashfs/processors", -1, "must be 0 or more (it is -1)"),
        ("Platforms/mycluster/squashfs", [], "must be an object (it is a list)"),
        ("Platforms/mycluster", "local", "must be an object"),
        ("Platforms", {}, "must not be empty"),
        ("Locations/registry.example.com/remotetype", "globus", "must be 'dockerv2'"),
        ("Locations/registry.example.com/url", "registry:5000", "must be https://"),
        ("Locations/registry.example.com/url", "https://h:port/", "must be a URL"),
        ("Locations/registry.example.com/trustedHosts", ["a/b"], 'must be a list of "host"'),
        ("Locations/registry.example.com/trustedHosts", "a", "must be a list of texts"),
        ("DefaultImageFormat", "cramfs", "must be 'squashfs' (it is \"cramfs\")"),
        ("DefaultImageFormat", "ext4", "must be 'squashfs'"),
        ("PullUpdateTimeout", "soon", 'must be a number (it is "soon")'),
        ("PullUpdateTimeout", -1, "must be 0 or more"),
        ("HeartbeatLimit", 0, "must be more than 0"),
        ("ProxiedHosts", ["*"], 'must be a list of "host"'),
        ("ProxiedHosts", ["https://a"], 'must be a list of "host"'),
        ("ProxiedHosts", "a", "must be a list of texts"),
        ("RegistryLeastRate", -1, "must be 0 or more"),
        ("RegistryLeastRate", "10k", "must be a whole number"),
        ("RegistryDocumentTime", 0, "must be more than 0"),
        ("FailureHold", float("inf"), "must be a finite number"),
        ("FailureHold", 0, "must be 1 or more"),
        ("ImageExpirationTimeout", 90, 'must be "days:hours:minutes:seconds"'),
        ("KeepUntagged", "30:00", 'must be "days:hours:minutes:seconds"'),
        ("WebLimits/proxies", ["10.0.0.300"], "must be a list of addresses or networks"),
        ("WebLimits/proxies", ["gateway.example"], "must be a list of addresses or networks"),
        ("KeepLayers", 30, 'must be "days:hours:minutes:seconds"'),
        ("MaxImageSize", "200 tons", 'must be a number of bytes, or text such as "200GB"'),
        ("MaxImageSize", 0, "must be more than 0"),
        ("MaxImageSize", True, "must be a whole number"),
        ("DefaultOstCount", "many", "must be a number of OSTs"),
        ("DefaultOstCount", -2, "must be a number of OSTs"),
        ("DefaultOstCount", True, "must be a number of OSTs"),
        ("Platforms/mycluster/ostCount", 2001, "at most 2000, or -1 for all"),
        ("WorkerThreads", 1.5, "must be a whole number"),
        ("WorkerThreads", 0, "must be 1 or more"),
        ("Metrics", "maybe", "must be true or false"),
        ("Builder", "direct", "must be 'whole' or 'packs'"),
        ("Platforms/mycluster/Builder", "Packs", "must be 'whole' or 'packs'"),
        ("ConverterOptions", ["-b"], "must be an object (it is a list)"),
        ("ConverterOptions/squashfs", [1], "must be text or a list of texts (it is a list)"),
        ("ImportUsers", "alice", 'must be "all", "none" or a list of user names'),
        ("Listen", [], "must not be empty"),
        ("Listen", 5000, "must be text or a list of texts"),
        ("Mksquashfs", "", "must be the name or the path of a program"),
        ("CacheDirectory", ..., "is required"),
        ("StateDirectory", None, "must be text (it is null)"),
        ("LogLevel", "loud", "must be 'debug', 'info', 'warn', 'error' or 'critical'"),
        ("Authentication", "none", "must be 'munge' or 'mock'"),
        ("MongoDBURI", 5, "must be text"),
        ("MongoDBURI", "", "must be mongodb://"),
        ("MongoDB", "", "must be a name"),
        ("MongoDB", "Shifter Images", 'must be a name of at most 63 bytes, without / \\ . " $'),
        ("MongoDB", "a" * 64, "must be a name of at most 63 bytes"),
        ("MongoDB", "admin", "must not be a database of the server itself"),
    ],
)
def test_invalid_values(path: str, value: Any, message: str) -> None:
    """One line names the path of an invalid value, the value, and the allowed values."""
    place = path.replace("/", ".")
    (line,) = [line for line in refusal({path: value}).splitlines() if line.startswith(place)]
    assert line.startswith(f"{place}: ")
    assert message in line


@pytest.mark.parametrize("compressor", ["xz", "lz4"])
def test_level_of_a_compressor_without_levels(compressor: str) -> None:
    """A level for a compressor without levels is refused, as mksquashfs would refuse it."""
    error = refusal({"Platforms/mycluster/squashfs": {"compressor": compressor, "level": 5}})
    assert f"Platforms.mycluster.squashfs.level: {compressor} has no levels: remove it" in error


def test_level_of_an_unknown_compressor() -> None:
    """An unknown compressor is one problem; its level is not checked."""
    error = refusal({"Platforms/mycluster/squashfs": {"compressor": "rar", "level": 99}})
    assert "squashfs.compressor: must be" in error
    assert "squashfs.level" not in error


def test_remote_path_is_absolute() -> None:
    """A relative image directory of a remote system is refused."""
    ssh = {"username": "shifter", "imageDir": "images"}
    remote = {"accesstype": "remote", "host": ["login1"], "ssh": ssh}
    error = refusal({"Platforms/mycluster": remote})
    assert "Platforms.mycluster.ssh.imageDir: must be an absolute path on the system" in error


def test_passwords_are_not_quoted() -> None:
    """Neither an error nor `repr` quotes a value that may contain a password."""
    error = refusal({"Locations/registry.example.com/url": "https://user:secret@registry/"})
    assert "no user" in error
    assert "secret" not in error
    config = Config.from_document(EVERY_KEY, base=BASE, environ={}).config
    assert "secret@" not in repr(config)


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://",
        "mongodb:///Shifter",
        "mongodb+srv://me:secret@db.example.com/",
        "postgres://me:secret@db/",
        "mongodb://me:secret@db:port/",
        "mongodb://me:secret@db:99999/",
        "mongodb://me:@secret@db/",
        "mongodb://me:/secret@db/",
        "mongodb://me:secret@db,,other/",
        "mongodb://me:secret@db\n/",
        "me:secret",
        ["secret"],
    ],
)
def test_invalid_uris_of_databases(uri: Any) -> None:
    """The error about an invalid MongoDBURI does not quote it, since it may have a password."""
    error = refusal({"MongoDBURI": uri, "MongoDB": "Shifter"})
    assert error.splitlines()[1].startswith("MongoDBURI: must be ")
    assert "secret" not in error
    assert ("%40" in error) is (str(uri).count("@") > 1)


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://localhost/",
        "localhost:27017",
        "mongodb://db1.example.com:27018,db2.example.com,[::1]:5/Shifter?replicaSet=rs0&tls=true",
        "mongodb://me:p%40ss@%2Frun%2Fmongodb-27017.sock",
    ],
)
def test_uris_of_databases(uri: str) -> None:
    """The URI of a host, of a replica set and of a socket is accepted and stays unchanged."""
    config = load_config({"MongoDBURI": uri, "MongoDB": "Shifter"}).config
    assert config.mongodb_uri == uri
    assert uri not in repr(config)


def test_all_problems_at_once() -> None:
    """The error has one line for each problem of the configuration."""
    lines = refusal(
        {
            "MaxEntries": 0,
            "Metrics": 2,
            "DefaultImageLocation": "elsewhere",
            "Platforms/other": {"accesstype": "local"},
            "Platforms/mycluster/local": {},
        }
    ).splitlines()
    assert sorted(line.partition(":")[0] for line in lines[1:]) == [
        "DefaultImageLocation",
        "MaxEntries",
        "Metrics",
        "Platforms.mycluster.local.imageDir",
        "Platforms.other.local",
    ]


def test_paths_that_a_shell_would_expand() -> None:
    """`~` and `$` stay in a path, as in the original gateway, and cause a warning."""
    result = load_config({"CacheDirectory": "~/cache", "ExpandDirectory": "/scratch/$USER/x"})
    assert result.config.cache_directory == BASE / "~/cache"
    for path in ("~/cache", "/scratch/$USER/x"):
        (warning,) = [text for text in result.warnings if path in text]
        assert "write an absolute path" in warning
