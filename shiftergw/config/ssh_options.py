"""What the arguments of `ssh` and `scp` in old configurations mean to our own SSH.

`sshCmdOptions` and `scpCmdOptions` were handed to OpenSSH's programs. Here they are read as those
read them (ssh(1), scp(1), ssh_config(5)): what has a meaning becomes a value, everything else a
warning. The first of two values counts, as with OpenSSH, and the keys of the configuration come
before all options.
"""

from __future__ import annotations

import getopt
import re
import shlex
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from shiftergw.errors import printable
from shiftergw.ssh.cipher_names import CIPHERS

_HIGHEST_PORT = 65535
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class SshOptions:
    """What options ask for; None, () or "" where they say nothing.

    `jump` is the option that leads over another host. A warning is one line, and so is a problem:
    with one, the configuration cannot be used.
    """

    port: int | None = None
    user: str | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    ciphers: tuple[str, ...] = ()
    connect_seconds: float | None = None
    jump: str = ""
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Program:
    """How a program's command line is read: its letters with an argument, and what they mean."""

    key: str
    with_argument: str
    letters: Mapping[str, str]
    advice: str = ""


_COMMON = {"i": "identityfile", "c": "ciphers", "J": "proxyjump", "q": "loglevel"}
_SSH = _Program(
    "sshCmdOptions",
    "bceilmopBDEFIJLOQRSwW",
    {**_COMMON, "p": "port", "l": "user"},
    '; "transport": "openssh" hands it to ssh',
)
_SCP = _Program(
    "scpCmdOptions", "ciloDFJMPSX", {**_COMMON, "P": "port", "B": "batchmode"}
)  # there `-p` keeps times, and `-l` is a bandwidth

_NO_MEANING = {
    "loglevel": None,
    "batchmode": ("yes", "true", ""),
    "stricthostkeychecking": ("yes", "true"),
    "proxyjump": ("none",),
    "proxycommand": ("none",),
}
"""What asks for nothing else than what is done anyway, by its values; None is any."""

_UNCHECKED = {
    "stricthostkeychecking": ("no", "off", "false", "accept-new"),
    "userknownhostsfile": ("none", "/dev/null"),
}
"""What would turn the check of host keys off."""


class _Wrong(Exception):
    """A value that neither we nor OpenSSH can use."""


class _Unused(Exception):
    """A value that we cannot use; its text says what to do instead."""


def _port(value: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", value) or not 1 <= int(value) <= _HIGHEST_PORT:
        raise _Wrong("must be a port, 1 to 65535")
    return int(value)


def _path(key: str, value: str) -> Path:
    """Return a path; `~` stays, since it depends on who runs the gateway."""
    if not value.startswith(("/", "~")) or "%" in value or "$" in value:
        raise _Unused(f'write an absolute path as "{key}"')
    return Path(value)


def _known_hosts(value: str) -> Path:
    files = shlex.split(value)
    if len(files) != 1:
        raise _Unused('write one file as "knownHosts"')
    return _path("knownHosts", files[0])


def _seconds(value: str) -> float:
    if not re.fullmatch("([0-9]{1,6}[smhdwSMHDW]?){1,5}", value):
        raise _Wrong("must be a time, such as 10 or 1m30s")
    steps = re.findall("([0-9]+)([a-z]?)", value.lower())
    seconds = sum(int(number) * _UNITS[unit] for number, unit in steps)
    if not seconds:
        raise _Unused("there is always a limit")
    return float(seconds)


def _ciphers(value: str) -> tuple[str, ...]:
    """Return those that we have, in the order of the list; `+`, `-` and `^` change the default."""
    sign = value[:1] if value[:1] in {"+", "-", "^"} else ""
    names = [name.strip() for name in value.removeprefix(sign).split(",")]
    ours = [name for name in names if name in CIPHERS]
    if sign == "-":
        ours = [one for one in CIPHERS if not any(fnmatchcase(one, name) for name in names)]
    elif sign:
        ours = [*ours, *CIPHERS] if sign == "^" else [*CIPHERS]
    if not ours:
        raise _Wrong(
            f"none of these ciphers is one of our own SSH's: {', '.join(CIPHERS)}"
            ' ("transport": "openssh" has others)'
        )
    return tuple(dict.fromkeys(ours))


_MEANING: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "port": ("port", _port),
    "user": ("user", str),
    "identityfile": ("key", lambda value: _path("key", value)),
    "userknownhostsfile": ("known_hosts", _known_hosts),
    "ciphers": ("ciphers", _ciphers),
    "connecttimeout": ("connect_seconds", _seconds),
}
"""Which value a keyword of ssh_config(5) gives, and how it is read."""


