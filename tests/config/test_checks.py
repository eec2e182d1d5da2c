"""Tests of the rules that concern several keys, and of values that this version refuses."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.config.checks import is_local_endpoint
from shiftergw.config.file_systems import NETWORK_FILE_SYSTEMS, lock_trouble
from shiftergw.errors import ConfigurationError
from tests.configurations import load_config

REMOTE = {
    "accesstype": "remote",
    "host": ["login1"],
    "ssh": {"username": "shifter", "imageDir": "/images"},
}
CONCH = {"username": "shifter", "imageDir": "/images"}
OPENSSH = {"username": "shifter", "imageDir": "/images", "transport": "openssh"}
MUNGE = {"Authentication": "munge", "Platforms/mycluster/mungeSocketPath": "/run/munge.socket"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Authentication": "munge"},
            "Platforms.mycluster.mungeSocketPath: is required with munge",
        ),
        ({"Authentication": ...}, "Platforms.mycluster.mungeSocketPath: is required with munge"),
        (
            {"Platforms/mycluster/local": ...},
            'Platforms.mycluster.local: is required with accesstype "local"',
        ),
        (
            {"Platforms/mycluster/accesstype": "remote"},
            'Platforms.mycluster.host: is required with accesstype "remote"',
        ),
        (
            {"Platforms/mycluster": {**REMOTE, "host": []}},
            'Platforms.mycluster.host: is required with accesstype "remote"',
        ),
        (
            {"Platforms/mycluster": {**REMOTE, "ssh": None}},
            'Platforms.mycluster.ssh: is required with accesstype "remote"',
        ),
        (
            {"DefaultImageLocation": "elsewhere"},
            "DefaultImageLocation: must be one of the Locations: registry.example.com",
        ),
        (
            {"Locations/my registry": {"remotetype": "dockerv2"}},
            "Locations.my registry.url: is required because the name is not a host",
        ),
        (
            {"Platforms": {"a\nb": REMOTE}},
            r"Platforms.a\x0ab: the name of a system is part of URLs",
        ),
    ],
)
def test_contradictory_keys_are_refused(changes: dict[str, Any], message: str) -> None:
    """If two keys contradict each other, the error names the key to correct."""
    with pytest.raises(ConfigurationError) as caught:
        load_config(changes)
    assert any(line.startswith(message) for line in str(caught.value).splitlines())


@pytest.mark.parametrize("name", ["my/cluster", ""])
def test_system_names_fit_into_urls(name: str) -> None:
    """A system whose name cannot stand in a URL is refused."""
    changes = {"Platforms": {name: {"accesstype": "local", "local": {"imageDir": "/i"}}}}
    with pytest.raises(ConfigurationError, match=rf"Platforms\.{name}: .* nor contain /"):
        load_config(changes)


@pytest.mark.parametrize("value", [[], {}, 5])
def test_values_of_wrong_types_are_problems(value: Any) -> None:
    """A list, object or number in the wrong place is a problem and not a traceback."""
    for key in ("Platforms", "Locations", "DefaultImageLocation", "Platforms/mycluster/accesstype"):
        with pytest.raises(ConfigurationError):
            load_config({key: value})


def test_a_location_with_a_url_may_have_any_name() -> None:
    """The name of a location need not be a host if the location has a URL."""
    location = {"remotetype": "dockerv2", "url": "https://registry.example.com"}
    config = load_config({"Locations/our own": location}).config
    assert config.locations["our own"].url == "https://registry.example.com"


def test_an_empty_import_users_causes_a_warning() -> None:
    """A warning says that an empty ImportUsers no longer lets every user import."""
    warnings = load_config({"ImportUsers": []}).warnings
    message = "ImportUsers: an empty list means nobody"
    assert any(warning.startswith(message) for warning in warnings)


@pytest.mark.parametrize(
    ("hosts", "path", "has_warning"),
    [
        (["login2", "login1"], "/images", True),
        (["login9", "login1"], "/images/../images/", True),
        (["login1"], "/images", False),
        (["login1", "login2", "login3"], "/images", False),
        (["login2", "login1"], "/images2", False),
        (["login3", "login4"], "/images", False),
    ],
)
def test_a_directory_with_two_names_causes_a_warning(
    hosts: list[str], path: str, has_warning: bool
) -> None:
    """Systems that seem to share a directory, but name different hosts first, cause a warning."""
    ssh = {"username": "shifter", "imageDir": path}
    result = load_config(
        {
            "Platforms/first": {**REMOTE, "host": ["login1", "login2"]},
            "Platforms/other": {"accesstype": "remote", "host": hosts, "ssh": ssh},
        }
    )
    message = "Platforms.other.host: first has"
    assert any(warning.startswith(message) for warning in result.warnings) is has_warning
    names = {result.config.systems[name].directory_name for name in ("first", "other")}
    assert (names == {"login1:/images"}) is (hosts[0] == "login1")


def test_imports() -> None:
    """A command needs the file and its user; without users it has no effect."""
    command = ["sudo", "-n", "-u", "{user}", "cat", "--", "{path}"]
    result = load_config({"ImportUsers": "all", "ImportCommand": command})
    assert (result.warnings, result.config.import_command) == ((), tuple(command))
    (warning,) = load_config({"ImportCommand": command}).warnings
    assert warning.startswith("ImportCommand: has no effect")
    for argument in ("{user}", "{path}"):
        with pytest.raises(ConfigurationError, match=f"ImportCommand: needs .*{argument}"):
            load_config({"ImportCommand": [word for word in command if word != argument]})


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "cat {path}", "{user}", "{path}"],
        ["su", "{user}", "-c", "cat '{path}'", "{path}"],
        ["ssh", "{user}@host", "cat", "{path}", "{user}"],
        ["/usr/bin/ssh", "-l", "{user}", "host", "cat", "{path}"],
    ],
)
def test_no_shell_reads_a_path(command: list[str]) -> None:
    """A path in a script, or an argument of ssh, could hide commands of a user."""
    with pytest.raises(ConfigurationError, match=r"ImportCommand: .*hides in a path"):
        load_config({"ImportUsers": "all", "ImportCommand": command})


def test_worker_machines_fetch_uploads() -> None:
    """Without the gateway's URL worker machines cannot fetch uploads, which is a warning."""
    (warning,) = load_config({**MONGODB, "BrokerURL": "amqp://b/"}).warnings
    assert warning.startswith("GatewayURL: is not set")


