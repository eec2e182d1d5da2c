"""The objects within imagemanager.json: systems, registries, limits.

As in `config`, the keys are the aliases of the fields and every default stands here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from shiftergw.config.document import Section
from shiftergw.config.ssh_options import SshOptions, translated
from shiftergw.config.values import (
    Architecture,
    BlockSize,
    Hosts,
    LocalPath,
    Memory,
    Networks,
    OstCount,
    PositiveSeconds,
    RegistryUrl,
    RemotePath,
    Texts,
    Users,
)
from shiftergw.image import (
    GZIP_LEVEL,
    HIGHEST_LEVEL,
    Compressor,
    Platform,
    SquashOptions,
    StageLimits,
)

if TYPE_CHECKING:
    from shiftergw.config import Config


class Squash(Section):
    """`Platforms.S.squashfs`: how images for a system are compressed."""

    compressor: Compressor = Field("gzip", alias="compressor")
    level: int | None = Field(None, alias="level")
    block_size: BlockSize = Field("128K", alias="blockSize")
    memory: Memory = Field("512M", alias="memory")
    processors: int = Field(0, alias="processors", ge=0)
    keep_setuid: bool = Field(default=False, alias="keepSetuid")

    @field_validator("level")
    @classmethod
    def _level_of_compressor(cls, level: int | None, info: ValidationInfo) -> int | None:
        compressor = info.data.get("compressor")
        if level is None or compressor is None:
            return level
        highest = HIGHEST_LEVEL.get(compressor)
        if highest is None:
            raise ValueError(f"{compressor} has no levels: remove it")
        if not 1 <= level <= highest:
            raise ValueError(f"must be 1 to {highest} with {compressor}")
        return level


class LocalDelivery(Section):
    """`Platforms.S.local`: the image directory of a system that this machine sees."""

    is_mounted: ClassVar[bool] = True
    image_dir: LocalPath = Field(alias="imageDir")


class SshDelivery(Section):
    """`Platforms.S.ssh`: how images reach a system that this machine does not see.

    The properties add what the options of old configurations mean; the keys have priority.
    """

    is_mounted: ClassVar[bool] = False
    username: str = Field(alias="username", min_length=1)
    image_dir: RemotePath = Field(alias="imageDir")
    key: LocalPath | None = Field(None, alias="key")
    ssh_cmd_options: Texts = Field((), alias="sshCmdOptions")
    scp_cmd_options: Texts = Field((), alias="scpCmdOptions")
    port: int = Field(22, alias="port", ge=1, le=65535)
    known_hosts: LocalPath | None = Field(None, alias="knownHosts")
    passphrase_file: LocalPath | None = Field(None, alias="passphraseFile")
    transfer: Literal["sftp", "scp"] = Field("sftp", alias="transfer")
    transport: Literal["conch", "openssh"] = Field("conch", alias="transport")
    verify: Literal["sha256", "sample"] = Field("sha256", alias="verify")

    @property
    def options(self) -> SshOptions:
        """Return what the keys, and behind them the options, ask of our own SSH."""
        explicit: dict[str, tuple[str, object]] = {"user": ("username", self.username)}
        if "port" in self.model_fields_set:
            explicit["port"] = ("port", self.port)
        if self.key is not None:
            explicit["key"] = ("key", self.key)
        if self.known_hosts is not None:
            explicit["known_hosts"] = ("knownHosts", self.known_hosts)
        return translated(self.ssh_cmd_options, self.scp_cmd_options, explicit)

    @property
    def login_port(self) -> int:
        """Return the port of the SSH server."""
        return self.options.port or self.port

    @property
    def key_file(self) -> Path | None:
        """Return the private key, None for those of an agent."""
        return _expanded(self.options.key)

    @property
    def known_hosts_file(self) -> Path | None:
        """Return the list of known hosts, None for those that OpenSSH reads."""
        return _expanded(self.options.known_hosts)

    @property
    def ciphers(self) -> tuple[str, ...]:
        """Return the ciphers to offer, the best first; none for all of ours."""
        return self.options.ciphers

    @property
    def connect_seconds(self) -> float | None:
        """Return the limit on making a connection, None for the default."""
        return self.options.connect_seconds


def _expanded(path: Path | None) -> Path | None:
    """Return a path with the home that `~` means, if there is one."""
    if path is not None:
        with suppress(RuntimeError):
            return path.expanduser()
    return path


Delivery = LocalDelivery | SshDelivery
"""How images get into the image directory of a system: one section for each kind of system.

