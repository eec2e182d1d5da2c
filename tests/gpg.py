"""Throwaway OpenPGP keys and signatures, made by `gpg` and `skopeo`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.parts import need
from tests.patience import patient

PAST = "20200101T000000!"
"""A time at which short-lived keys were made; `!` stops the clock there."""


def payload_of(reference: str, digest: str, **changes: Any) -> bytes:
    """Return the payload of a simple signature: containers-signature(5); `...` removes a member."""
    critical: dict[str, Any] = {
        "type": "atomic container signature",
        "image": {"docker-manifest-digest": digest},
        "identity": {"docker-reference": reference},
    }
    document: dict[str, Any] = {"critical": critical, "optional": {"creator": "tests"}}
    for path, value in changes.items():
        *sections, name = path.split("__")
        inner = document
        for section in sections:
            inner = inner[section]
        if value is ...:
            del inner[name]
        else:
            inner[name] = value
    return json.dumps(document).encode()


class GpgHome:
    """A home directory of GnuPG with private keys; its agent ends with the context."""

    def __init__(self) -> None:
        """Name the programs."""
        self._gpg = need("gpg")
        self._skopeo = need("skopeo")
        self.path = Path()

    def __enter__(self) -> Self:
        """Make the directory, with a short name: its sockets may have 107 bytes."""
        self.path = Path(tempfile.mkdtemp(prefix="gpg-", dir="/tmp"))
        return self

    def __exit__(self, *_: object) -> None:
        """End the agent and remove the directory."""
        subprocess.run(
            [need("gpgconf"), "--kill", "all"],
            env=self._environment,
            check=False,
            timeout=patient(60),
        )
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "GNUPGHOME": str(self.path), "LC_ALL": "C"}

    def gpg(self, *arguments: str, content: bytes = b"") -> bytes:
        """Run `gpg` without a passphrase, and return its output."""
        command = [self._gpg, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"]
        command += ["--passphrase", "", "--trust-model", "always", *arguments]
        return subprocess.run(
            command,
            env=self._environment,
            input=content,
            check=True,
            stdout=subprocess.PIPE,
            timeout=patient(60),
        ).stdout

    def make_key(
        self, name: str, *options: str, algorithm: str = "ed25519", validity: str = "never"
    ) -> str:
        """Make a key for signatures, and return its fingerprint."""
        user = f"{name} <{name}@example.org>"
        self.gpg(*options, "--quick-gen-key", user, algorithm, "sign", validity)
        listing = self.gpg("--with-colons", "--list-keys", f"{name}@example.org").decode()
        return next(line.split(":")[9] for line in listing.splitlines() if line[:3] == "fpr")

    def export(self, *keys: str, armor: bool = False) -> bytes:
        """Return a keyring of these public keys."""
        return self.gpg(*(["--armor"] if armor else []), "--export", *keys)

    def sign(self, key: str, payload: bytes, *options: str) -> bytes:
        """Return an OpenPGP message of `payload`, signed by `key`."""
        return self.gpg(*options, "--local-user", f"{key}!", "--sign", content=payload)

    def revoke(self, key: str) -> None:
        """Revoke a key with the certificate that was made together with it."""
        certificate = (self.path / "openpgp-revocs.d" / f"{key}.rev").read_bytes()
        self.gpg("--import", content=certificate.replace(b"\n:-----", b"\n-----"))

    def sign_manifest(self, key: str, manifest: Path, reference: str) -> bytes:
        """Return the signature of a manifest that `skopeo standalone-sign` makes."""
        output = self.path / "skopeo.signature"
        subprocess.run(
            [self._skopeo, "standalone-sign", manifest, reference, key, "--output", output],
            env=self._environment,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=patient(60),
        )
        return output.read_bytes()
