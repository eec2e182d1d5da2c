"""A program's output is extracted from what the login shell prints around it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.delivery.framed_output import NOISE_LIMIT, FramedOutput, TooMuchNoise
from tests.parts import need


def mark_of(frame: FramedOutput) -> bytes:
    """Return the mark that the frame waits for."""
    return "".join(frame.command("")[4:6]).encode()


@given(
    before=st.binary(max_size=80),
    output=st.binary(max_size=80),
    status=st.integers(0, 255),
    after=st.binary(max_size=40),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    length=st.integers(1, 50),
)
def test_any_noise(
    before: bytes, output: bytes, status: int, after: bytes, newline: bytes, length: int
) -> None:
    """The program's output is extracted from any noise, however the stream is split."""
    frame = FramedOutput()
    mark = mark_of(frame)
    stream = before + mark + newline + output + mark + b" %d" % status + newline + after
    pieces = [stream[at : at + length] for at in range(0, len(stream), length)]
    assert b"".join(map(frame.feed, pieces)) == output
    assert (frame.has_begun, frame.status) == (True, status)
    assert frame.noise == before


@pytest.mark.parametrize("cut", [1, 10, 31])
def test_beginnings_of_the_mark(cut: int) -> None:
    """Output that looks like the mark for a while is not lost."""
    frame = FramedOutput()
    mark = mark_of(frame)
    stream = mark[:cut] + mark + b" is the mark\n" + mark + b"\n" + mark[:cut]
    assert b"".join(frame.feed(bytes([byte])) for byte in stream) == b""
    assert frame.feed(b"x" + mark + b" 7\n") == mark[:cut] + b"x"
    assert frame.status == 7


def test_noise_without_end() -> None:
    """Noise is discarded, and its amount is limited."""
    frame = FramedOutput()
    for _ in range(NOISE_LIMIT >> 20):
        assert frame.feed(b"x" * (1 << 20)) == b""
    with pytest.raises(TooMuchNoise):
        frame.feed(b"x")
    assert len(frame.noise) < 1000


@pytest.mark.parametrize("text", ["printf a; exit 3", "exec sh -c 'printf a; exit 3'"])
def test_real_shell(text: str) -> None:
    """The command that a frame makes prints the frame; the mark is nowhere in its words."""
    frame = FramedOutput()
    argv = frame.command(text, b"word")
    assert mark_of(frame).decode() not in shlex.join(argv)
    done = subprocess.run(argv, capture_output=True, check=True)
    assert frame.feed(done.stdout) == b"a"
    assert frame.status == 3


@pytest.mark.parametrize("options", ["xtrace", "errexit", "nounset", "xtrace:errexit:verbose"])
def test_inherited_options(tmp_path: Path, options: str) -> None:
    """Options that bash as `sh` inherits by its environment change nothing."""
    shell = tmp_path / "sh"
    shell.symlink_to(need("bash"))
    frame = FramedOutput()
    environment = {**os.environ, "SHELLOPTS": options, "BASH_XTRACEFD": "1"}
    argv = [str(shell), *frame.command('printf a; [ -z "$UNSET" ]; exit 3')[1:]]
    done = subprocess.run(argv, capture_output=True, check=True, env=environment)
    assert frame.feed(done.stdout) == b"a"
    assert frame.status == 3
