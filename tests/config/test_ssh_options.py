"""What options of `ssh` and `scp` mean to our own SSH."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shiftergw.config.ssh_options import SshOptions, translated
from shiftergw.errors import ConfigurationError
from shiftergw.ssh.cipher_names import CIPHERS
from tests.configurations import BASE, loaded

GCM, GCM_256, CTR, *_, CTR_256 = CIPHERS
HANDED = '"transport": "openssh" hands it to ssh'


def values(options: SshOptions) -> dict[str, Any]:
    """Return what the options say, without what they do not."""
    names = "port", "user", "key", "known_hosts", "ciphers", "connect_seconds", "jump"
    found = {name: getattr(options, name) for name in names}
    return {name: value for name, value in found.items() if value}


def ssh(*words: str, **explicit: object) -> SshOptions:
    """Return what arguments of ssh mean beside explicit values."""
    return translated(words, (), {name: (name, value) for name, value in explicit.items()})


def scp(*words: str) -> SshOptions:
    """Return what arguments of scp mean."""
    return translated((), words, {})


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], {}),
        (["-p", "2222"], {"port": 2222}),
        (["-p2222"], {"port": 2222}),
        (["-p 2222"], {"port": 2222}),
        (["-qp2222"], {"port": 2222}),
        (["-o", "Port=2222"], {"port": 2222}),
        (["-oPort=2222"], {"port": 2222}),
        (["-o Port=2222"], {"port": 2222}),
        (["-o", "Port 2222"], {"port": 2222}),
        (["-o", "port = 2222"], {"port": 2222}),
        (["-o", 'PORT="2222"'], {"port": 2222}),
        (["-l", "bob"], {"user": "bob"}),
        (["-o", "User=bob"], {"user": "bob"}),
        (["-i", "/k"], {"key": Path("/k")}),
        (["-i", "~/.ssh/k"], {"key": Path("~/.ssh/k")}),
        (["-oIdentityFile=/k"], {"key": Path("/k")}),
        (["-o", "UserKnownHostsFile=/known"], {"known_hosts": Path("/known")}),
        (["-o", "UserKnownHostsFile ~/known"], {"known_hosts": Path("~/known")}),
        (["-c", f"{CTR_256},{GCM}"], {"ciphers": (CTR_256, GCM)}),
        (["-c", f"chacha20-poly1305@openssh.com,{CTR}"], {"ciphers": (CTR,)}),
        (["-o", f"Ciphers={CTR},{CTR}"], {"ciphers": (CTR,)}),
        (["-o", f"Ciphers=^{CTR_256}"], {"ciphers": (CTR_256, *CIPHERS[:-1])}),
        (["-o", "Ciphers=+3des-cbc"], {"ciphers": CIPHERS}),
        (["-o", "Ciphers=-aes*-ctr"], {"ciphers": (GCM, GCM_256)}),
        (["-o", "ConnectTimeout=7"], {"connect_seconds": 7.0}),
        (["-o", "ConnectTimeout=1m30s"], {"connect_seconds": 90.0}),
        (["-o", "StrictHostKeyChecking=yes", "-q", "-o", "BatchMode=yes"], {}),
        (["-o", "LogLevel=QUIET", "-oLogLevel=ERROR", "-o", "ProxyCommand=none"], {}),
        (["-J", "jump"], {"jump": "-J jump"}),
        (["-o", "ProxyJump=jump"], {"jump": "-o ProxyJump=jump"}),
        (["-o", "ProxyCommand=ssh -W %h:%p jump"], {"jump": "-o ProxyCommand=ssh -W %h:%p jump"}),
        (["-p", "2222", "-l", "bob", "-i", "/k"], {"port": 2222, "user": "bob", "key": Path("/k")}),
        (["-p", "2222", "-o", "Port=2222"], {"port": 2222}),
    ],
)
def test_what_has_a_meaning(words: list[str], meant: dict[str, Any]) -> None:
    """Each way to write an option gives its value, without a word about it."""
    options = ssh(*words)
    assert values(options) == meant
    assert (options.warnings, options.problems) == ((), ())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["-P", "2222", "-i", "/k"], {"port": 2222, "key": Path("/k")}),
        (["-c", CTR], {"ciphers": (CTR,)}),
        (["-B", "-q", "-oPort=22"], {"port": 22}),
        (["-J", "jump"], {"jump": "-J jump"}),
    ],
)
def test_scp_has_letters_of_its_own(words: list[str], meant: dict[str, Any]) -> None:
    """What scp calls otherwise than ssh is read as scp does."""
    options = scp(*words)
    assert values(options) == meant
    assert (options.warnings, options.problems) == ((), ())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-4"], f"-4 has no meaning here; {HANDED}"),
        (["-6"], f"-6 has no meaning here; {HANDED}"),
        (["-v"], f"-v has no meaning here; {HANDED}"),
        (["-P"], f"-P has no meaning here; {HANDED}"),
        (["-F", "/config"], f"-F /config has no meaning here; {HANDED}"),
        (["-o", "Compression=yes"], f"-o Compression=yes has no meaning here; {HANDED}"),
        (["-o", "BatchMode=no"], f"-o BatchMode=no has no meaning here; {HANDED}"),
        (["-o", "Port"], f"-o Port has no meaning here; {HANDED}"),
        (["login1"], f"login1 has no meaning here; {HANDED}"),
        (["-o", "Odd=\x1b[2J"], rf"-o Odd=\x1b[2J has no meaning here; {HANDED}"),
        (["-o", "StrictHostKeyChecking=no"], "-o StrictHostKeyChecking=no is never honoured"),
        (["-oStrictHostKeyChecking accept-new"], "is never honoured: host keys are always checked"),
        (["-o", "StrictHostKeyChecking=off"], "is never honoured: host keys are always checked"),
        (["-o", "UserKnownHostsFile=/dev/null"], "is never honoured: host keys are always checked"),
        (["-o", "UserKnownHostsFile=/a /b"], 'is not used: write one file as "knownHosts"'),
        (["-o", "UserKnownHostsFile=%d/a"], 'is not used: write an absolute path as "knownHosts"'),
        (["-i", "id_rsa"], '-i id_rsa is not used: write an absolute path as "key"'),
        (["-o", "ConnectTimeout=0"], "-o ConnectTimeout=0 is not used: there is always a limit"),
    ],
)
def test_what_has_none(words: list[str], told: str) -> None:
    """What is not done is named in one warning, and gives no value."""
    options = ssh(*words)
    (warning,) = options.warnings
    assert warning.startswith("sshCmdOptions: ")
    assert told in warning
    assert (values(options), options.problems) == ({}, ())


@pytest.mark.parametrize("words", [["-p"], ["-r"], ["-l", "8192"], ["-S", "/bin/rsh"], ["-4"]])
def test_letters_that_mean_nothing_to_scp(words: list[str]) -> None:
    """The same letters are something else to scp: none of them is a port or a user."""
    options = scp(*words)
    (warning,) = options.warnings
    assert warning == f"scpCmdOptions: {' '.join(words)} has no meaning here"
    assert values(options) == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-p", "ssh"], "sshCmdOptions: -p ssh: must be a port, 1 to 65535"),
        (["-p", "0"], "sshCmdOptions: -p 0: must be a port, 1 to 65535"),
        (["-o", "Port=65536"], "sshCmdOptions: -o Port=65536: must be a port, 1 to 65535"),
        (["-o", "ConnectTimeout=soon"], "must be a time, such as 10 or 1m30s"),
        (["-c", "arcfour"], f"-c arcfour: none of these ciphers is one of our own SSH's: {GCM},"),
        (["-o", "Ciphers=-*"], "none of these ciphers is one of our own SSH's"),
        (["-o", 'UserKnownHostsFile="/a'], "No closing quotation"),
        (["-p"], "sshCmdOptions: option -p requires argument"),
        (["--port=22"], "sshCmdOptions: option --port not recognized"),
    ],
)
def test_what_cannot_be_used(words: list[str], told: str) -> None:
    """A value without which the connection would be another one is a problem."""
    options = ssh(*words)
    (problem,) = options.problems
    assert told in problem
    assert values(options) == {}


def test_the_first_of_two_counts() -> None:
    """Of two values the first one counts, those of ssh come before scp's; the other is named."""
    options = translated(["-p", "2", "-oPort=3"], ["-P", "4", "-i", "/k"], {})
    assert values(options) == {"port": 2, "key": Path("/k")}
    assert options.warnings == (
        "sshCmdOptions: -o Port=3 is not used: -p 2 counts",
        "scpCmdOptions: -P 4 is not used: -p 2 counts",
    )