@dataclass(slots=True)
class _Reading:
    """What was read so far; `counts` says for each value what has given it."""

    values: dict[str, object] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    jump: str = ""
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def take(self, program: _Program, text: str, keyword: str, value: str) -> None:
        """Take one option, whose author wrote `text`; an empty `keyword` is none that we know."""
        shown = f"{program.key}: {printable(text, 200)}"
        low = value.lower()
        if keyword in _NO_MEANING and low in (_NO_MEANING[keyword] or (low,)):
            return
        if low in _UNCHECKED.get(keyword, ()):
            self.warnings.append(
                f"{shown} is never honoured: host keys are always checked (`shiftergw ssh-trust`"
                " adds the system's to the known ones)"
            )
        elif keyword in {"proxyjump", "proxycommand"}:
            self.jump = self.jump or text
        elif keyword in _MEANING:
            self._value(shown, text, keyword, value)
        else:
            self.warnings.append(f"{shown} has no meaning here{program.advice}")

    def _value(self, shown: str, text: str, keyword: str, value: str) -> None:
        name, read = _MEANING[keyword]
        try:
            found = read(value)
        except _Unused as reason:
            self.warnings.append(f"{shown} is not used: {reason}")
        except (_Wrong, ValueError) as reason:
            self.problems.append(f"{shown}: {reason}")
        else:
            if self.values.setdefault(name, found) != found:
                self.warnings.append(f"{shown} is not used: {self.counts[name]} counts")
            self.counts.setdefault(name, printable(text, 200))


def translated(
    ssh_words: Sequence[str], scp_words: Sequence[str], explicit: Mapping[str, tuple[str, object]]
) -> SshOptions:
    """Return what both lists of arguments mean, those of ssh first.

    `explicit` are values that stand for themselves in the configuration, which win: for a field of
    `SshOptions` its key there, and its value.
    """
    reading = _Reading(
        {name: value for name, (_, value) in explicit.items()},
        {name: f'"{key}"' for name, (key, _) in explicit.items()},
    )
    for program, words in ((_SSH, ssh_words), (_SCP, scp_words)):
        try:
            for text, keyword, value in _options(program, words):
                reading.take(program, text, keyword, value)
        except getopt.GetoptError as error:
            reading.problems.append(f"{program.key}: {printable(error.msg, 200)}")
    return SshOptions(
        **reading.values,  # type: ignore[arg-type]  # as `_MEANING` makes them
        jump=reading.jump,
        warnings=tuple(reading.warnings),
        problems=tuple(reading.problems),
    )


def _options(program: _Program, words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each option as its author wrote it, its keyword ("" if we know none) and its value."""
    letters = "".join(
        f"{letter}:" if letter in program.with_argument else letter
        for letter in string.ascii_letters + string.digits
    )
    left = list(words)
    while left:
        found, left = getopt.getopt(left, letters)
        for name, value in found:
            given = value.strip()
            if name == "-o":
                yield f"{name} {given}", *_keyword(given)
            else:
                yield f"{name} {given}".strip(), program.letters.get(name[1:], ""), given
        if left:  # a word that is no option; with OpenSSH more options may follow
            yield left.pop(0), "", ""


def _keyword(text: str) -> tuple[str, str]:
    """Return keyword and value of `Key=Value` or `Key Value`; "" and the text if it is neither."""
    match = re.fullmatch(r"(\w+)(?:\s*=\s*|\s+)(.+)", text, re.ASCII)
    if match is None:
        return "", text
    keyword, value = match[1].lower(), match[2]
    quoted = re.fullmatch('"([^"]*)"', value)
    return keyword, quoted[1] if quoted else value
