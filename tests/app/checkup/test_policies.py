"""The findings of `shiftergw check` about policies, and images that they have not accepted."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.checkup import Level
from shiftergw.app.checkup.policies import REFUSED_IMAGES, UNJUDGED_IMAGES, PolicyRecords, policies
from shiftergw.config import Config
from shiftergw.job.policy import read_policy
from shiftergw.model.signatures import PolicyVerdict
from tests.configurations import load_config
from tests.parts import need

KEY = (
    "mDMEaw0WfRYJKwYBBAHaRw8BAQdACSPGLII4wAlK3xHt7P8ZoUR+s4EACOXSm0t1hQDnPgu0FXRlc3RzIDx0QGV4"
    "YW1wbGUub3JnPoiQBBMWCAA4FiEE6MLRnnCJl9ikg9KAgNSx1eApxDAFAmsNFn0CGwMFCwkIBwIGFQoJCAsCBBYC"
    "AwECHgECF4AACgkQgNSx1eApxDDfowEA05gTEPANiarX8d1qrEbzUaSuctI8EFW4dI2OwTWzbegA/10oABwHP4x5"
    "6ZMGqmIGkB2c4oO2yRpxkt2Xgjir+DQD"
)
"""The keyring of an OpenPGP key that does not expire."""

SIGNED_BY = {"type": "signedBy", "keyType": "GPGKeys", "keyData": KEY}
ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}


def config_of(root: Path, document: Any, **changes: Any) -> Config:
    """Return a configuration whose system has this policy."""
    policy = root / "policy.json"
    policy.write_text(document if isinstance(document, str) else json.dumps(document))
    changes["Platforms/mycluster/policy_file"] = str(policy)
    return load_config(changes).config


async def findings_of(config: Config) -> dict[str, tuple[Level, str]]:
    """Return level and text of the findings by their names."""
    return {f.name: (f.level, f.text) async for f in policies(config, reactor)}


@pytest_twisted.ensureDeferred
async def test_systems_without_a_policy() -> None:
    """Systems without a policy have no findings."""
    assert await findings_of(load_config().config) == {}


@pytest_twisted.ensureDeferred
async def test_a_valid_policy(tmp_path: Path) -> None:
    """The policy, gpgv and the directory of registries are looked at."""
    need("gpgv")
    scopes = {"registry.example.com/n": [SIGNED_BY]}
    document = {"default": [REJECT], "transports": {"docker": scopes}}
    (tmp_path / "a.yaml").write_text("docker:\n  a.b:\n    lookaside: https://c.d\n")
    config = config_of(tmp_path, document, RegistriesDirectory=str(tmp_path))
    findings = await findings_of(config)
    assert {name: level for name, (level, _) in findings.items()} == dict.fromkeys(
        ("policy_file of mycluster", "keys of policy_file of mycluster", "gpgv",
         "RegistriesDirectory"), Level.OK
    )  # fmt: skip
    assert "1 scopes beside the default; digest sha256:" in findings["policy_file of mycluster"][1]
    assert findings["RegistriesDirectory"][1] == "scopes with signatures: 1"


@pytest_twisted.ensureDeferred
async def test_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid policy, a missing gpgv and an invalid directory are failures."""
    (level, text) = (await findings_of(config_of(tmp_path, "{")))["policy_file of mycluster"]
    assert (level, "not valid JSON" in text) == (Level.FAILURE, True)
    (tmp_path / "a.yaml").write_text("docker: [")
    monkeypatch.setenv("PATH", str(tmp_path))
    config = config_of(tmp_path, {"default": [SIGNED_BY]}, RegistriesDirectory=str(tmp_path))
    findings = await findings_of(config)
    assert findings["gpgv"][0] is findings["RegistriesDirectory"][0] is Level.FAILURE


@pytest_twisted.ensureDeferred
async def test_a_policy_that_everybody_may_change(tmp_path: Path) -> None:
    """A policy that every user can change, itself or its keys, causes a warning."""
    keys = tmp_path / "keys"
    keys.mkdir()
    key = keys / "key.gpg"
    key.write_bytes(b64decode(KEY))
    signed_by = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)}
    config = config_of(tmp_path, {"default": [signed_by]})

    async def warnings() -> list[str]:
        return [f.text async for f in policies(config, reactor) if f.level is Level.WARNING]

    assert await warnings() == []
    for path, mode in ((tmp_path / "policy.json", 0o666), (key, 0o646), (keys, 0o777)):
        former_mode = path.stat().st_mode
        path.chmod(mode)
        assert await warnings() == [f"everybody may write to {path}"]
        path.chmod(former_mode)
    keys.chmod(0o1777)
    assert await warnings() == []