def test_keys_come_before_options() -> None:
    """What stands in the configuration for itself wins, and only a contradiction is named."""
    options = ssh("-p", "22", "-l", "bob", "-i", "/k", port=22, user="ann")
    assert values(options) == {"port": 22, "user": "ann", "key": Path("/k")}
    assert options.warnings == ('sshCmdOptions: -l bob is not used: "user" counts',)


def test_options_behind_a_word() -> None:
    """A word that is no option hides none of those that follow it."""
    options = ssh("login1", "-p", "2", "login2", "-J", "jump")
    assert values(options) == {"port": 2, "jump": "-J jump"}


def system(**keys: Any) -> dict[str, Any]:
    """Return changes that add a remote system with these keys in its `ssh`."""
    account = {"username": "shifter", "imageDir": "/images", **keys}
    return {"Platforms/other": {"accesstype": "remote", "host": ["login1"], "ssh": account}}


def test_a_system_has_what_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The properties of a system's `ssh` are what its keys say, and behind them its options."""
    monkeypatch.setenv("HOME", "/home/shifter")
    words = ["-p", "2222", "-o", "UserKnownHostsFile=~/known", "-o", "ConnectTimeout=7"]
    found = loaded(system(sshCmdOptions=words, scpCmdOptions=["-P", "2222", "-c", CTR], key="k"))
    ssh = found.config.systems["other"].ssh
    assert ssh is not None
    assert found.warnings == ()
    assert (ssh.login_port, ssh.key_file) == (2222, BASE / "k")
    assert ssh.known_hosts_file == Path("/home/shifter/known")
    assert (ssh.ciphers, ssh.connect_seconds) == ((CTR,), 7.0)


