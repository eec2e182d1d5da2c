"""Tests of the rules between keys, and of what keeps this version from starting."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.config.checks import NETWORK_FILE_SYSTEMS, lock_trouble, only_local
from shiftergw.errors import ConfigurationError
from tests.configurations import loaded

REMOTE = {
    "accesstype": "remote",
    "host": ["login1"],
    "ssh": {"username": "shifter", "imageDir": "/images"},
}
CONCH = {"username": "shifter", "imageDir": "/images"}
OPENSSH = {"username": "shifter", "imageDir": "/images", "transport": "openssh"}
MUNGE = {"Authentication": "munge", "Platforms/mycluster/mungeSocketPath": "/run/munge.socket"}


@pytest.mark.parametrize(
    ("changes", "told"),
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
            "Locations.my registry.url: is required where the name is not a host",
        ),
        ({"Platforms": {"a\nb": REMOTE}}, r"Platforms.a\x0ab: a system's name stands in addresses"),
    ],
)
def test_relations(changes: dict[str, Any], told: str) -> None:
    """Keys that do not fit each other are refused, with the path of the one to mend."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(changes)
    assert any(line.startswith(told) for line in str(caught.value).splitlines())


def test_system_name_in_addresses() -> None:
    """A system that no client could ask for is refused."""
    path = {"Platforms": {"my/cluster": {"accesstype": "local", "local": {"imageDir": "/i"}}}}
    with pytest.raises(ConfigurationError, match=r"Platforms\.my/cluster: .* no / in it"):
        loaded(path)


@pytest.mark.parametrize("value", [[], {}, 5])
def test_wrong_kinds_do_not_confuse_the_rules(value: Any) -> None:
    """A table, or a word, of the wrong kind is a problem and never a traceback."""
    for key in ("Platforms", "Locations", "DefaultImageLocation", "Platforms/mycluster/accesstype"):
        with pytest.raises(ConfigurationError):
            loaded({key: value})


def test_an_alias_with_a_url() -> None:
    """A location may have any name if its URL is given."""
    location = {"remotetype": "dockerv2", "url": "https://registry.example.com"}
    config = loaded({"Locations/our own": location}).config
    assert config.locations["our own"].url == "https://registry.example.com"


def test_nobody_may_import_is_said() -> None:
    """An empty ImportUsers let everybody in before: whoever wrote it is told that it changed."""
    warnings = loaded({"ImportUsers": []}).warnings
    assert any(one.startswith("ImportUsers: an empty list is nobody") for one in warnings)


@pytest.mark.parametrize(
    ("hosts", "path", "warned"),
    [
        (["login2", "login1"], "/images", True),
        (["login9", "login1"], "/images/../images/", True),
        (["login1"], "/images", False),
        (["login1", "login2", "login3"], "/images", False),
        (["login2", "login1"], "/images2", False),
        (["login3", "login4"], "/images", False),
    ],
)
def test_one_directory_by_two_names(hosts: list[str], path: str, warned: bool) -> None:
    """Systems that seem to share a directory are told to call it by the same host."""
    ssh = {"username": "shifter", "imageDir": path}
    found = loaded(
        {
            "Platforms/first": {**REMOTE, "host": ["login1", "login2"]},
            "Platforms/other": {"accesstype": "remote", "host": hosts, "ssh": ssh},
        }
    )
    told = [one for one in found.warnings if one.startswith("Platforms.other.host: first has")]
    assert bool(told) is warned
    names = {found.config.systems[name].directory_name for name in ("first", "other")}
    assert (names == {"login1:/images"}) is (hosts[0] == "login1")


def test_keys_without_effect_are_said() -> None:
    """Nothing that an operator wrote is dropped in silence."""
    (warning,) = loaded({"ImportUsers": "all"}).warnings
    assert warning.startswith("ImportUsers: is read, and has no effect")


def test_what_works_now_is_kept() -> None:
    """A local system with mock on the loopback starts."""
    loaded().config.check_supported()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"Platforms/other": {**REMOTE, "ssh": {**CONCH, "sshCmdOptions": ["-J", "jump"]}}},
            'sshCmdOptions: only "transport": "openssh" goes over another host (-J,',
        ),
        (
            {"Platforms/other": {**REMOTE, "ssh": {**OPENSSH, "passphraseFile": "p"}}},
            "passphraseFile: with",
        ),
        ({"Platforms/mycluster/policy_file": "p.json"}, "policy_file: it promises"),
        ({"examiner": "/usr/bin/examiner"}, "examiner: it promises"),
        ({"Listen": "tcp:5000"}, "Listen: with"),
        ({"Listen": ["tcp:5000:interface=127.0.0.1", "tcp:5001"]}, "Listen: with"),
    ],
)
def test_what_is_not_kept_is_refused(changes: dict[str, Any], told: str) -> None:
    """What this version does not keep loads, and is refused at the start, in one line."""
    config = loaded(changes).config
    with pytest.raises(ConfigurationError) as caught:
        config.check_supported()
    (line,) = str(caught.value).splitlines()
    assert line.startswith(told)


def test_remote_by_openssh_is_kept() -> None:
    """A system that the machine's own ssh reaches."""
    loaded({"Platforms/other": {**REMOTE, "ssh": OPENSSH}}).config.check_supported()


