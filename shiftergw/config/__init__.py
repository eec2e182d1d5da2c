"""Read imagemanager.json, once, into frozen values.

The keys are the aliases of the fields: those of the original gateway, and further ones. All
defaults are here. An unknown key is a warning, every other problem is an error, and all errors are
reported at once. Loading opens no other file but `RegistriesConf`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from shiftergw.config import checks
from shiftergw.config.admin import AdminAddress, AdminListen
from shiftergw.config.advice import advice
from shiftergw.config.document import (
    Section,
    duplicate_keys,
    parse,
    problems_of,
    refusal,
    unknown,
    unreadable,
)
from shiftergw.config.file_systems import check_state_file_system
from shiftergw.config.leniency import convert_section
from shiftergw.config.location_names import canonical_host, find_location, locate
from shiftergw.config.locations import Locations, LocationSection, expand_mirrors
from shiftergw.config.mongodb import DatabaseName, MongoUri
from shiftergw.config.registries_conf import RegistryRules, read_rules
from shiftergw.config.sections import (
    LocalDelivery,
    SshDelivery,
    Stages,
    System,
    Systems,
    UserLimits,
    WebLimits,
)
from shiftergw.config.source import read_text
from shiftergw.config.values import (
    Arguments,
    Duration,
    GatewayUrl,
    Importers,
    LocalPath,
    OstCount,
    PositiveSeconds,
    Program,
    ProxiedHosts,
    Seconds,
    Size,
    Surroundings,
    Texts,
)
from shiftergw.errors import ConfigurationError
from shiftergw.model.build_options import BuilderName, BuildLimits, PackerName
from shiftergw.model.postponement import PostponeLimits, WaitLimits
from shiftergw.model.references import ImageReference

__all__ = [
    "Config",
    "LoadedConfig",
    "LocalDelivery",
    "LocationSection",
    "SshDelivery",
    "System",
    "file_of_environment",
]


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, the warnings about it (a line each), and its file."""

    config: Config
    warnings: tuple[str, ...]
    file: Path | None = None


def file_of_environment(environ: Mapping[str, str]) -> Path:
    """Return the configuration file by the environment; raise `ConfigurationError`."""
    if file := environ.get("GWCONFIG"):
        return Path(file)
    if directory := environ.get("CONFIG_PATH"):
        return Path(directory) / "imagemanager.json"
    raise ConfigurationError("No configuration: give --config FILE, or set GWCONFIG.", remedy="")


