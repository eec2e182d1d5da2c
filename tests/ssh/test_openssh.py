"""The machine's own `ssh` connects to OpenSSH's server."""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import DeliveryFailed, TimedOut
from shiftergw.plumbing import child_end
from shiftergw.plumbing.channel import Channel
from shiftergw.plumbing.child_end import LEAVE_AFTER
from shiftergw.plumbing.timing import pause, within
from shiftergw.ssh.openssh import KILL_AFTER, OpenSsh, OpensshAccount
from tests.delivery.far import account_on, connection, without_ssh
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.patience import patient
from tests.sshd import Sshd, make_key, public
from tests.stuck_children import StuckReactor


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


async def run_to_end(over: OpenSsh, argv: list[str]) -> tuple[bytes, int | None]:
    """Run a program; return its output and its exit status."""
    try:
        channel: Channel = await over.open_command(argv)
        output = bytearray()
        channel.receive(output.extend)
        channel.end_input()
        status = await channel.closed
        return bytes(output), status
    finally:
        await over.close()


@pytest.mark.parametrize(
    "word", ["plain", "", "two words", "$HOME", "`id`", "a'b", 'a"b', "*", "; id", "-n", "a\nb"]
)
@pytest_twisted.ensureDeferred
async def test_words_stay_words(sshd: Sshd, word: str) -> None:
    """The remote shell does not interpret characters of an argument."""
    output, status = await run_to_end(connection(account_on(sshd)), ["printf", "[%s]", word, "end"])
    assert (output, status) == (f"[{word}][end]".encode(), 0)


@pytest_twisted.ensureDeferred
async def test_exit_status(sshd: Sshd) -> None:
    """Exit status and standard error of the remote program are returned."""
    over = connection(account_on(sshd))
    channel: Channel = await over.open_command(["sh", "-c", "echo no >&2; exit 3"])
    channel.receive(lambda _: None)
    assert await channel.closed == 3
    assert "no" in channel.stderr
    await over.close()


@pytest_twisted.ensureDeferred
async def test_bytes_both_ways(sshd: Sshd) -> None:
    """Bytes arrive unchanged, also if they are sent before the program reads."""
    content = os.urandom(3_000_000)
    over = connection(account_on(sshd))
    channel: Channel = await over.open_command(["cat"])
    output = bytearray()
    channel.receive(output.extend)
    channel.writeSequence([content[:1_000_000], memoryview(content)[1_000_000:]])
    channel.end_input()
    assert await channel.closed == 0
    assert output == content
    await over.close()