def test_remote_by_our_own_ssh_is_kept() -> None:
    """A system that needs no more than a key, also one with a passphrase."""
    loaded({"Platforms/other": {**REMOTE, "ssh": CONCH}}).config.check_supported()
    account = {**CONCH, "passphraseFile": "passphrase"}
    loaded({"Platforms/other": {**REMOTE, "ssh": account}}).config.check_supported()


@pytest.mark.parametrize("account", [CONCH, OPENSSH])
def test_remote_by_scp_is_kept(account: dict[str, Any]) -> None:
    """A system without SFTP, by either connection."""
    ssh = {**account, "transfer": "scp"}
    loaded({"Platforms/other": {**REMOTE, "ssh": ssh}}).config.check_supported()


def test_mongodb_is_kept() -> None:
    """A server, and the name of a database on it."""
    loaded({"MongoDBURI": "mongodb://localhost/", "MongoDB": "Shifter"}).config.check_supported()


def test_mongodb_needs_both_keys() -> None:
    """The name of the database is required with a URI; without one it has no effect."""
    with pytest.raises(ConfigurationError, match="MongoDB: is required with MongoDBURI"):
        loaded({"MongoDBURI": "mongodb://localhost/"})
    (warning,) = loaded({"MongoDB": "Shifter"}).warnings
    assert warning.startswith("MongoDB: has no effect without MongoDBURI")


def test_munge_is_kept() -> None:
    """A site's own way to know its users: munge, and a command that lists them."""
    loaded({**MUNGE, "Platforms/mycluster/groupsCommand": ["list"]}).config.check_supported()


def test_two_systems_with_one_munge_daemon() -> None:
    """Then a credential of one counts on the other: a warning. With two there is none."""
    another = {"accesstype": "local", "local": {"imageDir": "/two"}}
    found = loaded({**MUNGE, "Platforms/two": {**another, "mungeSocketPath": "/run/munge.socket"}})
    (warning,) = found.warnings
    assert warning.startswith("Platforms.two.mungeSocketPath: mycluster has the same;")
    found = loaded({**MUNGE, "Platforms/two": {**another, "mungeSocketPath": "/run/two.socket"}})
    assert found.warnings == ()


def test_refusals_come_together() -> None:
    """The start tells everything at once, not one thing at each try."""
    config = loaded(
        {"examiner": "/usr/bin/examiner", "Platforms/mycluster/policy_file": "p.json"}
    ).config
    with pytest.raises(ConfigurationError) as caught:
        config.check_supported()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "policy_file",
        "examiner",
    ]


MONGODB = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "Shifter"}


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:secret@broker/",
        "amqps://broker/host",
        "amqps://broker/?cacertfile=/ca.pem&certfile=/us.pem&keyfile=/key.pem",
    ],
)
def test_a_broker_is_kept(url: str) -> None:
    """RabbitMQ, with TLS or without, where the state is in MongoDB."""
    found = loaded({**MONGODB, "BrokerURL": url, "BrokerAway": "refuse"})
    found.config.check_supported()
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_a_broker_that_cannot_be_used(changes: dict[str, Any], told: str) -> None:
    """One line says why, without the password in the URL."""
    with pytest.raises(ConfigurationError, match=told) as caught:
        loaded(changes)
    if "BrokerAway" not in changes:
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a,b", "amq.direct", "x" * 201])
def test_a_system_that_cannot_name_a_queue(name: str) -> None:
    """With a broker a system's name is that of its queue."""
    another = {"accesstype": "local", "local": {"imageDir": "/two"}}
    with pytest.raises(ConfigurationError, match="names a queue"):
        loaded({**MONGODB, "BrokerURL": "amqp://b/", f"Platforms/{name}": another})
    loaded({f"Platforms/{name}": another})


@pytest.mark.parametrize(
    ("kind", "options", "fine"),
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
def test_locks_of_directories_that_machines_share(kind: str, options: str, fine: bool) -> None:
    """It depends on how they are mounted whether locks count on all machines."""
    assert (lock_trouble(kind, frozenset(options.split(","))) is None) == fine


def test_what_to_do_without_a_broker_that_is_none() -> None:
    """It has no effect: a warning."""
    (warning,) = loaded({"BrokerAway": "refuse"}).warnings
    assert warning.startswith("BrokerAway: has no effect without BrokerURL")


@pytest.mark.parametrize(
    ("endpoint", "local"),
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
def test_only_local(endpoint: str, local: bool) -> None:
    """Only what is certainly the loopback or a local socket counts as such."""
    assert only_local(endpoint) == local


def test_mock_on_other_loopback_forms_starts() -> None:
    """Unix sockets and IPv6's loopback do for mock."""
    listen = ["unix:/run/shiftergw.socket", r"tcp6:5000:interface=\:\:1"]
    loaded({"Listen": listen}).config.check_supported()


@pytest.mark.parametrize("kind", sorted(NETWORK_FILE_SYSTEMS))
def test_state_on_a_network_file_system(kind: str) -> None:
    """SQLite is not put where its locks do not hold."""
    with pytest.raises(ConfigurationError, match=r"StateDirectory: .*network file system"):
        loaded().config.check_state_file_system(kind)


def test_no_state_on_a_network_file_system() -> None:
    """With MongoDB there is no SQLite file whose locks would have to hold."""
    config = loaded({"MongoDBURI": "mongodb://localhost/", "MongoDB": "Shifter"}).config
    config.check_state_file_system("nfs4")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"])
def test_state_on_a_local_file_system(kind: str) -> None:
    """Local file systems are fine."""
    loaded().config.check_state_file_system(kind)