@pytest.mark.parametrize(
    "url",
    ["gateway:5000", "ftp://gateway", "http://", "http://g/?x", "http://u@g/", "http://g/ x", 5],
)
def test_gateway_urls_that_are_refused(url: object) -> None:
    """A gateway URL is http or https, a host, and optionally a port and a path."""
    with pytest.raises(ConfigurationError, match="GatewayURL"):
        load_config({"GatewayURL": url})
    assert load_config({"GatewayURL": "https://g:1/x/"}).config.gateway_url == "https://g:1/x"


def test_the_smallest_configuration_is_supported() -> None:
    """The gateway starts with a local system, and with mock on the loopback interface."""
    load_config().config.check_supported()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Platforms/other": {**REMOTE, "ssh": {**CONCH, "sshCmdOptions": ["-J", "jump"]}}},
            'sshCmdOptions: only "transport": "openssh" can use a jump host (-J,',
        ),
        (
            {"Platforms/other": {**REMOTE, "ssh": {**OPENSSH, "passphraseFile": "p"}}},
            "passphraseFile: with",
        ),
        ({"examiner": "/usr/bin/examiner"}, "examiner: it requires"),
        ({"Listen": "tcp:5000"}, "Listen: with"),
        ({"Listen": ["tcp:5000:interface=127.0.0.1", "tcp:5001"]}, "Listen: with"),
    ],
)
def test_unsupported_values_are_refused_at_the_start(changes: dict[str, Any], message: str) -> None:
    """A value that this version does not support loads; the start is refused with one line."""
    config = load_config(changes).config
    with pytest.raises(ConfigurationError) as caught:
        config.check_supported()
    (line,) = str(caught.value).splitlines()
    assert line.startswith(message)


def test_a_remote_system_with_openssh_is_supported() -> None:
    """The gateway starts with a system that the machine's own `ssh` reaches."""
    load_config({"Platforms/other": {**REMOTE, "ssh": OPENSSH}}).config.check_supported()


def test_a_remote_system_with_conch_is_supported() -> None:
    """The gateway starts with a system that needs only a key, with or without a passphrase."""
    load_config({"Platforms/other": {**REMOTE, "ssh": CONCH}}).config.check_supported()
    account = {**CONCH, "passphraseFile": "passphrase"}
    load_config({"Platforms/other": {**REMOTE, "ssh": account}}).config.check_supported()


@pytest.mark.parametrize("account", [CONCH, OPENSSH])
def test_a_remote_system_with_scp_is_supported(account: dict[str, Any]) -> None:
    """The gateway starts with a system without SFTP, with both transports."""
    ssh = {**account, "transfer": "scp"}
    load_config({"Platforms/other": {**REMOTE, "ssh": ssh}}).config.check_supported()


def test_mongodb_is_supported() -> None:
    """The gateway starts with the URI of a server and the name of a database."""
    load_config(
        {"MongoDBURI": "mongodb://localhost/", "MongoDB": "Shifter"}
    ).config.check_supported()