`is_mounted` is true for a directory that this machine sees.
"""


class System(Section):
    """`Platforms.S`: one cluster, called `name`."""

    never_read: ClassVar[frozenset[str]] = frozenset(
        {"usergroupService", "mountCommand", "use_external"}
    )

    name: str = ""
    munge_socket_path: LocalPath | None = Field(None, alias="mungeSocketPath")
    access_type: Literal["local", "remote"] = Field(alias="accesstype")
    local: LocalDelivery | None = Field(None, alias="local")
    ssh: SshDelivery | None = Field(None, alias="ssh")
    host: Texts = Field((), alias="host")
    admins: Users = Field((), alias="admins")
    architecture: Architecture = Field(Platform(), alias="architecture")
    squashfs: Squash = Field(default_factory=Squash.model_construct, alias="squashfs")
    ost_count: OstCount | None = Field(None, alias="ostCount")
    groups_command: Texts = Field((), alias="groupsCommand")
    policy_file: str | None = Field(None, alias="policy_file")

    @property
    def delivery(self) -> Delivery:
        """Return the section that `accesstype` selects."""
        section = {"local": self.local, "remote": self.ssh}[self.access_type]
        assert section is not None  # a system without it does not load
        return section

    @property
    def ssh_delivery(self) -> SshDelivery | None:
        """Return how images reach the system over SSH, or None if they get there otherwise."""
        return self.ssh if self.access_type == "remote" else None

    @property
    def image_dir(self) -> Path:
        """Return the directory in which the runtime looks for images, as the system sees it."""
        return self.delivery.image_dir

    @property
    def directory_name(self) -> str:
        """Return the name of the image directory in the store: its path, after a remote host's.

        Leases and readers are kept under this name. Of several hosts the first stands in it,
        whichever is used: the others may come, go and change places.
        """
        host = "" if self.delivery.is_mounted else f"{self.host[0]}:"
        return f"{host}{os.path.normpath(self.image_dir)}"

    def squash_options(self, config: Config) -> SquashOptions:
        """Return how images for this system are to be compressed."""
        squash = self.squashfs
        level = squash.level
        if level is None and squash.compressor == "gzip":
            level = GZIP_LEVEL
        return SquashOptions(
            compressor=squash.compressor,
            level=level,
            block_size=squash.block_size,
            memory=squash.memory,
            processors=squash.processors,
            keep_setuid=squash.keep_setuid,
            extra=config.converter_options.get("squashfs", ()),
        )


class LocationSection(Section):
    """`Locations.L`: one registry, called `name` in references.

    `trusted_hosts` are hosts (`host`, `host:port`) at addresses otherwise forbidden, to which this
    registry may send us for tokens and blobs.
    """

    never_read: ClassVar[frozenset[str]] = frozenset({"authentication"})

    name: str = ""
    remote_type: Literal["dockerv2"] = Field(alias="remotetype")
    url: RegistryUrl = Field("", alias="url")
    ca_certificate: LocalPath | None = Field(None, alias="sslcacert")
    auth_method: Literal["token", "basic"] = Field("token", alias="authMethod")
    trusted_hosts: Hosts = Field((), alias="trustedHosts")


class UserLimits(Section):
    """`UserLimits`: how much new work one user may have in the queue."""

    waiting: int = Field(500, alias="waiting", ge=1)
    running: int = Field(4, alias="running", ge=1)


class WebLimits(Section):
    """`WebLimits`: how many connections clients may have, and how slow a request may be."""

    connections: int = Field(1000, alias="connections", ge=8)
    per_peer: int = Field(250, alias="perPeer", ge=1)
    request_time: PositiveSeconds = Field(30, alias="requestTime")
    proxies: Networks = Field((), alias="proxies")


class Stages(Section):
    """`StageLimits`: how many seconds each stage of one image may take."""

    fetch: PositiveSeconds = Field(12 * 3600, alias="fetch")
    examination: PositiveSeconds = Field(3600, alias="examination")
    conversion: PositiveSeconds = Field(6 * 3600, alias="conversion")
    transfer: PositiveSeconds = Field(12 * 3600, alias="transfer")

    @property
    def seconds(self) -> StageLimits:
        """Return the limits as the pipeline knows them."""
        return StageLimits(self.fetch, self.examination, self.conversion, self.transfer)


S = TypeVar("S", System, LocationSection)


def _named(sections: dict[str, S]) -> dict[str, S]:
    return {name: section.model_copy(update={"name": name}) for name, section in sections.items()}


def _addressed(locations: dict[str, LocationSection]) -> dict[str, LocationSection]:
    return {
        name: location.model_copy(update={"url": location.url or f"https://{name}"})
        for name, location in locations.items()
    }


Systems = Annotated[dict[str, System], AfterValidator(_named)]
Locations = Annotated[
    dict[str, LocationSection], AfterValidator(_named), AfterValidator(_addressed)
]
