"""The sections of imagemanager.json: systems, limits. Those of registries are in `locations`.

As in `config`, the keys are the aliases of the fields, and the defaults are in the fields.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from shiftergw.config.document import Section
from shiftergw.config.ssh_options import SshOptions, translate_options
from shiftergw.config.values import (
    Architecture,
    BlockSize,
    FileMode,
    LocalPath,
    Memory,
    Networks,
    OstCount,
    PositiveSeconds,
    RemotePath,
    Texts,
    Users,
)
from shiftergw.model.build_options import (
    GZIP_LEVEL,
    HIGHEST_LEVEL,
    BuilderName,
    Compressor,
    PackerName,
    SquashOptions,
    StageLimits,
)
from shiftergw.model.images import Platform

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
        highest_level = HIGHEST_LEVEL.get(compressor)
        if highest_level is None:
            raise ValueError(f"{compressor} has no levels: remove it")
        if not 1 <= level <= highest_level:
            raise ValueError(f"must be 1 to {highest_level} with {compressor}")
        return level


class LocalDelivery(Section):
    """`Platforms.S.local`: the image directory of a system that is mounted on this machine."""

    is_mounted: ClassVar[bool] = True
    image_dir: LocalPath = Field(alias="imageDir")

    def directory_name(self, hosts: Texts) -> str:  # noqa: ARG002 - this machine sees it
        """Return the path of the image directory."""
        return os.path.normpath(self.image_dir)


class SshDelivery(Section):
    """`Platforms.S.ssh`: how images reach the image directory of a system over SSH.

    The properties combine the keys with the meaning of `sshCmdOptions` and `scpCmdOptions`. A key
    has priority over an option.
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

    def directory_name(self, hosts: Texts) -> str:
        """Return the path of the image directory, after its host.

        Of several hosts it is the first, whichever is used, so that a site may add, remove and
        reorder the other hosts.
        """
        return f"{hosts[0]}:{os.path.normpath(self.image_dir)}"

    @property
    def options(self) -> SshOptions:
        """Return the values for our own SSH that the keys, and then the options, define."""
        keys: dict[str, tuple[str, object]] = {"user": ("username", self.username)}
        if "port" in self.model_fields_set:
            keys["port"] = ("port", self.port)
        if self.key is not None:
            keys["key"] = ("key", self.key)
        if self.known_hosts is not None:
            keys["known_hosts"] = ("knownHosts", self.known_hosts)
        return translate_options(self.ssh_cmd_options, self.scp_cmd_options, keys)

    @property
    def login_port(self) -> int:
        """Return the port of the SSH server."""
        return self.options.port or self.port

    @property
    def key_file(self) -> Path | None:
        """Return the file of the private key, or None for the keys of an agent."""
        return _expand_home(self.options.key)

    @property
    def known_hosts_file(self) -> Path | None:
        """Return the file of known host keys, or None for the files that OpenSSH reads."""
        return _expand_home(self.options.known_hosts)

    @property
    def ciphers(self) -> tuple[str, ...]:
        """Return the ciphers to offer, by preference; an empty tuple means all of ours."""
        return self.options.ciphers

    @property
    def connect_seconds(self) -> float | None:
        """Return how many seconds a connection attempt may take, or None for the default."""
        return self.options.connect_seconds


def _expand_home(path: Path | None) -> Path | None:
    """Replace `~` in a path by the home directory; a path without a known home stays unchanged."""
    if path is not None:
        with suppress(RuntimeError):
            return path.expanduser()
    return path


Delivery = LocalDelivery | SshDelivery
"""How images reach the image directory of a system: one section for each kind of system.

`is_mounted` is true if the directory is mounted on this machine. `directory_name` gets the hosts of
the system, and names the directory in the store (see `System.directory_name`).
"""


class System(Section):
    """`Platforms.S`: one cluster. `name` is its key S in the document."""

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
    builder: BuilderName | None = Field(None, alias="Builder")
    packer: PackerName | None = Field(None, alias="Packer")
    enroot_files: bool = Field(default=False, alias="EnrootFiles")
    ost_count: OstCount | None = Field(None, alias="ostCount")
    groups_command: Texts = Field((), alias="groupsCommand")
    policy_file: LocalPath | None = Field(None, alias="policy_file")
    file_mode: FileMode | None = Field(None, alias="FileMode")
    pin_limit: int | None = Field(None, alias="PinLimit", ge=0)

    @property
    def has_open_files(self) -> bool:
        """Return whether users may read the files of images."""
        return self.file_mode is not None and bool(self.file_mode & 0o077)

    @property
    def delivery(self) -> Delivery:
        """Return the section that `accesstype` selects."""
        section = {"local": self.local, "remote": self.ssh}[self.access_type]
        assert section is not None  # a system without this section does not load
        return section

    @property
    def ssh_delivery(self) -> SshDelivery | None:
        """Return the section `ssh` if images reach the system over SSH, or None."""
        return self.ssh if self.access_type == "remote" else None

    @property
    def image_dir(self) -> Path:
        """Return the directory in which the runtime looks for images: a path on the system."""
        return self.delivery.image_dir

    @property
    def directory_name(self) -> str:
        """Return the name of the image directory in the store.

        The store keeps leases and readers under this name, so systems that share the directory
        must have the same.
        """
        return self.delivery.directory_name(self.host)

    def squash_options(self, config: Config) -> SquashOptions:
        """Return how images for this system are built and compressed."""
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
            enroot_files=self.enroot_files,
            extra=config.converter_options.get("squashfs", ()),
            builder=self.builder or config.builder,
            packer=self.packer or config.packer,
        )


class UserLimits(Section):
    """`UserLimits`: how many new pulls of one user may wait and run."""

    waiting: int = Field(500, alias="waiting", ge=1)
    running: int = Field(4, alias="running", ge=1)


class WebLimits(Section):
    """`WebLimits`: how many connections clients may have, and how long a request may take."""

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
        """Return the limits as a value for the pipeline."""
        return StageLimits(self.fetch, self.examination, self.conversion, self.transfer)


def _set_names(systems: dict[str, System]) -> dict[str, System]:
    """Set the name of each system to its key in the document."""
    return {name: system.model_copy(update={"name": name}) for name, system in systems.items()}


Systems = Annotated[dict[str, System], AfterValidator(_set_names)]