def test_mongodb_needs_both_keys() -> None:
    """The name of the database is required with a URI; without a URI it has no effect."""
    with pytest.raises(ConfigurationError, match="MongoDB: is required with MongoDBURI"):
        load_config({"MongoDBURI": "mongodb://localhost/"})
    (warning,) = load_config({"MongoDB": "Shifter"}).warnings
    assert warning.startswith("MongoDB: has no effect without MongoDBURI")


def test_munge_is_supported() -> None:
    """The gateway starts with munge and with a site's own command that lists users."""
    load_config({**MUNGE, "Platforms/mycluster/groupsCommand": ["list"]}).config.check_supported()


def test_two_systems_with_one_munge_daemon() -> None:
    """Two systems with the same socket cause a warning; two sockets do not."""
    system = {"accesstype": "local", "local": {"imageDir": "/two"}}
    result = load_config(
        {**MUNGE, "Platforms/two": {**system, "mungeSocketPath": "/run/munge.socket"}}
    )
    (warning,) = result.warnings
    assert warning.startswith("Platforms.two.mungeSocketPath: mycluster has the same socket,")
    result = load_config(
        {**MUNGE, "Platforms/two": {**system, "mungeSocketPath": "/run/two.socket"}}
    )
    assert result.warnings == ()


def test_refusals_come_together() -> None:
    """The error at the start has all reasons, not only the first."""
    config = load_config({"examiner": "/usr/bin/examiner", "Listen": "tcp:5000"}).config
    with pytest.raises(ConfigurationError) as caught:
        config.check_supported()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "examiner",
        "Listen",
    ]


def test_two_policies_for_one_directory() -> None:
    """Systems that share a directory cause a warning if their policies differ."""
    system = {"accesstype": "local", "local": {"imageDir": "/images"}}
    result = load_config({"Platforms/two": system, "Platforms/mycluster/policy_file": "p.json"})
    (warning,) = result.warnings
    assert warning.startswith("Platforms.two.policy_file: mycluster has the same image directory")
    result = load_config(
        {
            "Platforms/two": {**system, "policy_file": "p.json"},
            "Platforms/mycluster/policy_file": "p.json",
        }
    )
    assert result.warnings == ()
    result.config.check_supported()


def test_two_file_modes_for_one_directory() -> None:
    """Systems that share a directory share its files, and so their modes."""
    changes: dict[str, Any] = {
        "Platforms/two": {"accesstype": "local", "local": {"imageDir": "/images"}},
        "Platforms/mycluster/FileMode": "0644",
    }
    with pytest.raises(ConfigurationError, match=r"Platforms\.two\.FileMode: must be that of my"):
        load_config(changes)
    changes["Platforms/two/FileMode"] = "0644"
    systems = load_config(changes).config.systems.values()
    assert [(system.file_mode, system.has_open_files) for system in systems] == [(0o644, True)] * 2
    changes = {"Platforms/mycluster/FileMode": "0600"}
    assert not load_config(changes).config.systems["mycluster"].has_open_files


