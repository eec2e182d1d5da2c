"""Translate the arguments of `ssh` and `scp` in old configurations for our own SSH.

The original gateway passed `sshCmdOptions` and `scpCmdOptions` to OpenSSH's programs. This module
parses them as these programs do (ssh(1), scp(1), ssh_config(5)). An option that our SSH supports
becomes a value; any other option becomes a warning. The first of two values counts, as with
OpenSSH, and the keys of the configuration have priority over all options.
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
    """The values that options define; None, () or "" if no option does.

    `jump` is the option that names a jump host. Each warning and each problem is one line. A
    configuration with problems cannot be used.
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
    """The command line of a program: its options of one letter, and their meaning.

    `key` is the key of the configuration. `with_argument` are the letters that take an argument;
    `letters` gives for a letter the keyword of ssh_config(5) with the same meaning. `advice` ends
    the warning about an option without a meaning.
    """

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
# With scp, `-p` keeps times, and `-l` limits the bandwidth.
_SCP = _Program("scpCmdOptions", "ciloDFJMPSX", {**_COMMON, "P": "port", "B": "batchmode"})

_DEFAULT_BEHAVIOR = {
    "loglevel": None,
    "batchmode": ("yes", "true", ""),
    "stricthostkeychecking": ("yes", "true"),
    "proxyjump": ("none",),
    "proxycommand": ("none",),
}
"""Values of keywords that ask for what our SSH always does; None means every value."""

_WITHOUT_HOST_KEY_CHECK = {
    "stricthostkeychecking": ("no", "off", "false", "accept-new"),
    "userknownhostsfile": ("none", "/dev/null"),
}
"""Values of keywords that would turn the check of host keys off."""


class _InvalidValue(Exception):
    """A value that makes the configuration unusable: it is invalid, or must not be left out."""


class _UnsupportedValue(Exception):
    """A value that our SSH leaves out; the text of the exception says what to write instead."""


def _port(value: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", value) or not 1 <= int(value) <= _HIGHEST_PORT:
        raise _InvalidValue("must be a port, 1 to 65535")
    return int(value)


def _path(key: str, value: str) -> Path:
    """Return a path; `~` stays, since its meaning depends on the user who runs the gateway."""
    if not value.startswith(("/", "~")) or "%" in value or "$" in value:
        raise _UnsupportedValue(f'write an absolute path as "{key}"')
    return Path(value)


def _known_hosts(value: str) -> Path:
    files = shlex.split(value)
    if len(files) != 1:
        raise _UnsupportedValue('write one file as "knownHosts"')
    return _path("knownHosts", files[0])


def _seconds(value: str) -> float:
    if not re.fullmatch("([0-9]{1,6}[smhdwSMHDW]?){1,5}", value):
        raise _InvalidValue("must be a time, such as 10 or 1m30s")
    steps = re.findall("([0-9]+)([a-z]?)", value.lower())
    seconds = sum(int(number) * _UNITS[unit] for number, unit in steps)
    if not seconds:
        raise _UnsupportedValue("a connection attempt always has a time limit")
    return float(seconds)


def _ciphers(value: str) -> tuple[str, ...]:
    """Return the ciphers of a list that our SSH has, in the order of the list.

    A list that begins with `+`, `-` or `^` changes our default list: it appends, removes (names may
    have wildcards) or puts its ciphers first.
    """
    sign = value[:1] if value[:1] in {"+", "-", "^"} else ""
    names = [name.strip() for name in value.removeprefix(sign).split(",")]
    ciphers = [name for name in names if name in CIPHERS]
    if sign == "-":
        ciphers = [
            cipher for cipher in CIPHERS if not any(fnmatchcase(cipher, name) for name in names)
        ]
    elif sign:
        ciphers = [*ciphers, *CIPHERS] if sign == "^" else [*CIPHERS]
    if not ciphers:
        raise _InvalidValue(
            f"our own SSH has none of these ciphers; it has {', '.join(CIPHERS)}"
            ' ("transport": "openssh" has more)'
        )
    return tuple(dict.fromkeys(ciphers))


_MEANING: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "port": ("port", _port),
    "user": ("user", str),
    "identityfile": ("key", lambda value: _path("key", value)),
    "userknownhostsfile": ("known_hosts", _known_hosts),
    "ciphers": ("ciphers", _ciphers),
    "connecttimeout": ("connect_seconds", _seconds),
}
"""For each keyword of ssh_config(5): the field of `SshOptions` that it sets, and its parser."""


