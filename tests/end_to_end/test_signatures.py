"""Policies with real signatures: pushed and signed by skopeo, pulled by the gateway."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shiftergw.cli.convert import default_document
from shiftergw.model.references import ImageReference
from tests.cli.command import shiftergw
from tests.gpg import GpgHome
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.patience import patient
from tests.registries import DockerRegistry
from tests.running_service import POLL_PAUSE, SYSTEM, Service, until


class Site:
    """A registry with signed and unsigned images, and a gateway whose policy requires a key."""

    def __init__(self, root: Path, home: GpgHome, registry: DockerRegistry) -> None:
        """Sign `lib/signed:1` by the trusted key and `lib/foreign:1` by another one."""
        self.root = root
        self.registry = registry
        self.home = home
        self.signer = home.make_key("signer")
        stranger = home.make_key("stranger")
        self.registries = root / "registries.d"
        self.registries.mkdir()
        lookaside = f"default-docker:\n  lookaside: file://{root}/lookaside\n"
        (self.registries / "default.yaml").write_text(lookaside)
        for name, key in (("signed", self.signer), ("foreign", stranger), ("unsigned", "")):
            oci_layout(root / name, [tar_of([entry("name", name.encode())])])
            self._push(root / name, f"lib/{name}:1", key)
        self.keyring = root / "signer.asc"
        self.keyring.write_bytes(home.export(self.signer, armor=True))
        self.policy = root / "policy.json"
        self.require([self.signed_by])

    @property
    def signed_by(self) -> dict[str, Any]:
        """Return the requirement of a signature by the trusted key."""
        return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(self.keyring)}

    def require(self, requirements: list[Any]) -> None:
        """Replace the policy."""
        document = {"default": [{"type": "reject"}]}
        scopes = {"docker": {self.registry.host: requirements}}
        self.policy.write_text(json.dumps({**document, "transports": scopes}))

    def _push(self, layout: Path, name: str, key: str) -> None:
        """Push an image by `skopeo copy`, which signs it."""
        command = [need("skopeo"), "--insecure-policy", "--registries.d", str(self.registries)]
        command += ["copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]
        command += ["--sign-by", key] if key else []
        subprocess.run(
            [*command, f"oci:{layout}:latest", f"docker://{self.registry.host}/{name}"],
            check=True,
            env={"PATH": os.environ["PATH"], "GNUPGHOME": str(self.home.path)},
            stdin=subprocess.DEVNULL,
            timeout=patient(60),
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a site for all tests."""
    need("gpgv")
    root = tmp_path_factory.mktemp("site")
    with GpgHome() as home, DockerRegistry(root / "data") as registry:
        yield Site(root, home, registry)


@pytest.fixture(scope="module")
def service(site: Site) -> Iterator[Service]:
    """Run the gateway of the site."""
    need("mksquashfs")
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{site.registry.host}"}}
    service = Service(
        site.root / "service", locations, {"RegistriesDirectory": str(site.registries)}
    )
    document = json.loads(service.config.read_text())
    document["Platforms"][SYSTEM]["policy_file"] = str(site.policy)
    service.config.write_text(json.dumps(document))
    with service:
        yield service


def test_conversions_ask_the_policy(site: Site, tmp_path: Path) -> None:
    """`convert` verifies real signatures, and makes no file for a stranger's."""
    need("mksquashfs")
    reference = ImageReference.parse(f"{site.registry.host}/lib/signed")
    document = default_document(reference, tmp_path, plain_http=True)
    document["RegistriesDirectory"] = str(site.registries)
    document["Platforms"]["local"]["policy_file"] = str(site.policy)
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document))
    command = ("convert", "--config", str(config))
    out = str(tmp_path / "o")
    result = shiftergw(*command, f"{site.registry.host}/lib/foreign:1", out)
    assert (result.returncode, result.stdout) == (1, "")
    assert "signed by a key that the policy does not accept" in result.stderr
    assert not Path(out).exists()
    result = shiftergw(*command, f"{site.registry.host}/lib/signed:1", out)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["policy"]["identity"] == site.signer


def test_a_policy_with_real_signatures(site: Site, service: Service) -> None:
    """Only images that the trusted key has signed are pulled; a change applies at once."""
    image = service.pull("lib/signed:1")
    assert image["status"] == "READY", image
    assert image["policy"]["identity"] == site.signer
    assert image["policy"]["requirement"] == f"signedBy (docker {site.registry.host})"
    assert image["policy"]["image"] == f"{site.registry.host}/lib/signed:1"
    assert service.lookup("lib/signed:1")[1]["policy"] == image["policy"]
    _, images = service.get(f"/api/list/{SYSTEM}/")
    assert [record["policy"] for record in images["list"]] == [image["policy"]]
    failure = service.pull("lib/unsigned:1")
    assert failure["status"] == "FAILURE"
    assert "no OpenPGP signature" in failure["cause"]
    failure = service.pull("lib/foreign:1")
    assert failure["status"] == "FAILURE"
    assert "signed by a key that the policy does not accept" in failure["cause"]
    assert len(list(service.images.glob("*.squashfs"))) == 1
    service.log_with(f"signed by {site.signer}")
    service.log_with(f"policy_file {site.policy}")

    site.require([{"type": "insecureAcceptAnything"}])
    # The failure is held for two seconds (`FailureHold`).
    until(
        lambda: service.pull("lib/unsigned:1")["status"] == "READY",
        30,
        "the accepted pull",
        POLL_PAUSE,
    )
    site.require([site.signed_by])
    check = shiftergw("check", "--database", "--config", str(service.config))
    assert (
        "images whose signatures the present policy of their system has not judged" in check.stdout
    )
    assert "lib/unsigned:1" in check.stdout
    assert service.lookup("lib/unsigned:1")[0] == 200