MONGODB = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "Shifter"}


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:secret@broker/",
        "amqps://broker/host",
        "amqps://broker/?cacertfile=/ca.pem&certfile=/us.pem&keyfile=/key.pem",
    ],
)
def test_a_broker_is_supported(url: str) -> None:
    """The gateway starts with RabbitMQ, with or without TLS, if its state is in MongoDB."""
    gateway = {"GatewayURL": "http://gateway:5000"}
    result = load_config({**MONGODB, **gateway, "BrokerURL": url, "BrokerAway": "refuse"})
    result.config.check_supported()
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BrokerURL": "amqp://user:secret@b/"}, "BrokerURL: needs MongoDBURI"),
        ({**MONGODB, "BrokerURL": "redis://:secret@b/"}, "BrokerURL: must begin with amqp"),
        ({**MONGODB, "BrokerURL": "amqp://b/", "BrokerAway": "secret"}, "BrokerAway: must be"),
        ({**MONGODB, "BrokerURL": "amqp://:secret@b:x/"}, "BrokerURL: is no URL"),
        ({**MONGODB, "BrokerURL": "amqp://:secret@b/;amqp://c/"}, "names one broker"),
        ({**MONGODB, "BrokerURL": "amqp://me:p@secret@b/v"}, "written as %40"),
        ({**MONGODB, "BrokerURL": "amqp://me:p%secret@b/v"}, "written as %25"),
        ({**MONGODB, "BrokerURL": "amqp://:secret@b/#x"}, "is written as %23"),
        ({**MONGODB, "BrokerURL": "amqps://:secret@b/?verify=secret"}, "none of these: cacertf"),
        ({**MONGODB, "BrokerURL": "amqp://:secret@b/?cacertfile=/c"}, "no meaning without TLS"),
        ({**MONGODB, "BrokerURL": "amqps://:secret@b/?keyfile=/k"}, "keyfile needs certfile"),
        ({**MONGODB, "BrokerURL": "amqps://:secret@b/?cacertfile=c"}, "an absolute path"),
    ],
)
def test_an_invalid_broker_is_refused(changes: dict[str, Any], message: str) -> None:
    """The error has the reason, and not the password of the URL."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_config(changes)
    if "BrokerAway" not in changes:
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a,b", "amq.direct", "x" * 201])
def test_a_system_name_must_fit_a_queue(name: str) -> None:
    """With a broker, a name that a queue cannot have is refused; without, it is accepted."""
    system = {"accesstype": "local", "local": {"imageDir": "/two"}}
    with pytest.raises(ConfigurationError, match="names a queue"):
        load_config({**MONGODB, "BrokerURL": "amqp://b/", f"Platforms/{name}": system})
    load_config({f"Platforms/{name}": system})


@pytest.mark.parametrize(
    ("kind", "options", "reliable"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", True),
        ("nfs", "rw,vers=3", True),
        ("nfs", "rw,nolock,local_lock=all", False),
        ("nfs4", "rw,local_lock=flock", False),
        ("lustre", "rw,flock", True),
        ("lustre", "rw,localflock", False),
        ("lustre", "rw", False),
        ("ext4", "rw", True),
    ],
)
def test_locks_of_shared_directories(kind: str, options: str, reliable: bool) -> None:
    """The mount options decide whether locks exclude other machines."""
    assert (lock_trouble(kind, frozenset(options.split(","))) is None) == reliable


def test_broker_away_without_a_broker_causes_a_warning() -> None:
    """BrokerAway has no effect without BrokerURL, and a warning says so."""
    (warning,) = load_config({"BrokerAway": "refuse"}).warnings
    assert warning.startswith("BrokerAway: has no effect without BrokerURL")


@pytest.mark.parametrize(
    ("endpoint", "is_local"),
    [
        ("tcp:5000:interface=127.0.0.1", True),
        ("tcp:port=5000:interface=127.0.0.1:backlog=5", True),
        ("tcp:interface=127.8.0.1:port=5000", True),
        (r"tcp6:5000:interface=\:\:1", True),
        (r"tcp:5000:interface=\:\:1", True),
        ("ssl:5000:interface=127.0.0.1:privateKey=k.pem", True),
        ("unix:/run/shiftergw.socket", True),
        ("unix:address=/run/shiftergw.socket:mode=660", True),
        ("tcp:5000", False),
        ("tcp:5000:backlog=2048", False),
        ("tcp:5000:interface=", False),
        ("tcp:5000:interface=0.0.0.0", False),
        ("tcp:5000:interface=127.0.0.1:interface=10.0.0.1", False),
        (r"tcp6:5000:interface=\:\:", False),
        ("tcp:5000:interface=localhost", False),
        ("tcp:5000:interface=localhost.example.com", False),
        ("systemd:domain=INET:index=0:interface=127.0.0.1", False),
        ("haproxy:tcp\\:5000\\:interface=127.0.0.1", False),
        ("interface=127.0.0.1", False),
        ("", False),
    ],
)
def test_local_endpoints(endpoint: str, is_local: bool) -> None:
    """Only Unix sockets and loopback addresses count as local; every unknown form does not."""
    assert is_local_endpoint(endpoint) == is_local


def test_mock_on_unix_sockets_and_ipv6_loopback_starts() -> None:
    """The gateway starts with mock on a Unix socket and on the loopback address of IPv6."""
    listen = ["unix:/run/shiftergw.socket", r"tcp6:5000:interface=\:\:1"]
    load_config({"Listen": listen}).config.check_supported()


@pytest.mark.parametrize("kind", sorted(NETWORK_FILE_SYSTEMS))
def test_state_on_a_network_file_system(kind: str) -> None:
    """A StateDirectory on a network file system is refused, since SQLite's locks fail there."""
    with pytest.raises(ConfigurationError, match=r"StateDirectory: .*network file system"):
        load_config().config.check_state_file_system(kind)


def test_with_mongodb_the_state_directory_may_be_on_a_network() -> None:
    """With MongoDB there is no SQLite file that needs locks, so every file system is accepted."""
    config = load_config({"MongoDBURI": "mongodb://localhost/", "MongoDB": "Shifter"}).config
    config.check_state_file_system("nfs4")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"])
def test_state_on_a_local_file_system(kind: str) -> None:
    """A StateDirectory on a local file system is accepted."""
    load_config().config.check_state_file_system(kind)
