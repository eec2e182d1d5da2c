"""Entries of a transparency log (Rekor v1): proofs that the log has a signature, and since when.

A log proves an entry in two ways. Its *promise* (signed entry timestamp) is a signature over the
entry and the time at which the log took it. Its *inclusion proof* (RFC 9162, section 2.1.3) leads
from the entry to the root of a Merkle tree, which the log has signed in a checkpoint. The tree does
not contain the time: only a promise vouches for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shiftergw.signatures.documents import (
    SignatureDefect,
    base64_member,
    decode_base64,
    integer,
    member,
    optional_object,
    read_object,
)
from shiftergw.signatures.public_keys import PublicKey, SignedContent, encode_key

_HASH_SIZE = 32
_MOST_HASHES = 64
"""Steps of an inclusion proof: a tree has less than 2**64 leaves."""

_MOST_LINES = 64
"""Lines of a checkpoint, its signatures counted."""

_NOTE_SIGNATURE = re.compile(r"— (\S+) (\S+)")
_LOG_ID = re.compile(r"[0-9a-f]{64}")
_SMALLEST_CHECKPOINT = 3


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """The way from an entry to the root of a log's tree; `checkpoint` is the log's signed note."""

    index: int
    size: int
    root: bytes
    hashes: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry as the signature tells it, with the proofs that come along; none is verified yet.

    `log_id` is the SHA-256 of the log's public key in hexadecimal, `index` the entry's number in
    the whole log, `time` in seconds since 1970.
    """

    body: bytes
    log_id: str
    index: int
    time: int
    promise: bytes | None = None
    proof: InclusionProof | None = None


def read_cosign_entry(text: str) -> LogEntry:
    """Read the annotation `dev.sigstore.cosign/bundle`: an entry and its promise."""
    document = read_object(text.encode("utf-8", "replace"), "log entry")
    payload = member(document, "Payload", dict)
    expected = {"body", "integratedTime", "logIndex", "logID"}
    if set(document) != {"SignedEntryTimestamp", "Payload"} or set(payload) != expected:
        raise SignatureDefect("its log entry has unknown members")
    return LogEntry(
        base64_member(payload, "body"),
        _log_id(member(payload, "logID", str)),
        integer(payload, "logIndex"),
        integer(payload, "integratedTime"),
        base64_member(document, "SignedEntryTimestamp"),
    )


def read_bundle_entry(document: dict[str, Any]) -> LogEntry:
    """Read an element of `tlogEntries` of a sigstore bundle."""
    promise = optional_object(document, "inclusionPromise")
    proof = optional_object(document, "inclusionProof")
    time = integer(document, "integratedTime") if "integratedTime" in document else 0
    return LogEntry(
        base64_member(document, "canonicalizedBody"),
        base64_member(member(document, "logId", dict), "keyId").hex(),
        integer(document, "logIndex") if "logIndex" in document else 0,
        time,
        None if promise is None else base64_member(promise, "signedEntryTimestamp"),
        None if proof is None else _read_proof(proof),
    )


def _read_proof(document: dict[str, Any]) -> InclusionProof:
    hashes = member(document, "hashes", list) if "hashes" in document else []
    if len(hashes) > _MOST_HASHES or not all(isinstance(text, str) for text in hashes):
        raise SignatureDefect("its inclusion proof has too many hashes, or wrong ones")
    return InclusionProof(
        integer(document, "logIndex") if "logIndex" in document else 0,
        integer(document, "treeSize"),
        base64_member(document, "rootHash"),
        tuple(decode_base64(text, "inclusion proof") for text in hashes),
        member(member(document, "checkpoint", dict), "envelope", str),
    )


def _log_id(text: str) -> str:
    if _LOG_ID.fullmatch(text) is None:
        raise SignatureDefect("its `logID` is not a SHA-256 in hexadecimal")
    return text


