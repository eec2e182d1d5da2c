"""Read a policy: the JSON document of containers-policy.json(5), strictly.

Unknown, repeated and wrong members make the whole policy invalid: a typing error must not open a
site. Newer types of requirements that this version cannot check are invalid, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, get_args

from shiftergw.errors import PolicyInvalid, printable
from shiftergw.model.docker_references import DockerReference, expanded_prefix
from shiftergw.model.signatures import FulcioAuthority, GpgKeys, SigstoreKeys
from shiftergw.rules.policy import (
    AcceptAnything,
    Policy,
    RejectEverything,
    Requirement,
    SignatureRequirement,
)
from shiftergw.rules.signed_identity import IdentityType, SignedIdentity

ReadKey = Callable[[str], bytes]
"""Returns the content of a key file; raises `OSError`, or `ValueError` with a reason."""

_IDENTITY_TYPES: tuple[IdentityType, ...] = get_args(IdentityType)

KEYS_LIMIT = 64
"""The most key files of one requirement."""

_PATH_TRANSPORTS = frozenset({"dir", "oci"})
"""Transports whose scopes are absolute paths."""


def parse_policy(content: bytes, read_key: ReadKey) -> Policy:
    """Return the policy of a document; raise `PolicyInvalid` for anything else.

    `read_key` is called for each key file that the policy names.
    """
    reader = _Reader(read_key, content)
    try:
        document = json.loads(content, object_pairs_hook=_members)
        top = reader.members(document, "the policy", {"default"}, {"transports"})
        default = reader.requirements(top["default"], "default")
        transports = {
            name: reader.scopes(name, table)
            for name, table in reader.table(top.get("transports", {}), "transports").items()
        }
    except RecursionError as error:
        raise PolicyInvalid("The policy is nested too deeply.") from error
    except PolicyInvalid:
        raise
    except ValueError as error:  # also of the JSON parser, and of bytes that are not UTF-8
        raise PolicyInvalid(f"The policy is not valid JSON: {printable(str(error))}.") from error
    return Policy(f"sha256:{reader.digest.hexdigest()}", default, transports)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated_name = next(name for name in names if names.count(name) > 1)
        raise PolicyInvalid(f"The policy has the member {printable(repeated_name)!r} twice.")
    return members


def _refuse(place: str, problem: str) -> NoReturn:
    raise PolicyInvalid(f"The policy is invalid at {printable(place)}: {problem}.")


class _Reader:
    """Reads the parts of one policy; `digest` covers its content and its key files."""

    def __init__(self, read_key: ReadKey, content: bytes) -> None:
        self._read_key = read_key
        self.digest = hashlib.sha256(hashlib.sha256(content).digest())

    def table(self, value: object, place: str) -> dict[str, Any]:
        """Return a JSON object."""
        if not isinstance(value, dict):
            _refuse(place, "it must be an object")
        return value

    def members(
        self, value: object, place: str, names: set[str], optional: set[str]
    ) -> dict[str, Any]:
        """Return an object that has all `names`, and of other members only `optional` ones."""
        members = self.table(value, place)
        unknown_names = sorted(members.keys() - names - optional)
        if unknown_names:
            _refuse(place, f"the member {printable(unknown_names[0])!r} is unknown")
        missing_names = sorted(names - members.keys())
        if missing_names:
            _refuse(place, f"the member {missing_names[0]!r} is missing")
        return members

    def text(self, value: object, place: str) -> str:
        """Return a text that is not empty."""
        if not isinstance(value, str) or not value:
            _refuse(place, "it must be a text that is not empty")
        return value

    def scopes(self, transport: str, value: object) -> dict[str, tuple[Requirement, ...]]:
        """Return the requirements of a transport by their scopes, in the expanded form."""
        scopes: dict[str, tuple[Requirement, ...]] = {}
        for name, requirements in self.table(value, f"transport {transport}").items():
            place = f"{transport} {name}" if name else f"transport {transport}"
            scope = _scope(transport, name, place)
            if scope in scopes:
                _refuse(place, f"another scope means {printable(scope)!r}, too")
            scopes[scope] = self.requirements(requirements, place)
        return scopes

    def requirements(self, value: object, place: str) -> tuple[Requirement, ...]:
        """Return a list of requirements."""
        if not isinstance(value, list) or not value:
            _refuse(place, "the requirements must be a list that is not empty")
        return tuple(self._requirement(item, place) for item in value)

    def _requirement(self, value: object, place: str) -> Requirement:
        kind = self.table(value, place).get("type")
        match kind:
            case "insecureAcceptAnything":
                self.members(value, place, {"type"}, set())
                return AcceptAnything()
            case "reject":
                self.members(value, place, {"type"}, set())
                return RejectEverything()
            case "signedBy":
                return self._signed_by(value, f"signedBy of {place}")
            case "sigstoreSigned":
                return self._sigstore_signed(value, f"sigstoreSigned of {place}")
        _refuse(place, f"the requirement {printable(repr(kind))} is not supported")

    def _signed_by(self, value: object, place: str) -> SignatureRequirement:
        sources = {"keyPath", "keyPaths", "keyData"}
        members = self.members(value, place, {"type", "keyType"}, sources | {"signedIdentity"})
        if members["keyType"] != "GPGKeys":
            _refuse(place, "keyType must be GPGKeys, the only type that can be checked")
        keyrings = self._keys(members, place, "key")
        return SignatureRequirement(GpgKeys(keyrings), self._identity(members, place))

    def _sigstore_signed(self, value: object, place: str) -> SignatureRequirement:
        sources = {"keyPath", "keyPaths", "keyData", "keyDatas"}
        rekor = {f"rekorPublicKey{suffix}" for suffix in ("Path", "Paths", "Data", "Datas")}
        members = self.members(
            value, place, {"type"}, sources | rekor | {"fulcio", "signedIdentity"}
        )
        rekor_keys: tuple[bytes, ...] = ()
        if rekor & members.keys():
            rekor_keys = self._keys(members, place, "rekorPublicKey")
        if "fulcio" not in members:
            keys = SigstoreKeys(self._keys(members, place, "key"), None, rekor_keys)
        elif sources & members.keys():
            _refuse(place, "it must have either a key or fulcio")
        elif not rekor_keys:
            _refuse(place, "fulcio needs a rekorPublicKey…: certificates are valid for minutes")
        else:
            keys = SigstoreKeys((), self._fulcio(members["fulcio"], place), rekor_keys)
        return SignatureRequirement(keys, self._identity(members, place))

    def _fulcio(self, value: object, place: str) -> FulcioAuthority:
        place = f"fulcio in {place}"
        members = self.members(value, place, {"oidcIssuer", "subjectEmail"}, {"caPath", "caData"})
        (authority,) = self._keys(members, place, "ca")
        return FulcioAuthority(
            authority,
            self.text(members["oidcIssuer"], f"oidcIssuer of {place}"),
            self.text(members["subjectEmail"], f"subjectEmail of {place}"),
        )

    def _keys(self, members: Mapping[str, Any], place: str, stem: str) -> tuple[bytes, ...]:
        """Return the contents of the one member of `stem` with `Path`, `Paths`, `Data`, `Datas`."""
        suffixes = [s for s in ("Path", "Paths", "Data", "Datas") if f"{stem}{s}" in members]
        if len(suffixes) != 1:
            _refuse(place, f"it must have exactly one of {stem}Path, {stem}Data and their plurals")
        name = f"{stem}{suffixes[0]}"
        value = members[name]
        values = value if suffixes[0] in {"Paths", "Datas"} else [value]
        if not isinstance(values, list) or not 0 < len(values) <= KEYS_LIMIT:
            _refuse(place, f"{name} must be a list of 1 to {KEYS_LIMIT} texts")
        read = self._file if suffixes[0].startswith("Path") else self._data
        contents = tuple(read(self.text(item, f"{name} of {place}"), place) for item in values)
        for content in contents:
            if not content:
                _refuse(place, f"{name} is empty")
            self.digest.update(hashlib.sha256(content).digest())
        return contents

    def _file(self, path: str, place: str) -> bytes:
        if not path.startswith("/"):
            _refuse(place, f"the path {printable(path)} must be absolute")
        try:
            return self._read_key(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            _refuse(place, f"the key file {printable(path)} cannot be read: {reason}")

    def _data(self, text: str, place: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            _refuse(place, "its data is not base64")

    def _identity(self, members: Mapping[str, Any], place: str) -> SignedIdentity:
        if "signedIdentity" not in members:
            return SignedIdentity()
        place = f"signedIdentity in {place}"
        value = members["signedIdentity"]
        word = self.table(value, place).get("type")
        kind = next((kind for kind in _IDENTITY_TYPES if kind == word), None)
        if kind is None:
            _refuse(place, f"the type {printable(repr(word))} is unknown")
        names = {
            "exactReference": ("dockerReference",),
            "exactRepository": ("dockerRepository",),
            "remapIdentity": ("prefix", "signedPrefix"),
        }.get(kind, ())
        fields = self.members(value, place, {"type", *names}, set())
        texts = [self.text(fields[name], f"{name} of {place}") for name in names]
        try:
            if kind == "remapIdentity":
                prefix, signed_prefix = map(expanded_prefix, texts)
                return SignedIdentity(kind, prefix=prefix, signed_prefix=signed_prefix)
            reference = DockerReference.parse(texts[0]) if texts else None
        except ValueError as error:
            _refuse(place, f"a name is {error}")
        if reference is not None and bool(reference.tag or reference.digest) != (
            kind == "exactReference"
        ):
            part = "needs a" if kind == "exactReference" else "must not have a"
            _refuse(place, f"{names[0]} {part} tag or digest")
        return SignedIdentity(kind, reference)


def _scope(transport: str, name: str, place: str) -> str:
    """Return the name of a scope in its expanded form, in which images are looked up."""
    if transport in _PATH_TRANSPORTS and name:
        path = name.removesuffix("/")
        if not path.startswith("/") or "//" in path or {".", ".."} & set(path.split("/")):
            _refuse(place, "the scope must be an absolute path other than /, without . and ..")
        return path
    if transport not in {"docker", "atomic"} or not name:
        return name
    wildcard = name.removeprefix("*.")
    host, slash, path = wildcard.partition("/")
    if "*" in wildcard or (wildcard != name and slash):
        _refuse(place, "`*` may only stand before a domain, as in *.example.org")
    if wildcard != name:
        return name.lower()
    try:
        expanded_prefix(host)
        if slash:
            DockerReference.parse(f"{host}/{path}")
    except ValueError as error:
        _refuse(place, f"the scope is {error}")
    return f"{expanded_prefix(host)}{slash}{path}"
