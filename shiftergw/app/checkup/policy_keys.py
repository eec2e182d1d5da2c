"""Check the keys of a policy: whether they can be used, and when they expire."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING

from shiftergw.app.checkup.finding import Finding, Level, date_problem
from shiftergw.errors import ChildFailed, ConfigurationError, TimedOut, printable
from shiftergw.model.signatures import GpgKeys, SigstoreKeys
from shiftergw.rules.policy import Policy
from shiftergw.signatures.armor import read_keyring
from shiftergw.signatures.key_dates import GPG, KeyDates, authority_dates, openpgp_key_dates
from shiftergw.signatures.sigstore import SigstoreTrust

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_Problem = tuple[Level, str, str]
"""Level, text and remedy of a finding."""

_SCOPES = 3
"""The most scopes that a finding names."""

_KEY_REMEDY = (
    "Have the owner of the key extend or replace it, export it again, and replace the file by"
    " renaming."
)
_ROOT_REMEDY = "Get the present certificate of the authority, and replace the file by renaming."
_FILE_REMEDY = "Correct the keys of the policy; until then every image of these scopes is refused."


class PolicyKeys:
    """Collects what is wrong with the keys of one policy, and the scopes that have them."""

    def __init__(self, name: str, policy: Policy, reactor: Reactor) -> None:
        """`name` is that of the policy in findings."""
        self._name = f"keys of {name}"
        self._policy = policy
        self._reactor = reactor
        self._has_gpg = shutil.which(GPG) is not None
        self._problems: dict[_Problem, list[str]] = {}
        self._listings: dict[bytes, list[KeyDates]] = {}
        self._ends: list[dt.datetime] = []

    async def findings(self) -> list[Finding]:
        """Return the findings, if the policy has any keys."""
        has_gpg_keys = False
        for scope in self._policy.all_scopes():
            for requirement in scope.signature_requirements:
                match requirement.keys:
                    case GpgKeys(keyrings=keyrings):
                        has_gpg_keys = True
                        problems = [p async for p in self._of_keyrings(keyrings)]
                    case SigstoreKeys() as keys:
                        problems = list(self._of_sigstore(keys))
                for problem in problems:
                    self._problems.setdefault(problem, []).append(scope.name)
        return list(self._findings(has_gpg_keys=has_gpg_keys))

    def _findings(self, *, has_gpg_keys: bool) -> Iterator[Finding]:
        for (level, text, remedy), scopes in self._problems.items():
            names = list(dict.fromkeys(scopes))
            rest = f" and {len(names) - _SCOPES} more" if len(names) > _SCOPES else ""
            place = printable(", ".join(names[:_SCOPES]))
            yield Finding(self._name, level, f"{text} ({place}{rest})", remedy)
        if has_gpg_keys and not self._has_gpg:
            text = f"when OpenPGP keys expire is not known: {GPG} is not there"
            yield Finding(self._name, Level.OK, text)
        elif not self._problems and self._policy.needs_signatures:
            end = f"the next one expires on {min(self._ends):%Y-%m-%d}" if self._ends else ""
            yield Finding(self._name, Level.OK, end or "none of them expires")

    async def _of_keyrings(self, keyrings: Iterable[bytes]) -> AsyncIterator[_Problem]:
        """Yield the problems of the keys of one requirement."""
        keys: list[KeyDates] = []
        for content in keyrings:
            try:
                keyring = read_keyring(content)
                keys += await self._list(keyring)
            except ValueError as error:
                text = f"a keyring cannot be used: {error}"
                yield Level.FAILURE, text, _FILE_REMEDY
                return
            except (ChildFailed, TimedOut) as error:
                text = f"a keyring cannot be listed: {printable(error.what)}"
                yield Level.WARNING, text, _FILE_REMEDY
                return
        if self._has_gpg and not keys:
            yield Level.FAILURE, "the keyrings have no key", _FILE_REMEDY
        for problem in self._of_dates("key", keys, _KEY_REMEDY):
            yield problem

    async def _list(self, keyring: bytes) -> list[KeyDates]:
        if not self._has_gpg:
            return []
        if keyring not in self._listings:
            clock = self._reactor
            self._listings[keyring] = await openpgp_key_dates(keyring, clock, clock)
        return self._listings[keyring]

    def _of_sigstore(self, keys: SigstoreKeys) -> Iterator[_Problem]:
        """Yield the problems of the keys of one requirement; bare public keys do not expire."""
        try:
            SigstoreTrust.read(keys)
        except ConfigurationError as error:
            yield Level.FAILURE, error.what.removesuffix("."), _FILE_REMEDY
            return
        if keys.fulcio is not None:
            dates = authority_dates(keys.fulcio)
            yield from self._of_dates("certificate of the authority", dates, _ROOT_REMEDY)

    def _of_dates(self, kind: str, keys: Iterable[KeyDates], remedy: str) -> Iterator[_Problem]:
        """Yield the keys that do not count, or not for long: a failure if no key counts."""
        now = dt.datetime.now(dt.UTC)
        problems = []
        usable = 0
        for key in keys:
            problem = date_problem(key.start, key.end, now)
            if key.is_revoked:
                problem = Level.FAILURE, "was revoked, or is not for signatures"
            elif key.end is not None:
                self._ends.append(key.end)
            if problem is not None:
                problems.append((problem[0], f"the {kind} {key.name} {problem[1]}"))
            usable += problem is None or problem[0] is not Level.FAILURE
        for level, text in problems:
            yield (Level.WARNING if usable else level), text, remedy
