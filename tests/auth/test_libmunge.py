"""One contract for libmunge and for the programs `munge` and `unmunge`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftergw.auth import libmunge
from shiftergw.auth.libmunge import LARGEST, Library, Munge, Programs, Status, find_munge
from shiftergw.auth.munge_client import decode_own, encode
from shiftergw.errors import NotAuthenticated, Unavailable
from tests.munged import START_SECONDS, MungeDaemon, clock_off_by
from tests.parts import need

PAYLOADS = [
    b"",
    b"a",
    b"\n",
    b"\n\nUID: x (0)\n\n",
    b"a\0b\xff\r\n",
    bytes(range(256)),
    b"x" * 60000,
]
BAD = {
    b"(null)": Status.BAD_CREDENTIAL,
    b"garbage": Status.BAD_CREDENTIAL,
    b"MUNGE::": Status.BAD_CREDENTIAL,
    b"MUNGE:AAAA:": Status.BAD_VERSION,
    b"MUNGE:" + b"A" * LARGEST + b":": Status.BAD_LENGTH,
}


@pytest.fixture(scope="module")
def munged() -> Iterator[MungeDaemon]:
    """Run a daemon."""
    with MungeDaemon() as running:
        yield running


def library() -> Munge:
    """Return libmunge."""
    return Library()


def programs() -> Munge:
    """Return the programs."""
    need("unmunge")
    return Programs()


@pytest.fixture(params=[library, programs])
def munge(request: pytest.FixtureRequest) -> Munge:
    """Return the library, then the programs."""
    way: Munge = request.param()
    return way


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: repr(payload[:20]))
def test_round_trip(munged: MungeDaemon, munge: Munge, payload: bytes) -> None:
    """A payload is decoded byte for byte, with the ids of the user who encoded it."""
    status, credential = munge.encode(payload, munged.socket)
    assert status == Status.SUCCESS
    answer = munge.decode(credential.encode(), munged.socket)
    assert (answer.status, answer.uid, answer.gid) == (0, os.getuid(), os.getgid())
    assert answer.payload == payload
    assert answer.made_at == pytest.approx(time.time(), abs=START_SECONDS)
    assert answer.age is not None
    assert 0 <= answer.age <= START_SECONDS
    second_answer = munge.decode(credential.encode(), munged.socket)
    assert (second_answer.status, second_answer.payload) == (Status.REPLAYED, payload)
    assert "payload" not in repr(answer)


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_invalid_credentials(munged: MungeDaemon, munge: Munge, text: bytes) -> None:
    """An invalid credential has a status of its own, and no ids."""
    answer = munge.decode(text, munged.socket)
    assert (answer.status, answer.uid, answer.gid) == (BAD[text], -1, -1)
    assert (answer.payload, answer.made_at, answer.age) == (b"", None, None)


def test_damaged_and_foreign(munged: MungeDaemon, munge: Munge) -> None:
    """A credential with a changed byte, or of another key, is not valid."""
    credential = munged.encode(b"payload")
    invalid_credential = credential[:40] + ("A" if credential[40] != "A" else "B") + credential[41:]
    assert munge.decode(invalid_credential.encode(), munged.socket).status == Status.INVALID
    with MungeDaemon() as other_daemon:
        foreign = munge.decode(other_daemon.encode().encode(), munged.socket)
    assert (foreign.status, foreign.uid) == (Status.INVALID, -1)


def test_no_daemon(munge: Munge, tmp_path: Path) -> None:
    """Without a daemon both report SOCKET."""
    assert munge.encode(b"", tmp_path / "none")[0] == Status.SOCKET
    assert munge.decode(b"MUNGE:AAAA:", tmp_path / "none").status == Status.SOCKET


def test_too_long_a_payload(munged: MungeDaemon, munge: Munge) -> None:
    """The library and the programs refuse a payload that is longer than a daemon accepts."""
    assert munge.encode(b"x" * (LARGEST + 1), munged.socket) == (Status.BAD_LENGTH, "")


@settings(max_examples=150)
@given(text=st.one_of(st.binary(max_size=300), st.from_regex(rb"MUNGE:[A-Za-z0-9+/]{0,200}=?:")))
def test_any_text(munged: MungeDaemon, text: bytes) -> None:
    """No text without a credential is decoded successfully."""
    assert Library().decode(text, munged.socket).status not in {Status.SUCCESS, Status.EXPIRED}


STAND_IN = """#!{python}
import sys
sys.stdin.buffer.read()
sys.stdout.buffer.write({output!r})
sys.exit({code})
"""


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        (b"UID:   al (0) ice (2001)\nGID: the (7) group (2100)\n\nabc", 0, (0, 2001, 2100, b"abc")),
        (
            b"ENCODE_TIME:  then (10)\nDECODE_TIME: now (13)\nUID: a (2001)\nGID: b (2100)\n\nc",
            15,
            (15, 2001, 2100, b"c"),
        ),
        (b"UID:  ??? (2001)\nGID: ??? (2100)\n\n", 0, (0, 2001, 2100, b"")),
        (
            b"UID:  UID: x (2001)\nGID:  (2100)\n\nGID: y (1)\n\n",
            0,
            (0, 2001, 2100, b"GID: y (1)\n\n"),
        ),
        (b"UID:  a (4294967295)\nGID: b (4294967295)\n\n", 17, (17, -1, -1, b"")),
        (b"UID:  a (2001)\n\nGID: b (1)\n\n", 0, (1, -1, -1, b"")),
        (b"UID:  a 2001\nGID: b (1)\n\n", 0, (1, -1, -1, b"")),
        (b"", 0, (1, -1, -1, b"")),
        (b"", 14, (14, -1, -1, b"")),
        (b"", 139, (1, -1, -1, b"")),
    ],
)
def test_the_output_of_unmunge(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: bytes,
    code: int,
    expected: tuple[int, int, int, bytes],
) -> None:
    """The ids are at the ends of the two lines, whatever the names; other output has none."""
    program = tmp_path / "unmunge"
    program.write_text(STAND_IN.format(python=sys.executable, output=output, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = Programs().decode(b"MUNGE:AAAA:", None)
    assert (answer.status, answer.uid, answer.gid, answer.payload) == expected


def test_nothing_secret_on_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payload and credential go through standard input: other users can see arguments."""
    for name in ("munge", "unmunge"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$0 $*" >> "${0%/*}/seen"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Programs().encode(b"hunter2", Path("/socket"))
    Programs().decode(b"MUNGE:hunter2:", Path("/socket"))
    arguments = (tmp_path / "seen").read_text()
    assert arguments.count("--socket=/socket") == 2
    assert "hunter2" not in arguments


class TestCommandLine:
    """The credentials that the command line makes and reads."""

    def test_a_stored_login(self, munged: MungeDaemon, munge: Munge) -> None:
        """The user who stored a login can decode it any number of times."""
        credential = encode(b"user:pass:word", munged.socket, munge)
        for _ in range(2):
            assert decode_own(credential, munged.socket, munge) == b"user:pass:word"

    def test_an_expired_login(self, munged: MungeDaemon, munge: Munge) -> None:
        """A stored login does not expire."""
        with MungeDaemon(munged.key, clock_off_by("-1h")) as earlier:
            credential = earlier.encode(b"login")
        assert decode_own(credential, munged.socket, munge) == b"login"

    def test_another_user_s_login(self, munged: MungeDaemon, munge: Munge) -> None:
        """A login of another user is refused, even for root."""
        credential = munged.encode_as(65534, 65534, b"login")
        with pytest.raises(NotAuthenticated, match="another user"):
            decode_own(credential, munged.socket, munge)

    @pytest.mark.parametrize("text", ["", "(null)", "MUNGE:AAAA:", "x\0y", "\ud800"])
    def test_an_invalid_login(self, munged: MungeDaemon, munge: Munge, text: str) -> None:
        """The error for an invalid credential says what to do."""
        with pytest.raises(NotAuthenticated, match="Log in again"):
            decode_own(text, munged.socket, munge)

    def test_no_daemon(self, munge: Munge, tmp_path: Path) -> None:
        """Without munged the error is `Unavailable`."""
        with pytest.raises(Unavailable, match="munge does not answer"):
            encode(b"secret", tmp_path / "none", munge)
        with pytest.raises(Unavailable, match="munge does not answer"):
            decode_own("MUNGE:AAAA:", tmp_path / "none", munge)

    def test_no_munge_at_all(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without library and programs the error is `Unavailable`, too."""
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable) as caught:
            encode(b"secret", None, Programs())
        assert "secret" not in f"{caught.value}{caught.value.detail}"
        with pytest.raises(Unavailable, match="munge does not answer"):
            decode_own("MUNGE:AAAA:", None, Programs())

    def test_too_many_logins(self, munged: MungeDaemon, munge: Munge) -> None:
        """If the logins are too long for a credential, the error says which file to edit."""
        with pytest.raises(NotAuthenticated, match=r"\.cred"):
            encode(b"x" * (LARGEST + 1), munged.socket, munge)


def test_the_library_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are used only if the library is missing."""
    assert type(find_munge.__wrapped__()) is Library
    monkeypatch.setattr(libmunge, "_LIBRARY", "libmunge-that-is-missing.so.2")
    assert type(find_munge.__wrapped__()) is Programs


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging program is killed, and counts as a daemon that does not answer."""
    monkeypatch.setattr(libmunge, "PROGRAM_LIMIT", 0.2)
    program = tmp_path / "unmunge"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert Programs().decode(b"MUNGE:AAAA:", None).status == Status.TIMEOUT