def unknown_key(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account without known host keys."""
    (tmp_path / "known").touch()
    return account_on(sshd, known_hosts=tmp_path / "known")


def changed_key(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account whose known host key differs."""
    key = make_key(tmp_path / "other")
    (tmp_path / "known").write_text(f"[127.0.0.1]:{sshd.port} {public(key)}\n")
    return account_on(sshd, known_hosts=tmp_path / "known")


def revoked_key(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account whose known hosts revoke the host key."""
    (tmp_path / "known").write_text(f"@revoked * {public(sshd.host_key('ed25519'))}\n")
    return account_on(sshd, known_hosts=tmp_path / "known")


def unauthorized_key(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account with a key that the server does not know."""
    return account_on(sshd, key=make_key(tmp_path / "stranger"))


def open_to_others(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account with a key that other users can read."""
    key = tmp_path / "shared"
    key.write_bytes(sshd.key.read_bytes())
    key.chmod(0o644)
    return account_on(sshd, key=key)


def no_listener(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account with a closed port."""
    return account_on(sshd, port=free_port())


def no_passphrase(sshd: Sshd, tmp_path: Path) -> OpensshAccount:
    """Return an account whose key needs a passphrase, for which ssh must not prompt."""
    return account_on(sshd, key=make_key(tmp_path / "locked", passphrase="secret"))


@pytest.mark.parametrize(
    ("account", "what"),
    [
        (unknown_key, "host key is not known"),
        (changed_key, "another host key"),
        (revoked_key, "revoked"),
        (unauthorized_key, "refused the gateway's login"),
        (open_to_others, "can be read by others"),
        (no_listener, "cannot be reached"),
        (no_passphrase, "refused the gateway's login"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refusals(
    sshd: Sshd, tmp_path: Path, account: Callable[[Sshd, Path], OpensshAccount], what: str
) -> None:
    """Each failed login has an error of its own; host and messages of ssh are in the detail."""
    over = connection(account(sshd, tmp_path))
    with pytest.raises(DeliveryFailed) as excinfo:
        await run_to_end(over, ["true"])
    assert what in excinfo.value.what
    assert ("ssh-trust SYSTEM" in excinfo.value.remedy) == (account in {unknown_key, changed_key})
    assert "127.0.0.1" not in str(excinfo.value)
    assert excinfo.value.detail
    assert excinfo.value.detail.isprintable()


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"],
        ["-o", "NoHostAuthenticationForLocalhost=yes"],  # for the start of a tunnel, for example
    ],
)
@pytest_twisted.ensureDeferred
async def test_options_cannot_weaken_the_check(
    sshd: Sshd, tmp_path: Path, options: list[str]
) -> None:
    """Options of the site cannot disable the check of host keys."""
    (tmp_path / "known").touch()
    over = connection(account_on(sshd, known_hosts=tmp_path / "known", options=options))
    with pytest.raises(DeliveryFailed, match="not known"):
        await run_to_end(over, ["true"])


@pytest_twisted.ensureDeferred
async def test_host_that_looks_like_an_option(tmp_path: Path) -> None:
    """A host name that begins with a dash is not parsed as an option."""
    over = connection(OpensshAccount(f"-oProxyCommand=touch {tmp_path}/owned", "user"))
    with pytest.raises(DeliveryFailed):
        await run_to_end(over, ["true"])
    assert list(tmp_path.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_no_ssh(tmp_path: Path) -> None:
    """A machine without ssh raises an error that says so."""
    over = connection(OpensshAccount("nowhere", "user"), {"PATH": str(tmp_path)})
    with pytest.raises(DeliveryFailed, match="no ssh program"):
        await over.open_command(["true"])


@pytest_twisted.ensureDeferred
async def test_close_ends_everything(sshd: Sshd) -> None:
    """`close` ends every child process."""
    over = connection(account_on(sshd))
    channels: list[Channel] = [
        await over.open_command(["sleep", "1000"]),
        await over.open_subsystem("sftp"),
    ]
    await over.close()
    assert over._children == set()
    for channel in channels:
        assert channel.closed.called


@pytest_twisted.ensureDeferred
async def test_close_does_not_wait_for_a_process_of_ssh(tmp_path: Path) -> None:
    """A process that ssh leaves behind with full pipes does not block the gateway."""
    env = without_ssh(
        tmp_path / "bin",
        before=f"exec 3<&0; sleep 1000 & echo $! > {tmp_path}/pid; exec sleep 1000",
    )
    over = connection(OpensshAccount("system", "nobody"), env)
    channel: Channel = await over.open_command(["true"])
    channel.receive(lambda _: None)
    channel.write(bytes(8 << 20))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        await pause(0.01, reactor)
    try:
        await within(patient(5 * KILL_AFTER), reactor, over.close(), lambda: TimedOut("It hangs."))
        assert channel.closed.called
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_close_leaves_an_ssh_behind_that_cannot_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose home directory hangs in the kernel keeps neither the channel nor the gateway."""
    monkeypatch.setattr(child_end, "stuck_children", set())
    stuck_reactor, clock = StuckReactor(), Clock()
    env = without_ssh(tmp_path / "bin")
    any_reactor: Any = stuck_reactor
    over = OpenSsh(OpensshAccount("system", "nobody"), env, any_reactor, clock, 60)
    channel: Channel = await over.open_command(["true"])
    closing = Deferred.fromCoroutine(over.close())
    clock.pump([1] * round(KILL_AFTER + LEAVE_AFTER))
    await closing
    assert stuck_reactor.protocols[0].transport.signals == ["TERM", "KILL"]
    assert await channel.closed is None
    assert child_end.stuck_children == {1}
    stuck_reactor.end(0)
    assert child_end.stuck_children == set()
    assert clock.getDelayedCalls() == []