def test_a_system_without_options() -> None:
    """Without options the properties are the keys, and 22 is the port."""
    ssh = loaded(system()).config.systems["other"].ssh
    assert ssh is not None
    assert (ssh.login_port, ssh.key_file, ssh.known_hosts_file) == (22, None, None)
    assert (ssh.ciphers, ssh.connect_seconds) == ((), None)


def test_a_port_that_is_written_is_meant() -> None:
    """A port that stands in the configuration wins, also if it is the default."""
    found = loaded(system(sshCmdOptions=["-p", "2222"], port=22))
    ssh = found.config.systems["other"].ssh
    assert ssh is not None
    assert ssh.login_port == 22
    (warning,) = found.warnings
    where = "Platforms.other.ssh.sshCmdOptions"
    assert warning == f'{where}: -p 2222 is not used: "port" counts'


def test_a_home_that_is_not_there() -> None:
    """The home of nobody leaves the path as it is, so that whoever opens it can name it."""
    ssh = loaded(system(sshCmdOptions=["-i", "~nobody-here/k"])).config.systems["other"].ssh
    assert ssh is not None
    assert ssh.key_file == Path("~nobody-here/k")


def test_options_that_cannot_be_used_do_not_load() -> None:
    """What our own SSH cannot do without a value for is refused with all other problems."""
    words = ["-c", "arcfour", "-p", "x"]
    with pytest.raises(ConfigurationError) as caught:
        loaded({**system(sshCmdOptions=words), "DefaultImageLocation": "elsewhere"})
    _, *lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "DefaultImageLocation",
        *["Platforms.other.ssh.sshCmdOptions"] * 2,
    ]


def test_the_machines_ssh_reads_its_options_itself() -> None:
    """With `openssh` nothing is translated; what would not reach ssh is named."""
    words = ["-c", "arcfour", "-4", "-J", "jump", "-p", "x"]
    keys: dict[str, Any] = {"transport": "openssh", "sshCmdOptions": words}
    found = loaded(system(**keys))
    assert found.warnings == ()
    found.config.check_supported()
    for transfer in ("sftp", "scp"):
        (warning,) = loaded(system(**keys, scpCmdOptions=["-q"], transfer=transfer)).warnings
        assert warning.startswith("Platforms.other.ssh.scpCmdOptions: has no meaning with")


def test_options_of_a_local_system_are_nobodys() -> None:
    """A local system may keep an `ssh` of old, whatever stands in it."""
    left = {"username": "u", "imageDir": "/i", "sshCmdOptions": ["-c", "arcfour", "-4", "-J", "j"]}
    found = loaded({"Platforms/mycluster/ssh": left})
    assert found.warnings == ()
    found.config.check_supported()
