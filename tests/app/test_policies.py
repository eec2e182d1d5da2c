"""The start is refused if the process could not verify signatures."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import capturedLogs

from shiftergw.app import policies
from shiftergw.app.policies import PolicyPreparation, PresentPolicies
from shiftergw.errors import ConfigurationError, ImageRefused
from shiftergw.job.policy import read_policy
from shiftergw.model.records import ImageRecord
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.model.uploads import ImageFile
from shiftergw.plumbing.threads import Threads
from tests.configurations import load_config
from tests.parts import need
from tests.patience import patient
from tests.thread_pools import running_threads

SIGNED_BY = {"type": "signedBy", "keyType": "GPGKeys", "keyData": "a2V5"}


async def prepare(root: Path, content: str, **changes: Any) -> list[str]:
    """Start with a policy of this content; return the errors in the log."""
    policy = root / "policy.json"
    policy.write_text(content)
    changes["Platforms/mycluster/policy_file"] = str(policy)
    async with running_threads(1) as threads:
        with capturedLogs() as events:
            service = PolicyPreparation(load_config(changes).config, threads, reactor)
            await service.startService()
        return [str(event.get("error")) for event in events if "error" in event]


@pytest_twisted.ensureDeferred
async def test_without_gpgv_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is refused only if a policy needs `gpgv`."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await prepare(tmp_path, '{"default": [{"type": "reject"}]}') == []
    with pytest.raises(ConfigurationError, match="gpgv cannot be started") as caught:
        await prepare(tmp_path, json.dumps({"default": [SIGNED_BY]}))
    assert "package gpgv" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_with_gpgv(tmp_path: Path) -> None:
    """A valid policy needs no word in the log."""
    need("gpgv")
    assert await prepare(tmp_path, json.dumps({"default": [SIGNED_BY]})) == []


@pytest_twisted.ensureDeferred
async def test_an_invalid_policy_refuses_images_and_not_the_start(tmp_path: Path) -> None:
    """The gateway starts for the other systems, and logs the fault of the policy."""
    (error,) = await prepare(tmp_path, "{")
    assert "is not valid JSON" in error


@pytest_twisted.ensureDeferred
async def test_an_invalid_directory_of_registries(tmp_path: Path) -> None:
    """The log says which file is wrong."""
    need("gpgv")
    (tmp_path / "a.yaml").write_text("docker: [")
    content = json.dumps({"default": [SIGNED_BY]})
    (error,) = await prepare(tmp_path, content, RegistriesDirectory=str(tmp_path))
    assert "a.yaml: line 1" in error


def record_of(digest: str | None, *, is_accepted: bool = True) -> ImageRecord:
    """Return a record whose verdict was given by the policy of this digest."""
    if digest is None:
        return ImageRecord(system="mycluster")
    verdict = PolicyVerdict(is_accepted, "signedBy (default)", "key", "It is signed.", digest, "x")
    return ImageRecord(system="mycluster", verdict=verdict.to_document())


@pytest_twisted.ensureDeferred
async def test_records_that_the_present_policy_has_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> None:
    """A different policy, an invalid one, and one on a disk that hangs have no verdicts."""
    file = tmp_path / "policy.json"
    file.write_text('{"default": [{"type": "reject"}]}')
    digest = read_policy(file).digest
    config = load_config({"Platforms/mycluster/policy_file": str(file)}).config
    end = Event()
    try:
        present = PresentPolicies(config, threads, reactor)
        assert await present.is_judged(record_of(digest))
        assert not await present.is_judged(record_of(digest, is_accepted=False))
        assert not await present.is_judged(record_of("sha256:0"))
        assert not await present.is_judged(record_of(None))
        assert await present.is_judged(ImageRecord(system="absent"))
        file.write_text("{")
        assert not await present.is_judged(record_of(digest))
        without_policy = PresentPolicies(load_config().config, threads, reactor)
        assert await without_policy.is_judged(record_of(None))
        monkeypatch.setattr(policies, "READ_SECONDS", 0.2)
        monkeypatch.setattr(policies, "read_policy", lambda _: end.wait(patient(60)))
        present = PresentPolicies(config, threads, reactor)
        assert not await present.is_judged(record_of(digest))
    finally:
        end.set()


@pytest_twisted.ensureDeferred
async def test_images_of_files_are_judged_by_their_transport(
    tmp_path: Path, threads: Threads
) -> None:
    """The present policy decides without the file; one that cannot be read refuses the image."""
    file = tmp_path / "policy.json"
    transports = {"docker-archive": {"": [{"type": "insecureAcceptAnything"}]}, "sif": {}}
    file.write_text(json.dumps({"default": [SIGNED_BY], "transports": transports}))
    config = load_config({"Platforms/mycluster/policy_file": str(file)}).config

    def image_of(kind: str | None) -> ImageRecord:
        upload = ImageFile("u", "path")
        return ImageRecord(system="mycluster", id="a" * 64, remotetype=kind, upload=upload)

    present = PresentPolicies(config, threads, reactor)
    assert await present.is_judged(image_of("docker-archive"))
    with pytest.raises(ImageRefused, match=r"of the transport sif, by signedBy \(default\)"):
        await present.is_judged(image_of("sif"))
    assert not await present.is_judged(image_of(None))
    file.write_text("{")
    with pytest.raises(ImageRefused, match="cannot be used"):
        await present.is_judged(image_of("docker-archive"))
