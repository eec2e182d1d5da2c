"""imagemanager.json: every key, its default, and the meaning of old configurations."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.configurations import EVERY_KEY, SMALLEST, change_document
from tests.golden import options
from tests.golden.records import check


def remote_system(**ssh: Any) -> dict[str, Any]:
    """Return a remote system; `ssh` are keys of its section `ssh`."""
    place = {"username": "shifter", "imageDir": "/scratch/images"}
    return {"accesstype": "remote", "host": ["login1"], "ssh": {**place, **ssh}}


OLD: dict[str, dict[str, Any]] = {
    "numbers as text": {"PullUpdateTimeout": "60", "WorkerThreads": "3", "FailureHold": "2.5"},
    "truth as text": {"Metrics": "True", "AllowAnonymous": "no", "ENABLE_LABELS": 1},
    "levels of Python": {"LogLevel": "WARNING"},
    "an old type": {"Locations/registry.example.com/remotetype": "dockerhub"},
    "one admin as text": {"Platforms/mycluster/admins": "root"},
    "one argument as text": {"ConverterOptions": {"squashfs": "-no-xattrs"}},
    "nothing": {"HeartbeatLimit": None, "examiner": None},
    "everybody imports": {"ImportUsers": "all"},
    "nobody imports": {"ImportUsers": "None"},
    "sizes": {"MaxImageSize": "150GiB", "MaxListSize": 1000, "MaxNamesSize": "1 GB"},
    "keys that are ignored": {
        "ConvertOptions": {},
        "DefaultImageRemote": "dockerv2",
        "DefaultLustreReplication": 1,
        "PullUpdateTime": 1,
        "Platforms/mycluster/usergroupService": "local",
        "Platforms/mycluster/mountCommand": "x",
        "Platforms/mycluster/use_external": True,
        "Locations/registry.example.com/authentication": "http",
    },
    "a key that is unknown": {"FailureHoldd": 1},
    "ssh options": {
        "Platforms/mycluster": remote_system(
            key="/etc/id",
            sshCmdOptions=["-p2222", "-o", "UserKnownHostsFile=/etc/known"],
            scpCmdOptions=["-c", "aes128-ctr", "-oConnectTimeout=1m"],
        )
    },
    "relative paths": {"CacheDirectory": "cache", "SecretKeyFile": "keys/secret"},
}
"""Changes of the smallest configuration that the original or an earlier gateway accepts."""

INVALID_CHANGES: dict[str, dict[str, Any]] = {
    "examiner": {"examiner": "/usr/bin/examiner"},
    "a proxy of ssh": {"Platforms/mycluster": remote_system(sshCmdOptions=["-J", "bastion"])},
    "a passphrase with openssh": {
        "Platforms/mycluster": remote_system(transport="openssh", passphraseFile="/etc/passphrase")
    },
    "mock for everybody": {"Listen": "tcp:5000"},
    "another format": {"DefaultImageFormat": "ext4"},
    "a broker without MongoDB": {"BrokerURL": "amqp://broker/"},
    "a database without a name": {"MongoDBURI": "mongodb://db/"},
    "no directories": {"CacheDirectory": ..., "ExpandDirectory": ..., "Locations": ...},
}
"""Changes with which the gateway does not start."""


def _with_processors(values: dict[str, Any]) -> dict[str, Any]:
    """Return values without those that depend on the machine."""
    processors = min(4, len(os.sched_getaffinity(0)))
    return values | (
        {"WorkerThreads": "processors"} if values["WorkerThreads"] == processors else {}
    )


def test_keys() -> None:
    """Each key has the recorded name, default and choices."""
    check("configuration-keys", options.configuration_keys())


def test_values() -> None:
    """The smallest configuration has all defaults, and each key can be set to a value."""
    smallest, _ = options.read_configuration(SMALLEST)
    unkept = (
        "examiner",
        "Platforms/mycluster/ssh/passphraseFile",
    )
    document = change_document(dict.fromkeys(unkept, ...), EVERY_KEY)
    all_values, warnings = options.read_configuration(document)
    values = {"smallest": _with_processors(smallest), "every key": all_values, "warnings": warnings}
    check("configuration-values", values)


def test_old_forms() -> None:
    """Values of old configurations have the recorded meaning, and most cause a warning."""
    smallest, _ = options.read_configuration(SMALLEST)
    readings = {}
    for name, changes in OLD.items():
        values, warnings = options.read_configuration(change_document(changes))
        differences = {key: value for key, value in values.items() if smallest[key] != value}
        readings[name] = {"values": differences, "warnings": warnings}
    check("configuration-old-forms", readings)


def test_refusals() -> None:
    """The error about an invalid value names its key."""
    keys = {}
    for name, changes in INVALID_CHANGES.items():
        with pytest.raises(options.ConfigurationError) as refusal:
            options.read_configuration(change_document(changes))
        lines = [line.partition(": ") for line in refusal.value.what.splitlines()]
        keys[name] = sorted(key for key, separator, _ in lines if separator)
    check("configuration-refusals", keys)


def test_environment() -> None:
    """The environment variables that the program reads have the recorded names."""
    smallest, _ = options.read_configuration(SMALLEST)
    effects: dict[str, Any] = {}
    for name, value in (
        ("STATE_DIRECTORY", "/var/lib/one:/var/lib/two"),
        ("ENABLE_LABELS", ""),
        ("DISABLE_ACL_METADATA", ""),
    ):
        values, _ = options.read_configuration(SMALLEST, **{name: value})
        effects[name] = {key: value for key, value in values.items() if smallest[key] != value}
    effects |= {
        name: str(options.configuration_file({name: "/etc/shiftergw"}))
        for name in ("GWCONFIG", "CONFIG_PATH")
    }
    check("configuration-environment", effects)
