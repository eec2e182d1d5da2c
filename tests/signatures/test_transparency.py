"""Inclusion proofs lead to a root that the log has signed, for every leaf of every tree."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from shiftergw.signatures.documents import SignatureDefect
from shiftergw.signatures.public_keys import read_public_key
from shiftergw.signatures.transparency import LogEntry, read_bundle_entry, verify_entry
from tests.signatures.signers import RekorLog, b64, sign

LOG = RekorLog()
BODIES = [b'{"kind": "%d"}' % number for number in range(20)]
ENTRIES = [LOG.add(body) for body in BODIES]
KEYS = {LOG.id.hex(): read_public_key(LOG.pem)}


def entry_of(index: int, proof: dict[str, Any]) -> LogEntry:
    """Return an entry that has an inclusion proof and no promise."""
    document = {**ENTRIES[index], "inclusionProof": proof}
    del document["inclusionPromise"]
    return read_bundle_entry(document)


def reason(index: int, proof: dict[str, Any]) -> str:
    """Return the reason for the rejection of a proof."""
    with pytest.raises(SignatureDefect) as caught:
        verify_entry(entry_of(index, proof), KEYS)
    return str(caught.value)


@pytest.mark.parametrize("size", range(1, len(BODIES) + 1))
def test_all_trees(size: int) -> None:
    """Each leaf of each tree has a proof, without a time, that is valid for no other leaf."""
    for index in range(size):
        proof = LOG.proof(index, size)
        assert verify_entry(entry_of(index, proof), KEYS) is None
        if size > 1:
            assert "does not lead to the root" in reason((index + 1) % size, proof)


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519"])
def test_keys_of_logs(kind: str) -> None:
    """A log may have a key of any kind."""
    log = RekorLog(kind)
    entry = read_bundle_entry(log.add(b'{"kind": ""}', 5))
    assert verify_entry(entry, {log.id.hex(): read_public_key(log.pem)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"logIndex": "11"},
        {"logIndex": "13"},
        {"logIndex": "20"},
        {"treeSize": "19"},
        {"treeSize": "21"},
        {"treeSize": "0"},
        {"rootHash": b64(b"0" * 32)},
        {"hashes": []},
        {"hashes": [b64(b"short")]},
    ],
)
def test_wrong_proofs(change: dict[str, Any]) -> None:
    """A proof with another place, size, root or path is rejected."""
    words = ("does not lead to the root", "another tree")
    assert any(word in reason(12, {**LOG.proof(12), **change}) for word in words)


def test_paths_of_another_length() -> None:
    """A proof with a step too many, too few or changed is rejected."""
    proof = LOG.proof(12)
    for hashes in (proof["hashes"][1:], [*proof["hashes"], b64(b"0" * 32)], proof["hashes"][::-1]):
        assert "does not lead to the root" in reason(12, {**proof, "hashes": hashes})
    assert "too many hashes" in reason(12, {**proof, "hashes": [b64(b"0" * 32)] * 65})
    assert "too many hashes" in reason(12, {**proof, "hashes": [7]})


def signed_tree(size: int, root: bytes, index: int, *steps: bytes) -> dict[str, Any]:
    """Return a proof for a tree of any size and root, with a signature of the log."""
    return {
        "logIndex": str(index),
        "treeSize": str(size),
        "rootHash": b64(root),
        "hashes": [b64(step) for step in steps],
        "checkpoint": {"envelope": LOG.checkpoint(size, root)},
    }


def test_the_path_fits_the_tree() -> None:
    """A path of a wrong length, or to a place outside of the tree, has no root."""
    leaf, step = LOG.leaves[0], b"0" * 32
    root = hashlib.sha256(b"\1" + leaf + step).digest()
    swapped_root = hashlib.sha256(b"\1" + step + leaf).digest()
    assert verify_entry(entry_of(0, signed_tree(1, leaf, 0)), KEYS) is None
    assert verify_entry(entry_of(0, signed_tree(2, root, 0, step)), KEYS) is None
    for proof in (
        signed_tree(1, leaf, 5),
        signed_tree(1, swapped_root, 0, step),
        signed_tree(4, root, 0, step),
    ):
        assert "does not lead to the root" in reason(0, proof)


def test_leaves_and_nodes_differ() -> None:
    """The hash of an inner node is not that of a leaf, so a pair of hashes is not an entry."""
    leaf, sibling = LOG.leaves[0], LOG.leaves[1]
    proof = LOG.proof(0, 4)
    short_proof = {**proof, "hashes": proof["hashes"][1:], "treeSize": "2", "logIndex": "0"}
    entry = replace(entry_of(0, short_proof), body=leaf + sibling)
    assert (
        hashlib.sha256(b"\1" + entry.body).digest() != hashlib.sha256(b"\0" + entry.body).digest()
    )
    with pytest.raises(SignatureDefect, match="does not lead to the root"):
        verify_entry(entry, KEYS)


def with_checkpoint(text: str) -> dict[str, Any]:
    """Return the proof of entry 12 with another checkpoint."""
    return {**LOG.proof(12), "checkpoint": {"envelope": text}}


def test_checkpoint_of_another_tree() -> None:
    """A checkpoint of another size or root is rejected."""
    root = bytes.fromhex("00" * 32)
    assert "another tree" in reason(12, with_checkpoint(LOG.checkpoint(20, root)))
    older_checkpoint = LOG.proof(3, 19)["checkpoint"]["envelope"]
    assert "another tree" in reason(12, with_checkpoint(older_checkpoint))


def test_checkpoint_of_another_log() -> None:
    """A checkpoint that another log signed, or under a wrong hint, is rejected."""
    proof, stranger = LOG.proof(12), RekorLog()
    stranger.leaves = list(LOG.leaves)
    foreign = stranger.proof(12)["checkpoint"]["envelope"]
    assert "the log did not sign its checkpoint" in reason(12, with_checkpoint(foreign))
    note = proof["checkpoint"]["envelope"].partition("\n\n")[0] + "\n"
    signature = b64(b"hint" + sign(LOG.key, note.encode()))
    misnamed_note = f"{note}\n— log.example.org {signature}\n"
    assert "did not sign its checkpoint" in reason(12, with_checkpoint(misnamed_note))


def test_checkpoint_with_witnesses() -> None:
    """Further lines of the note, and the signatures of witnesses before the log's, are skipped."""
    lines = LOG.proof(12)["checkpoint"]["envelope"].split("\n")
    note = "\n".join([*lines[:3], "Timestamp: 1", ""])
    witness = b64(b"abcd" + sign(RekorLog().key, note.encode()))
    signature = b64(LOG.id[:4] + sign(LOG.key, note.encode()))
    text = f"{note}\n— witness.example {witness}\n— log.example.org {signature}\n"
    assert verify_entry(entry_of(12, with_checkpoint(text)), KEYS) is None


def signed_note(note: str) -> str:
    """Return a note with the log's signature."""
    return f"{note}\n— log.example.org {b64(LOG.id[:4] + sign(LOG.key, note.encode()))}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "log\n20\n",
        signed_note("log\n20\n"),
        signed_note("\n20\nAAAA\n"),
        signed_note(f"\n20\n{LOG.proof(12)['rootHash']}\n"),
        signed_note("log\nmany\nAAAA\n"),
        signed_note("log\n-1\nAAAA\n"),
        signed_note("log\n20\n?\n"),
        signed_note("log\n20\nAAAA\n") + "junk\n",
        signed_note("log\n20\n" + "line\n" * 70),
        "log\n20\nAAAA\n\n— log\n",
        "log\n20\nAAAA\n\n— log ?\n",
        "log\n20\nAAAA\n\n- log AAAA\n",
    ],
)
def test_odd_checkpoints(text: str) -> None:
    """A malformed checkpoint is rejected, even with a valid signature."""
    assert "checkpoint" in reason(12, with_checkpoint(text)) or "`size`" in reason(
        12, with_checkpoint(text)
    )
