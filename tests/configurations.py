"""Configurations for tests: the smallest valid one, one with every key, and their changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiftergw.config import Config, LoadedConfig

BASE = Path("/etc/shiftergw")

SMALLEST: dict[str, Any] = {
    "Authentication": "mock",
    "DefaultImageLocation": "registry.example.com",
    "CacheDirectory": "/images/cache",
    "ExpandDirectory": "/images/expand",
    "Locations": {"registry.example.com": {"remotetype": "dockerv2"}},
    "Platforms": {"mycluster": {"accesstype": "local", "local": {"imageDir": "/images"}}},
}


# Every key of the original gateway and of this one, with a valid value.
EVERY_KEY: dict[str, Any] = {
    "Authentication": "munge",
    "CacheDirectory": "cache",
    "ExpandDirectory": "expand",
    "DefaultImageLocation": "registry.example.com",
    "DefaultImageFormat": "squashfs",
    "ImageExpirationTimeout": "1:02:03:04",
    "PullUpdateTimeout": 60,
    "PullUpdateTime": 60,
    "WorkerThreads": 3,
    "Metrics": True,
    "ImportUsers": ["alice"],
    "Builder": "whole",
    "Packer": "direct",
    "ConverterOptions": {"squashfs": ["-no-xattrs", "-no-fragments"], "cramfs": "-n"},
    "ConvertOptions": {},
    "examiner": "/usr/bin/examiner",
    "LogLevel": "debug",
    "MongoDBURI": "mongodb://user:secret@localhost/",
    "MongoDB": "Shifter",
    "DefaultLustreReplication": 1,
    "DefaultOstCount": 16,
    "DefaultImageRemote": "dockerv2",
    "StateDirectory": "state",
    "SecretKeyFile": "keys/secret",
    "RegistriesDirectory": "registries.d",
    "Listen": ["tcp:5000", "unix:/run/shiftergw.socket"],
    "AdminListen": "gateway.example.com:9190",
    "AdminTokenFile": "admin.token",
    "AdminCertificate": "admin.pem",
    "AdminKey": "admin.key",
    "HeartbeatLimit": 30,
    "WorkerWait": 300,
    "FailureHold": 1,
    "RegistryWait": 120,
    "DeliveryWait": 240,
    "ScheduledExpiry": True,
    "KeepUntagged": "7:00:00:00",
    "KeepLayers": "1:00:00:00",
    "ScrubCache": "3:00:00:00",
    "PrivateImagesWithoutAcl": "public",
    "AllowAnonymous": True,
    "QueueLimit": 10,
    "UserLimits": {"waiting": 5, "running": 1},
    "WebLimits": {"connections": 100, "perPeer": 20, "requestTime": 5, "proxies": ["10.0.0.0/8"]},
    "MaxImageSize": "150GiB",
    "MaxEntries": 1000,
    "Mksquashfs": "tools/mksquashfs",
    "UploadDirectory": "uploads",
    "MaxUploadSize": "10GB",
    "UploadQuota": "20GB",
    "UploadSpace": "30GB",
    "UploadKeep": "0:12:00:00",
    "GatewayURL": "http://gateway.example.com:5000/images/",
    "ImportCommand": ["sudo", "-n", "-u", "{user}", "cat", "--", "{path}"],
    "BrokerURL": "amqp://user:secret@broker/",
    "BrokerAway": "refuse",
    "Locations": {
        "registry.example.com": {
            "remotetype": "dockerv2",
            "url": "http://127.0.0.1:5001",
            "sslcacert": "ca.pem",
            "authMethod": "basic",
            "authentication": "http",
            "trustedHosts": ["Tokens.Example.com", "[fd00::1]:8443"],
            "clientCertificate": "client.pem",
            "clientKey": "client.key",
            "leastTls": "1.3",
            "mirrors": [
                "https://mirror.example.com/proxy",
                {
                    "url": "https://mirror.example.com:5000",
                    "prefix": "hub",
                    "login": "mirror.login",
                    "standalone": True,
                },
            ],
        },
        "*": {"remotetype": "dockerv2", "allow": ["*.example.org"], "deny": ["bad.example.org"]},
    },
    "RegistriesConf": "registries.conf",
    "Platforms": {
        "mycluster": {
            "mungeSocketPath": "munge.socket",
            "accesstype": "remote",
            "host": ["login1", "login2"],
            "local": {"imageDir": "images"},
            "ssh": {
                "username": "shifter",
                "imageDir": "/scratch/images",
                "key": "id_rsa",
                "sshCmdOptions": ["-v"],
                "scpCmdOptions": ["-q"],
                "port": 2222,
                "knownHosts": "known_hosts",
                "passphraseFile": "passphrase",
                "transfer": "scp",
                "transport": "openssh",
                "verify": "sample",
            },
            "admins": ["root", 1000],
            "use_external": True,
            "policy_file": "policy.json",
            "usergroupService": "local",
            "mountCommand": "mount",
            "architecture": "arm64/v8",
            "squashfs": {
                "compressor": "zstd",
                "level": 3,
                "blockSize": "1M",
                "memory": "2G",
                "processors": 2,
                "keepSetuid": True,
            },
            "groupsCommand": ["getent", "group"],
            "ostCount": -1,
            "Builder": "packs",
            "Packer": "mksquashfs",
            "FileMode": "0640",
            "EnrootFiles": True,
        }
    },
}


def change_document(
    changes: Mapping[str, Any], document: Mapping[str, Any] = SMALLEST
) -> dict[str, Any]:
    """Return a copy of a document with changes, by paths such as `Platforms/mycluster`.

    The value `...` removes a key.
    """
    result = copy.deepcopy(dict(document))
    for path, value in changes.items():
        *sections, key = path.split("/")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
        if value is ...:
            del inner[key]
        else:
            inner[key] = value
    return result


def load_config(changes: Mapping[str, Any] | None = None, **environ: str) -> LoadedConfig:
    """Return the smallest configuration with changes, as the program loads it."""
    return Config.from_document(change_document(changes or {}), base=BASE, environ=environ)