def verify_entry(entry: LogEntry, log_keys: Mapping[str, PublicKey]) -> int | None:
    """Verify all proofs of an entry with the key of its log; return its time, if that is vouched.

    `log_keys` are the trusted logs by their ids. Raises `SignatureDefect` if a proof is wrong, if
    there is none, and for an entry of another log.
    """
    key = log_keys.get(entry.log_id)
    if key is None:
        raise SignatureDefect("its log entry is of a log that the policy does not name")
    if entry.promise is None and entry.proof is None:
        raise SignatureDefect("its log entry has neither a promise nor an inclusion proof")
    if entry.proof is not None:
        _verify_inclusion(entry, entry.proof, key)
    if entry.promise is None:
        return None
    if not SignedContent.of(_canonical_entry(entry)).is_signed_by(key, entry.promise):
        raise SignatureDefect("the log did not sign the promise for its log entry")
    return entry.time


def _canonical_entry(entry: LogEntry) -> bytes:
    """Return the canonical JSON (RFC 8785) that a promise signs.

    The members are plain base64, hexadecimal digits and small integers, for which sorted members
    without white space are the canonical form.
    """
    document = {
        "body": base64.b64encode(entry.body).decode("ascii"),
        "integratedTime": entry.time,
        "logID": entry.log_id,
        "logIndex": entry.index,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _verify_inclusion(entry: LogEntry, proof: InclusionProof, key: PublicKey) -> None:
    root = _root_of(hashlib.sha256(b"\0" + entry.body).digest(), proof)
    if root is None or root != proof.root:
        raise SignatureDefect("its inclusion proof does not lead to the root of the log's tree")
    size, signed_root = _read_checkpoint(proof.checkpoint, key)
    if (size, signed_root) != (proof.size, proof.root):
        raise SignatureDefect("its inclusion proof is for another tree than the log's checkpoint")


def _root_of(leaf: bytes, proof: InclusionProof) -> bytes | None:
    """Return the root that a proof leads to (RFC 9162, section 2.1.3.2).

    Returns None for a proof that is too short or too long for the place of the leaf.
    """
    if proof.index >= proof.size or any(len(step) != _HASH_SIZE for step in proof.hashes):
        return None
    node, last, root = proof.index, proof.size - 1, leaf
    for step in proof.hashes:
        if last == 0:
            return None
        if node & 1 or node == last:
            root = hashlib.sha256(b"\1" + step + root).digest()
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            root = hashlib.sha256(b"\1" + root + step).digest()
        node, last = node >> 1, last >> 1
    return root if last == 0 else None


def _read_checkpoint(text: str, key: PublicKey) -> tuple[int, bytes]:
    """Return the size and the root of the tree that a checkpoint names, if the log signed it.

    A checkpoint is a signed note: origin, size, root and perhaps further lines, an empty line, and
    signature lines `— NAME BASE64`, where the first four bytes are those of the log's id. Lines of
    witnesses are skipped.
    """
    note, _, tail = text.rpartition("\n\n")
    lines, signature_lines = note.split("\n"), tail.removesuffix("\n").split("\n")
    if len(lines) < _SMALLEST_CHECKPOINT or len(lines) + len(signature_lines) > _MOST_LINES:
        raise SignatureDefect("its checkpoint has too few or too many lines")
    if not lines[0]:
        raise SignatureDefect("its checkpoint names no log")
    content = SignedContent.of(f"{note}\n".encode("utf-8", "replace"))
    hint = hashlib.sha256(encode_key(key)).digest()[:4]
    for line in signature_lines:
        match = _NOTE_SIGNATURE.fullmatch(line)
        if match is None:
            raise SignatureDefect("its checkpoint has a malformed signature line")
        signature = decode_base64(match[2], "checkpoint's signature")
        if signature[:4] == hint and content.is_signed_by(key, signature[4:]):
            return integer({"size": lines[1]}, "size"), decode_base64(lines[2], "checkpoint's root")
    raise SignatureDefect("the log did not sign its checkpoint")
