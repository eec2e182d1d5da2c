"""Tests of the translation of `ssh` and `scp` options for our own SSH."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shiftergw.config.ssh_options import SshOptions, translate_options
from shiftergw.errors import ConfigurationError
from shiftergw.ssh.cipher_names import CIPHERS
from tests.configurations import BASE, load_config

GCM, GCM_256, CTR, *_, CTR_256 = CIPHERS
ADVICE = '"transport": "openssh" hands it to ssh'


def values(options: SshOptions) -> dict[str, Any]:
    """Return the values that are set, by field."""
    names = "port", "user", "key", "known_hosts", "ciphers", "connect_seconds", "jump"
    fields = {name: getattr(options, name) for name in names}
    return {name: value for name, value in fields.items() if value}


def ssh(*words: str, **keys: object) -> SshOptions:
    """Translate arguments of ssh, and values of keys."""
    return translate_options(words, (), {name: (name, value) for name, value in keys.items()})


def scp(*words: str) -> SshOptions:
    """Translate arguments of scp."""
    return translate_options((), words, {})


@pytest.mark.parametrize(
    ("words", "expected"),
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
def test_options_with_a_meaning(words: list[str], expected: dict[str, Any]) -> None:
    """Every form of an option sets its value, without a warning."""
    options = ssh(*words)
    assert values(options) == expected
    assert (options.warnings, options.problems) == ((), ())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-P", "2222", "-i", "/k"], {"port": 2222, "key": Path("/k")}),
        (["-c", CTR], {"ciphers": (CTR,)}),
        (["-B", "-q", "-oPort=22"], {"port": 22}),
        (["-J", "jump"], {"jump": "-J jump"}),
    ],
)
def test_scp_has_letters_of_its_own(words: list[str], expected: dict[str, Any]) -> None:
    """A letter with another meaning for scp than for ssh has scp's meaning."""
    options = scp(*words)
    assert values(options) == expected
    assert (options.warnings, options.problems) == ((), ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-4"], f"-4 has no meaning here; {ADVICE}"),
        (["-6"], f"-6 has no meaning here; {ADVICE}"),
        (["-v"], f"-v has no meaning here; {ADVICE}"),
        (["-P"], f"-P has no meaning here; {ADVICE}"),
        (["-F", "/config"], f"-F /config has no meaning here; {ADVICE}"),
        (["-o", "Compression=yes"], f"-o Compression=yes has no meaning here; {ADVICE}"),
        (["-o", "BatchMode=no"], f"-o BatchMode=no has no meaning here; {ADVICE}"),
        (["-o", "Port"], f"-o Port has no meaning here; {ADVICE}"),
        (["login1"], f"login1 has no meaning here; {ADVICE}"),
        (["-o", "Odd=\x1b[2J"], rf"-o Odd=\x1b[2J has no meaning here; {ADVICE}"),
        (["-o", "StrictHostKeyChecking=no"], "-o StrictHostKeyChecking=no is never honored"),
        (["-oStrictHostKeyChecking accept-new"], "is never honored: host keys are always checked"),
        (["-o", "StrictHostKeyChecking=off"], "is never honored: host keys are always checked"),
        (["-o", "UserKnownHostsFile=/dev/null"], "is never honored: host keys are always checked"),
        (["-o", "UserKnownHostsFile=/a /b"], 'is not used: write one file as "knownHosts"'),
        (["-o", "UserKnownHostsFile=%d/a"], 'is not used: write an absolute path as "knownHosts"'),
        (["-i", "id_rsa"], '-i id_rsa is not used: write an absolute path as "key"'),
        (["-o", "ConnectTimeout=0"], "is not used: a connection attempt always has a time limit"),
    ],
)
def test_options_without_a_meaning(words: list[str], message: str) -> None:
    """An unsupported option causes one warning that quotes it, and sets no value."""
    options = ssh(*words)
    (warning,) = options.warnings
    assert warning.startswith("sshCmdOptions: ")
    assert message in warning
    assert (values(options), options.problems) == ({}, ())


@pytest.mark.parametrize("words", [["-p"], ["-r"], ["-l", "8192"], ["-S", "/bin/rsh"], ["-4"]])
def test_letters_of_ssh_without_a_meaning_for_scp(words: list[str]) -> None:
    """Letters that set a port or a user for ssh set neither for scp."""
    options = scp(*words)
    (warning,) = options.warnings
    assert warning == f"scpCmdOptions: {' '.join(words)} has no meaning here"
    assert values(options) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "ssh"], "sshCmdOptions: -p ssh: must be a port, 1 to 65535"),
        (["-p", "0"], "sshCmdOptions: -p 0: must be a port, 1 to 65535"),
        (["-o", "Port=65536"], "sshCmdOptions: -o Port=65536: must be a port, 1 to 65535"),
        (["-o", "ConnectTimeout=soon"], "must be a time, such as 10 or 1m30s"),
        (["-c", "arcfour"], f"-c arcfour: our own SSH has none of these ciphers; it has {GCM},"),
        (["-o", "Ciphers=-*"], "our own SSH has none of these ciphers"),
        (["-o", 'UserKnownHostsFile="/a'], "No closing quotation"),
        (["-p"], "sshCmdOptions: option -p requires argument"),
        (["--port=22"], "sshCmdOptions: option --port not recognized"),
    ],
)
def test_invalid_values_are_problems(words: list[str], message: str) -> None:
    """A value that is invalid, or must not be left out, is a problem and not a warning."""
    options = ssh(*words)
    (problem,) = options.problems
    assert message in problem
    assert values(options) == {}