@pytest.mark.parametrize(
    ("transports", "text"),
    [
        ({"docker": {"registry.example.com:443/n": [ACCEPT], "*.a.b": [ACCEPT]}}, ""),
        ({"docker": {"": [ACCEPT]}, "sif": {"": [ACCEPT]}}, ""),
        ({"dockr": {"": [ACCEPT]}}, "no image has the transport dockr"),
        (
            {"docker": {"library/ubuntu": [ACCEPT], "quay.io/a:1": [ACCEPT]}},
            "no location has a host of these scopes: library, quay.io",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_scopes_of_no_image(tmp_path: Path, transports: Any, text: str) -> None:
    """A misspelled scope protects no image, so there is a warning."""
    config = config_of(tmp_path, {"default": [REJECT], "transports": transports})
    warnings = [f.text async for f in policies(config, reactor) if f.level is Level.WARNING]
    assert warnings == ([text] if text else [])


@pytest_twisted.ensureDeferred
async def test_any_registry_may_have_a_scope(tmp_path: Path) -> None:
    """With the location `*` every host may be meant."""
    transports = {"docker": {"quay.io/a": [ACCEPT]}}
    anywhere = {"Locations/*": {"remotetype": "dockerv2"}}
    config = config_of(tmp_path, {"default": [REJECT], "transports": transports}, **anywhere)
    assert [f.level async for f in policies(config, reactor)] == [Level.OK]


def document_of(verdict: PolicyVerdict | None = None, **members: Any) -> dict[str, Any]:
    """Return the document of a READY record of `registry.example.com/app:1`."""
    return {
        "_id": "k",
        "system": "mycluster",
        "status": "READY",
        "id": "a" * 64,
        "tag": ["app:1"],
        "remotetype": "dockerv2",
        "origin": {
            "location": "registry.example.com",
            "repository": "app",
            "source_digest": "sha256:" + "b" * 64,
        },
        **({} if verdict is None else {"verdict": verdict.to_document()}),
        **members,
    }


@pytest.mark.parametrize(
    ("requirement", "members", "name"),
    [
        (ACCEPT, {}, ""),
        (REJECT, {}, REFUSED_IMAGES),
        (SIGNED_BY, {}, UNJUDGED_IMAGES),
        (ACCEPT, {"origin": None}, UNJUDGED_IMAGES),
        (ACCEPT, {"tag": ["no reference"]}, UNJUDGED_IMAGES),
        (REJECT, {"tag": ["no reference", "app:1"]}, REFUSED_IMAGES),
        (REJECT, {"tag": []}, ""),
        (REJECT, {"system": "other"}, ""),
        ({"type": "unknown"}, {}, REFUSED_IMAGES),
    ],
)
def test_delivered_images(tmp_path: Path, requirement: Any, members: Any, name: str) -> None:
    """Images that the policy refuses and images without a verdict differ without any request."""
    records = PolicyRecords(config_of(tmp_path, {"default": [requirement]}))
    assert records.judge(document_of(**members)) == name


def test_an_earlier_verdict(tmp_path: Path) -> None:
    """An earlier verdict counts if the same policy has given it on the same name."""
    config = config_of(tmp_path, {"default": [SIGNED_BY]})
    records = PolicyRecords(config)
    digest = read_policy(tmp_path / "policy.json").digest
    name = "registry.example.com/app:1"
    verdict = PolicyVerdict(True, "signedBy (default)", "key", "It is signed.", digest, name)
    assert records.judge(document_of(verdict)) == ""
    foreign = PolicyVerdict(True, "signedBy (default)", "key", "It is signed.", digest, f"{name}0")
    assert records.judge(document_of(foreign)) == UNJUDGED_IMAGES
    old = PolicyVerdict(True, "signedBy (default)", "key", "It is signed.", "sha256:0", name)
    assert records.judge(document_of(old)) == UNJUDGED_IMAGES