def _defaults(document: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the defaults that depend on the environment or on another key."""
    # systemd may list several directories; the first one is the gateway's.
    directory = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    state = document.get("StateDirectory", directory or "/var/lib/shiftergw")
    mock = document.get("Authentication") == "mock"
    return {
        "StateDirectory": state,
        "SecretKeyFile": f"{state}/secret.key",
        "UploadDirectory": f"{state}/uploads",
        "Listen": "tcp:5000:interface=127.0.0.1" if mock else "tcp:5000:backlog=2048",
        "AdminListen": f"{state}/admin.sock",
        # The original reads both from the environment only, and ignores their values.
        **{name: True for name in ("ENABLE_LABELS", "DISABLE_ACL_METADATA") if name in environ},
    }


def _with_rules(loaded_config: LoadedConfig) -> LoadedConfig:
    """Add the content of `RegistriesConf`; raise `ConfigurationError`."""
    config = loaded_config.config
    if config.registries_conf is None:
        return loaded_config
    rules, warnings = read_rules(config.registries_conf)
    config = config.model_copy(update={"registry_rules": rules})
    return replace(loaded_config, config=config, warnings=(*loaded_config.warnings, *warnings))


class Config(Section):
    """The content of imagemanager.json. Durations are seconds, sizes bytes."""

    never_read: ClassVar[frozenset[str]] = frozenset(
        {
            "ConvertOptions",
            "DefaultImageRemote",
            "DefaultLustreReplication",
            "PullUpdateTime",
        }
    )

    systems: Systems = Field(alias="Platforms", min_length=1)
    locations: Locations = Field(alias="Locations", min_length=1)
    default_image_location: str = Field(alias="DefaultImageLocation")
    default_image_format: Literal["squashfs"] = Field("squashfs", alias="DefaultImageFormat")
    pull_update_timeout: Seconds = Field(300, alias="PullUpdateTimeout")
    image_expiration_timeout: Duration | None = Field(None, alias="ImageExpirationTimeout")
    scheduled_expiry: bool | None = Field(None, alias="ScheduledExpiry")
    mongodb_uri: MongoUri | None = Field(None, alias="MongoDBURI", repr=False)
    mongodb: DatabaseName | None = Field(None, alias="MongoDB")
    cache_directory: LocalPath = Field(alias="CacheDirectory")
    expand_directory: LocalPath = Field(alias="ExpandDirectory")
    state_directory: LocalPath = Field(alias="StateDirectory")
    secret_key_file: LocalPath = Field(alias="SecretKeyFile")
    upload_directory: LocalPath = Field(alias="UploadDirectory")
    max_upload_size: Size = Field(100 * 10**9, alias="MaxUploadSize")
    upload_quota: Size = Field(200 * 10**9, alias="UploadQuota")
    upload_space: Size = Field(10**12, alias="UploadSpace")
    upload_keep: Duration = Field(86400, alias="UploadKeep")
    gateway_url: GatewayUrl | None = Field(None, alias="GatewayURL")
    listen: Arguments = Field(alias="Listen", min_length=1)
    admin_listen: AdminListen = Field(AdminAddress(), alias="AdminListen")
    admin_group: str | None = Field(None, alias="AdminGroup", min_length=1)
    admin_token_file: LocalPath | None = Field(None, alias="AdminTokenFile")
    admin_certificate: LocalPath | None = Field(None, alias="AdminCertificate")
    admin_key: LocalPath | None = Field(None, alias="AdminKey")
    worker_threads: int = Field(
        default_factory=lambda: min(4, len(os.sched_getaffinity(0))), alias="WorkerThreads", ge=1
    )
    authentication: Literal["munge", "mock"] = Field("munge", alias="Authentication")
    heartbeat_limit: PositiveSeconds = Field(60, alias="HeartbeatLimit")
    worker_wait: PositiveSeconds = Field(600, alias="WorkerWait")
    registry_wait: Seconds = Field(900, alias="RegistryWait")
    delivery_wait: Seconds = Field(1800, alias="DeliveryWait")
    # Clients poll every half second: with less they would miss the failure, and start a new pull.
    failure_hold: float = Field(10, alias="FailureHold", ge=1)
    keep_untagged: Duration = Field(30 * 86400, alias="KeepUntagged")
    keep_layers: Duration = Field(30 * 86400, alias="KeepLayers")
    scrub_cache: Duration = Field(7 * 86400, alias="ScrubCache")
    pin_limit: int = Field(0, alias="PinLimit", ge=0)
    private_images_without_acl: Literal["owner", "public"] = Field(
        "owner", alias="PrivateImagesWithoutAcl"
    )
    allow_anonymous: bool = Field(default=False, alias="AllowAnonymous")
    queue_limit: int = Field(10_000, alias="QueueLimit", ge=1)
    user_limits: UserLimits = Field(default_factory=UserLimits.model_construct, alias="UserLimits")
    web_limits: WebLimits = Field(default_factory=WebLimits.model_construct, alias="WebLimits")
    max_image_size: Size = Field(200 * 10**9, alias="MaxImageSize")
    max_entries: int = Field(5_000_000, alias="MaxEntries", ge=1)
    max_layers: int = Field(500, alias="MaxLayers", ge=1)
    max_layers_size: Size | None = Field(None, alias="MaxLayersSize")
    max_layers_entries: int | None = Field(None, alias="MaxLayersEntries", ge=1)
    max_ratio: int = Field(200, alias="MaxRatio", ge=1)
    max_names_size: Size = Field(512 * 10**6, alias="MaxNamesSize")
    max_path_steps: int = Field(20_000_000, alias="MaxPathSteps", ge=1)
    max_record_size: Size = Field(64 << 10, alias="MaxRecordSize")
    max_list_size: Size = Field(64 * 10**6, alias="MaxListSize")
    stage_limits: Stages = Field(default_factory=Stages.model_construct, alias="StageLimits")
    registries_conf: LocalPath | None = Field(None, alias="RegistriesConf")
    proxied_hosts: ProxiedHosts | None = Field(None, alias="ProxiedHosts")
    registry_least_rate: int = Field(10_000, alias="RegistryLeastRate", ge=0)
    registry_document_time: PositiveSeconds = Field(120, alias="RegistryDocumentTime")
    registries_directory: LocalPath | None = Field(None, alias="RegistriesDirectory")
    mksquashfs: Program = Field("mksquashfs", alias="Mksquashfs")
    broker_url: str | None = Field(None, alias="BrokerURL", repr=False)
    broker_away: Literal["wait", "refuse"] = Field("wait", alias="BrokerAway")
    default_ost_count: OstCount = Field(0, alias="DefaultOstCount")
    builder: BuilderName = Field("packs", alias="Builder")
    packer: PackerName = Field("mksquashfs", alias="Packer")
    converter_options: dict[str, Arguments] = Field({}, alias="ConverterOptions")
    metrics: bool = Field(default=False, alias="Metrics")
    import_users: Importers = Field((), alias="ImportUsers")
    import_command: Texts = Field((), alias="ImportCommand")
    examiner: str | None = Field(None, alias="examiner")
    enable_labels: bool = Field(default=False, alias="ENABLE_LABELS")
    disable_acl_metadata: bool = Field(default=False, alias="DISABLE_ACL_METADATA")
    log_level: Literal["debug", "info", "warn", "error", "critical"] = Field(
        "info", alias="LogLevel"
    )
    log_format: Literal["text", "json"] = Field("text", alias="LogFormat")
    audit_log: LocalPath | None = Field(None, alias="AuditLog")
    registry_rules: RegistryRules = RegistryRules()
    """The content of `RegistriesConf`; it is not a key of the document."""

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str]) -> LoadedConfig:
        """Read the file, and its `RegistriesConf`; raise `ConfigurationError` with all problems."""
        try:
            document = parse(read_text(path))
            result = cls.from_document(document, base=path.absolute().parent, environ=environ)
            result = _with_rules(result)
        except OSError as error:
            raise ConfigurationError(
                f"The configuration {path} cannot be read: {error.strerror}.",
                remedy="Name the file with --config, and make it readable for the gateway's user.",
            ) from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error.what}", remedy=error.remedy) from error
        return replace(result, file=path.absolute())

    @classmethod
    def from_document(
        cls, document: Any, *, base: Path, environ: Mapping[str, str]
    ) -> LoadedConfig:
        """Check a document, whose relative paths start at `base`; raise `ConfigurationError`."""
        surroundings = Surroundings(base)
        if not isinstance(document, dict):
            raise refusal(["it must be an object: { … }"])
        if problems := [*unreadable(document)]:
            raise refusal(problems)
        problems += duplicate_keys(document)
        document, conversions = convert_section(cls, expand_mirrors(document))
        problems += checks.relation_problems(document)
        try:
            config = cls.validate_document(_defaults(document, environ) | document, surroundings)
        except ValidationError as error:
            # A missing key may be in the document, misspelled.
            raise refusal([*problems, *problems_of(error), *unknown(cls, document)]) from None
        if document.get("AdminListen") is None:
            address = replace(config.admin_listen, is_default=True)
            config = config.model_copy(update={"admin_listen": address})
        problems += checks.ssh_option_problems(config)
        if not problems:  # a directory of which a key is missing has no name
            problems += checks.file_mode_problems(config)
        if problems:
            raise refusal(problems)
        warnings = (
            *conversions,
            *unknown(cls, document),
            *advice(document, config),
            *surroundings.warnings,
        )
        return LoadedConfig(config, warnings)

    def locate(self, reference: ImageReference) -> tuple[str, str]:
        """Return the location of a reference and the repository in it; see `location_names`."""
        default = self.default_image_location
        return locate(self.locations, default, self.registry_rules, reference)

    def location_named(self, host: str) -> str:
        """Return the location that a host in front of an image name means."""
        return find_location(self.locations, host) or canonical_host(host)

    def directory_of(self, system_name: str) -> tuple[str, tuple[str, ...]]:
        """Return the name of a system's image directory, and all systems that share it."""
        directory = self.systems[system_name].directory_name
        return directory, tuple(
            name for name, system in self.systems.items() if system.directory_name == directory
        )

    def ost_count_of(self, system: str) -> int:
        """Return the number of OSTs for a system's large images, as defined by `OstCount`."""
        own = self.systems[system].ost_count
        return self.default_ost_count if own is None else own

    def pin_limit_of(self, system: str) -> int:
        """Return how many images of a system each user may pin."""
        own = self.systems[system].pin_limit
        return self.pin_limit if own is None else own

    def wait_limits(self) -> WaitLimits:
        """Return how long a pull may wait for its registry and its system, and how many pulls may.

        Postponed pulls do not count towards `QueueLimit`. A tenth of that number may wait for one
        registry, and a quarter of these may be one user's. Half of these may wait for one system,
        so that there is room for pulls that wait for their registry.
        """
        postponed_pulls = max(self.queue_limit // 10, 50)
        user = postponed_pulls // 4
        return WaitLimits(
            self.registry_wait,
            PostponeLimits(postponed_pulls, user),
            self.delivery_wait,
            PostponeLimits(postponed_pulls // 2, user),
        )

    @property
    def waiting_per_user(self) -> int:
        """Return how many pulls of one user may wait: by default, at most a tenth of the queue."""
        limits = self.user_limits
        if "waiting" in limits.model_fields_set:
            return limits.waiting
        return min(limits.waiting, self.fair_share)

    @property
    def fair_share(self) -> int:
        """Return a tenth of the queue; a user with more pulls could keep other users out."""
        return max(1, self.queue_limit // 10)

    def build_limits(self) -> BuildLimits:
        """Return the limits on what an image unpacks to, and on the work for it."""
        return BuildLimits(
            size=self.max_image_size,
            entries=self.max_entries,
            layers=self.max_layers,
            layers_size=self.max_layers_size,
            layers_entries=self.max_layers_entries,
            ratio=self.max_ratio,
            names_size=self.max_names_size,
            path_steps=self.max_path_steps,
            stages=self.stage_limits.seconds,
        )

    def check_supported(self) -> None:
        """Raise `ConfigurationError` for keys that this version does not support."""
        checks.check_supported(self)

    def check_state_file_system(self, kind: str) -> None:
        """Raise `ConfigurationError` if SQLite's file lies on `kind`, a network file system."""
        if self.mongodb_uri is None:
            check_state_file_system(kind)