def test_the_first_of_two_values_counts() -> None:
    """The first value counts, and options of ssh precede those of scp; a warning names the rest."""
    options = translate_options(["-p", "2", "-oPort=3"], ["-P", "4", "-i", "/k"], {})
    assert values(options) == {"port": 2, "key": Path("/k")}
    assert options.warnings == (
        "sshCmdOptions: -o Port=3 is not used: -p 2 counts",
        "scpCmdOptions: -P 4 is not used: -p 2 counts",
    )


def test_keys_have_priority_over_options() -> None:
    """The value of a key counts, and only an option with another value causes a warning."""
    options = ssh("-p", "22", "-l", "bob", "-i", "/k", port=22, user="ann")
    assert values(options) == {"port": 22, "user": "ann", "key": Path("/k")}
    assert options.warnings == ('sshCmdOptions: -l bob is not used: "user" counts',)


def test_options_after_a_word_are_read() -> None:
    """A word that is not an option does not end the options."""
    options = ssh("login1", "-p", "2", "login2", "-J", "jump")
    assert values(options) == {"port": 2, "jump": "-J jump"}


def system(**keys: Any) -> dict[str, Any]:
    """Return changes that add a remote system with further keys in its section `ssh`."""
    account = {"username": "shifter", "imageDir": "/images", **keys}
    return {"Platforms/other": {"accesstype": "remote", "host": ["login1"], "ssh": account}}


def test_the_section_of_a_system_has_the_values_of_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The properties of the section `ssh` are the values of its keys, then those of options."""
    monkeypatch.setenv("HOME", "/home/shifter")
    words = ["-p", "2222", "-o", "UserKnownHostsFile=~/known", "-o", "ConnectTimeout=7"]
    result = load_config(
        system(sshCmdOptions=words, scpCmdOptions=["-P", "2222", "-c", CTR], key="k")
    )
    ssh = result.config.systems["other"].ssh
    assert ssh is not None
    assert result.warnings == ()
    assert (ssh.login_port, ssh.key_file) == (2222, BASE / "k")
    assert ssh.known_hosts_file == Path("/home/shifter/known")
    assert (ssh.ciphers, ssh.connect_seconds) == ((CTR,), 7.0)


def test_a_system_without_options() -> None:
    """Without options the properties are the values of the keys, and the port is 22."""
    ssh = load_config(system()).config.systems["other"].ssh
    assert ssh is not None
    assert (ssh.login_port, ssh.key_file, ssh.known_hosts_file) == (22, None, None)
    assert (ssh.ciphers, ssh.connect_seconds) == ((), None)


def test_a_key_with_the_default_port_has_priority() -> None:
    """The port of the configuration counts, even if it is the default port."""
    result = load_config(system(sshCmdOptions=["-p", "2222"], port=22))
    ssh = result.config.systems["other"].ssh
    assert ssh is not None
    assert ssh.login_port == 22
    (warning,) = result.warnings
    where = "Platforms.other.ssh.sshCmdOptions"
    assert warning == f'{where}: -p 2222 is not used: "port" counts'


def test_the_home_of_an_unknown_user_is_not_expanded() -> None:
    """A path in the home of an unknown user stays unchanged, so that errors can quote it."""
    ssh = load_config(system(sshCmdOptions=["-i", "~nobody-here/k"])).config.systems["other"].ssh
    assert ssh is not None
    assert ssh.key_file == Path("~nobody-here/k")


def test_a_configuration_with_invalid_options_is_refused() -> None:
    """The error has the problems of options together with all other problems."""
    words = ["-c", "arcfour", "-p", "x"]
    with pytest.raises(ConfigurationError) as caught:
        load_config({**system(sshCmdOptions=words), "DefaultImageLocation": "elsewhere"})
    _, *lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "DefaultImageLocation",
        *["Platforms.other.ssh.sshCmdOptions"] * 2,
    ]


def test_options_for_openssh_are_not_translated() -> None:
    """With `openssh`, `ssh` reads its options itself, and options of `scp` cause a warning."""
    words = ["-c", "arcfour", "-4", "-J", "jump", "-p", "x"]
    keys: dict[str, Any] = {"transport": "openssh", "sshCmdOptions": words}
    result = load_config(system(**keys))
    assert result.warnings == ()
    result.config.check_supported()
    for transfer in ("sftp", "scp"):
        (warning,) = load_config(system(**keys, scpCmdOptions=["-q"], transfer=transfer)).warnings
        assert warning.startswith("Platforms.other.ssh.scpCmdOptions: has no meaning with")


def test_options_of_a_local_system_are_not_read() -> None:
    """A local system may have a section `ssh` with any options."""
    account = {
        "username": "u",
        "imageDir": "/i",
        "sshCmdOptions": ["-c", "arcfour", "-4", "-J", "j"],
    }
    result = load_config({"Platforms/mycluster/ssh": account})
    assert result.warnings == ()
    result.config.check_supported()