@dataclass(slots=True)
class _Translation:
    """The values and messages so far; `origins` names the option or key that set each value."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    jump: str = ""
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, program: _Program, text: str, keyword: str, value: str) -> None:
        """Translate one option of `program`, written as `text` in the configuration.

        An empty `keyword` means that the option has no meaning here.
        """
        quote = f"{program.key}: {printable(text, 200)}"
        word = value.lower()
        if keyword in _DEFAULT_BEHAVIOR and word in (_DEFAULT_BEHAVIOR[keyword] or (word,)):
            return
        if word in _WITHOUT_HOST_KEY_CHECK.get(keyword, ()):
            self.warnings.append(
                f"{quote} is never honored: host keys are always checked (`shiftergw ssh-trust`"
                " adds the keys of the system to the known host keys)"
            )
        elif keyword in {"proxyjump", "proxycommand"}:
            self.jump = self.jump or text
        elif keyword in _MEANING:
            self._set_value(quote, text, keyword, value)
        else:
            self.warnings.append(f"{quote} has no meaning here{program.advice}")

    def _set_value(self, quote: str, text: str, keyword: str, value: str) -> None:
        """Set the value of a keyword, unless an earlier option or a key has set it."""
        name, parse = _MEANING[keyword]
        try:
            result = parse(value)
        except _UnsupportedValue as reason:
            self.warnings.append(f"{quote} is not used: {reason}")
        except (_InvalidValue, ValueError) as reason:
            self.problems.append(f"{quote}: {reason}")
        else:
            if self.values.setdefault(name, result) != result:
                self.warnings.append(f"{quote} is not used: {self.origins[name]} counts")
            self.origins.setdefault(name, printable(text, 200))


def translate_options(
    ssh_words: Sequence[str], scp_words: Sequence[str], keys: Mapping[str, tuple[str, object]]
) -> SshOptions:
    """Translate the arguments of `ssh`, and then those of `scp`, into values, and add `keys`.

    `keys` are values with a key of their own in the configuration, which have priority: for a
    field of `SshOptions`, the key and the value.
    """
    translation = _Translation(
        {name: value for name, (_, value) in keys.items()},
        {name: f'"{key}"' for name, (key, _) in keys.items()},
    )
    for program, words in ((_SSH, ssh_words), (_SCP, scp_words)):
        try:
            for text, keyword, value in _split_options(program, words):
                translation.add(program, text, keyword, value)
        except getopt.GetoptError as error:
            translation.problems.append(f"{program.key}: {printable(error.msg, 200)}")
    return SshOptions(
        **translation.values,  # type: ignore[arg-type]  # `_MEANING` has the right types
        jump=translation.jump,
        warnings=tuple(translation.warnings),
        problems=tuple(translation.problems),
    )


def _split_options(program: _Program, words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each option as it is written, its keyword ("" if it has no meaning), and its value.

    Raises `getopt.GetoptError` for an option without its argument, and for a long option.
    """
    letters = "".join(
        f"{letter}:" if letter in program.with_argument else letter
        for letter in string.ascii_letters + string.digits
    )
    rest = list(words)
    while rest:
        options, rest = getopt.getopt(rest, letters)
        for name, argument in options:
            value = argument.strip()
            if name == "-o":
                yield f"{name} {value}", *_split_assignment(value)
            else:
                yield f"{name} {value}".strip(), program.letters.get(name[1:], ""), value
        if rest:  # not an option; with OpenSSH more options may follow
            yield rest.pop(0), "", ""


def _split_assignment(text: str) -> tuple[str, str]:
    """Split `Key=Value` or `Key Value` into keyword and value; other texts have keyword ""."""
    match = re.fullmatch(r"(\w+)(?:\s*=\s*|\s+)(.+)", text, re.ASCII)
    if match is None:
        return "", text
    keyword, value = match[1].lower(), match[2]
    quotation = re.fullmatch('"([^"]*)"', value)
    return keyword, quotation[1] if quotation else value
