"""Policies are applied before a download, and again at each reuse."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import capturedLogs

from shiftergw.errors import ConfigurationError, RegistryUnavailable
from shiftergw.job import policy as job_policy
from shiftergw.job.policy import read_policy
from shiftergw.model.images import Digest
from shiftergw.model.records import ImageRecord
from shiftergw.model.uploads import ImageFile
from shiftergw.rules.policy import Policy
from shiftergw.sources.user_files.user_source import UserSource
from shiftergw.states import State
from tests.job.workbench import INDEX, MANIFEST, SISTER, SYSTEM, Bench, Source, running_bench
from tests.patience import patient

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED_BY = [{"type": "signedBy", "keyType": "GPGKeys", "keyData": "a2V5"}]
SIGSTORE_SIGNED = [{"type": "sigstoreSigned", "keyData": "a2V5"}]
BROKEN_KEY = [{"type": "signedBy", "keyType": "GPGKeys", "keyData": "YnJva2Vu"}]
SCOPE = "reg.example.org/lib"
NAME = "reg.example.org/lib/app:1"
POLICY_KEY = "Platforms/mycluster/policy_file"


class PolicyFile:
    """A policy that tests replace."""

    def __init__(self, directory: Path) -> None:
        """Name the file."""
        self.path = directory / "policy.json"

    def require(self, requirements: Any, default: Any = REJECT, **members: Any) -> None:
        """Require this of the images of the bench."""
        document = {"default": default, "transports": {"docker": {SCOPE: requirements}}}
        self.path.write_text(json.dumps({**document, **members}))


@pytest.fixture
def policy(tmp_path: Path) -> PolicyFile:
    """Return a policy that requires a signature."""
    file = PolicyFile(tmp_path)
    file.require(SIGNED_BY)
    return file


def bench_with(root: Path, policy: PolicyFile) -> Any:
    """Return the context of a bench whose first system has the policy."""
    registry = {"remotetype": "dockerv2", "url": "https://reg.example.org"}
    changes: dict[str, Any] = {POLICY_KEY: str(policy.path), "Locations/registry": registry}
    return running_bench(root, **changes)


async def pull_signed(bench: Bench) -> ImageRecord:
    """Pull a signed image, and forget the requests."""
    bench.signatures.add(NAME)
    record = await bench.pull("lib/app:1")
    assert record.status is State.READY, record.cause
    bench.source.requests.clear()
    bench.signatures.requests.clear()
    return record


@pytest_twisted.ensureDeferred
async def test_without_a_policy(tmp_path: Path) -> None:
    """A system without `policy_file` accepts every image, and no signature is looked up."""
    async with running_bench(tmp_path) as bench:
        record = await bench.pull("lib/app:1")
        assert (record.status, record.verdict) == (State.READY, None)
        assert bench.signatures.requests == []


@pytest_twisted.ensureDeferred
async def test_an_unsigned_image_is_refused(tmp_path: Path, policy: PolicyFile) -> None:
    """No layer is downloaded; the user gets the reason, and only the log names the file."""
    async with bench_with(tmp_path, policy) as bench:
        with capturedLogs() as events:
            record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert record.cause == (
            "The policy of mycluster does not accept reg.example.org/lib/app:1, by signedBy (docker"
            " reg.example.org/lib): The image has no OpenPGP signature."
        )
        assert "policy of this system accepts" in (record.remedy or "")
        assert record.retryable is False
        assert str(policy.path) not in str(record)
        assert any(str(policy.path) in str(event.get("text")) for event in events)
        assert (bench.cache.downloads, bench.builder.builds) == ([], 0)
        assert not bench.image_path.exists()
        assert bench.signatures.requests == [(NAME, frozenset({"simple"}))]


@pytest_twisted.ensureDeferred
async def test_a_signed_image_is_accepted(tmp_path: Path, policy: PolicyFile) -> None:
    """The record and the log have the requirement and the signer."""
    async with bench_with(tmp_path, policy) as bench:
        bench.signatures.add(NAME)
        with capturedLogs() as events:
            record = await bench.pull("lib/app:1")
        assert record.status is State.READY
        assert record.verdict is not None
        assert record.verdict["requirement"] == "signedBy (docker reg.example.org/lib)"
        assert record.verdict["identity"] == "key 1"
        assert record.verdict["image"] == NAME
        assert any(event.get("signers") == "key 1" for event in events)


@pytest_twisted.ensureDeferred
async def test_a_signature_of_the_index_counts(tmp_path: Path, policy: PolicyFile) -> None:
    """A signature of an index covers its manifests, because it names their digests."""
    async with bench_with(tmp_path, policy) as bench:
        bench.signatures.add(NAME, INDEX)
        assert (await bench.pull("lib/app:1")).status is State.READY


@pytest.mark.parametrize(
    ("reference", "digest", "signer", "words"),
    [
        (NAME, Digest.of(b"another"), "key 1", "it is one for another image"),
        ("reg.example.org/lib/app:2", MANIFEST, "key 1", "it is one for reg.example.org/lib/app:2"),
        ("reg.example.org/lib/app:1", MANIFEST, "unknown", "it is signed by an unknown key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_signatures_that_do_not_count(
    tmp_path: Path, policy: PolicyFile, reference: str, digest: Digest, signer: str, words: str
) -> None:
    """A signature of another image, of another name or by an unknown key is named."""
    async with bench_with(tmp_path, policy) as bench:
        bench.signatures.add(reference, digest, signer)
        record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert words in (record.cause or "")


@pytest_twisted.ensureDeferred
async def test_a_reuse_under_the_same_policy_costs_one_request(
    tmp_path: Path, policy: PolicyFile
) -> None:
    """The verdict is kept with the record: no signature is fetched again."""
    async with bench_with(tmp_path, policy) as bench:
        first = await pull_signed(bench)
        record = await bench.pull("lib/app:1")
        assert (record.status, record.verdict) == (State.READY, first.verdict)
        assert bench.source.requests == ["head"]
        assert bench.signatures.requests == []


@pytest_twisted.ensureDeferred
async def test_a_changed_policy_judges_a_delivered_image_anew(
    tmp_path: Path, policy: PolicyFile
) -> None:
    """The image stays where it is, whether the new policy accepts it or not."""
    async with bench_with(tmp_path, policy) as bench:
        first = await pull_signed(bench)
        policy.require([*SIGNED_BY, *SIGSTORE_SIGNED])
        failure = await bench.pull("lib/app:1")
        assert failure.status is State.FAILURE
        assert "sigstoreSigned" in (failure.cause or "")
        assert bench.image_path.exists()
        kinds = frozenset({"simple", "cosign", "bundle"})
        assert bench.signatures.requests == [(NAME, kinds)]
        policy.require([*SIGNED_BY, *ACCEPT])
        record = await bench.pull("lib/app:1")
        assert record.status is State.READY
        assert record.verdict is not None
        assert first.verdict is not None
        assert record.verdict["policy"] != first.verdict["policy"]
        assert bench.builder.builds == 1


@pytest_twisted.ensureDeferred
async def test_a_changed_key_judges_a_delivered_image_anew(tmp_path: Path) -> None:
    """The digest of a policy covers the keys that it names."""
    policy = PolicyFile(tmp_path)
    key = tmp_path / "key.gpg"
    key.write_bytes(b"key")
    policy.require([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)}])
    async with bench_with(tmp_path, policy) as bench:
        await pull_signed(bench)
        key.write_bytes(b"broken")
        record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert "cannot be used" in (record.cause or "")


@pytest_twisted.ensureDeferred
async def test_a_new_rejection_needs_no_request(tmp_path: Path, policy: PolicyFile) -> None:
    """A policy that rejects a delivered image refuses it after the HEAD request."""
    async with bench_with(tmp_path, policy) as bench:
        await pull_signed(bench)
        policy.require(REJECT)
        record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert "The policy rejects such images." in (record.cause or "")
        assert bench.source.requests == ["head"]


@pytest_twisted.ensureDeferred
async def test_an_image_of_the_time_before_the_policy(tmp_path: Path, policy: PolicyFile) -> None:
    """A record without a verdict is judged, also where the policy requires no signature."""
    async with running_bench(tmp_path) as bench:
        await bench.pull("lib/app:1")
    (tmp_path / "again").mkdir()
    policy.require(ACCEPT)
    async with bench_with(tmp_path / "again", policy) as bench:
        record = await bench.pull("lib/app:1")
        assert record.status is State.READY
        assert record.verdict is not None
        assert (
            record.verdict["requirement"] == "insecureAcceptAnything (docker reg.example.org/lib)"
        )
        assert bench.signatures.requests == []


@pytest_twisted.ensureDeferred
async def test_another_tag_is_judged_for_itself(tmp_path: Path, policy: PolicyFile) -> None:
    """A signature of `:1` does not accept the same image as `:2`."""
    async with bench_with(tmp_path, policy) as bench:
        await pull_signed(bench)
        failure = await bench.pull("lib/app:2")
        assert failure.status is State.FAILURE
        assert "app:2" in (failure.cause or "")
        bench.signatures.add("reg.example.org/lib/app:2")
        record = await bench.pull("lib/app:2")
        assert record.status is State.READY
        assert set(record.tags) == {"lib/app:1", "lib/app:2"}


@pytest_twisted.ensureDeferred
async def test_another_system_has_its_own_policy(tmp_path: Path, policy: PolicyFile) -> None:
    """A delivered image of a system without a policy is not thereby accepted by its sister."""
    async with bench_with(tmp_path, policy) as bench:
        record = await bench.pull("lib/app:1", system=SISTER)
        assert (record.status, record.verdict) == (State.READY, None)
        failure = await bench.pull("lib/app:1", system=SYSTEM)
        assert failure.status is State.FAILURE
        bench.signatures.add(NAME)
        record = await bench.pull("lib/app:1", system=SYSTEM)
        assert record.verdict is not None
        assert bench.builder.builds == 1
        record = await bench.pull("lib/app:1", system=SISTER)
        assert (record.status, record.verdict) == (State.READY, None)


@pytest.mark.parametrize("content", ["", "{", '{"default": []}', '{"default": [{"type": "x"}]}'])
@pytest_twisted.ensureDeferred
async def test_an_invalid_policy_refuses_everything(
    tmp_path: Path, policy: PolicyFile, content: str
) -> None:
    """An invalid policy refuses delivered images, too; the log has the reason."""
    async with bench_with(tmp_path, policy) as bench:
        await pull_signed(bench)
        policy.path.write_text(content)
        with capturedLogs() as events:
            record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert record.cause == (
            "The policy of this system cannot be used, so every image is refused."
        )
        assert any(f"{policy.path}: The policy is" in str(event.get("text")) for event in events)
        sister = await bench.pull("lib/app:1", system=SISTER)
        assert sister.status is State.READY


@pytest_twisted.ensureDeferred
async def test_an_absent_policy_refuses_everything(tmp_path: Path, policy: PolicyFile) -> None:
    """A policy whose file is missing refuses all images."""
    policy.path.unlink()
    async with bench_with(tmp_path, policy) as bench:
        record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert "cannot be used" in (record.cause or "")
        assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_unusable_keys_refuse_the_image(tmp_path: Path, policy: PolicyFile) -> None:
    """A keyring that cannot be read is the site's fault, not the user's."""
    policy.require(BROKEN_KEY)
    async with bench_with(tmp_path, policy) as bench:
        bench.signatures.add(NAME)
        record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert "cannot be used" in (record.cause or "")
        assert "site's support" in (record.remedy or "")


@pytest_twisted.ensureDeferred
async def test_unknown_signatures_refuse_the_image(tmp_path: Path, policy: PolicyFile) -> None:
    """An image is refused if the storage of its signatures does not answer."""
    async with bench_with(tmp_path, policy) as bench:
        bench.signatures.refuses = RegistryUnavailable("The storage is down.")
        record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert (record.cause, record.retryable) == ("The storage is down.", True)
        assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_readers_may_be_changed_whatever_the_policy_says(
    tmp_path: Path, policy: PolicyFile
) -> None:
    """The owner of a private image can exclude users after the policy has changed."""
    async with bench_with(tmp_path, policy) as bench:
        bench.source.private = True
        bench.signatures.add(NAME)
        first = await bench.pull("lib/app:1", login="alice:secret", user_acl=(2001, 2002))
        policy.require(REJECT)
        record = await bench.pull("lib/app:1", user_acl=(2001,), kind="acl")
        assert (record.status, record.user_acl) == (State.READY, (2001,))
        assert record.verdict == first.verdict


@pytest_twisted.ensureDeferred
async def test_archives_are_judged_by_their_transport(tmp_path: Path, policy: PolicyFile) -> None:
    """An image from no registry has the requirements of its transport, and no signatures."""
    transports = {"docker-archive": {"": ACCEPT}, "dir": {"": SIGNED_BY}}
    policy.require(REJECT, transports=transports)
    async with bench_with(tmp_path, policy) as bench:
        bench.source.kind = "docker-archive"
        assert (await bench.pull("lib/app:1")).status is State.READY
        bench.source.kind = "dir"
        bench.source.manifest = Digest.of(b"another")
        record = await bench.pull("lib/app:2")
        assert record.cause == (
            "The policy of mycluster does not accept an image of the transport dir, by signedBy"
            " (transport dir): It comes from files, which have no signatures."
        )
        bench.source.kind = "oci-archive"
        record = await bench.pull("lib/app:3")
        assert "by reject (default)" in (record.cause or "")
        assert bench.signatures.requests == []


@pytest_twisted.ensureDeferred
async def test_a_delivered_archive_is_judged_without_its_source(
    tmp_path: Path, policy: PolicyFile
) -> None:
    """A delivered archive needs no source; the present policy decides about the transport."""
    policy.require(REJECT, transports={"docker-archive": {"": ACCEPT}})
    async with bench_with(tmp_path, policy) as bench:
        bench.source.kind = "docker-archive"
        assert (await bench.pull("lib/app:1")).status is State.READY
        bench.source.requests.clear()
        policy.require(ACCEPT, transports={"docker-archive": {"": [*ACCEPT, *ACCEPT]}})
        assert (await bench.pull("lib/app:1")).status is State.READY
        policy.require(ACCEPT, transports={"docker-archive": {"": SIGNED_BY}})
        assert (await bench.pull("lib/app:1")).status is State.FAILURE
        assert bench.source.requests == ["head", "head"]


@pytest_twisted.ensureDeferred
async def test_an_upload_is_judged_by_its_transport(tmp_path: Path, policy: PolicyFile) -> None:
    """A file of a user is no image of a registry, whatever name it gets, and has no scopes."""
    file = ImageFile("ab" * 16, "docker-archive", 10, "cd" * 32)
    scopes = {"uploads/2001": ACCEPT, "/": ACCEPT, "": REJECT}
    policy.require(ACCEPT, default=ACCEPT, transports={"docker-archive": scopes})
    async with bench_with(tmp_path, policy) as bench:
        source = Source()
        source.kind = "docker-archive"
        bench.files.source = UserSource(source, file, 2001)
        record = await bench.pull("lib/app:1", itype="custom", upload=file)
        assert record.status is State.FAILURE
        assert record.cause is not None
        assert "an image of the transport docker-archive, by reject (trans" in record.cause


@pytest_twisted.ensureDeferred
async def test_an_invalid_directory_of_registries_refuses_the_image(
    tmp_path: Path, policy: PolicyFile
) -> None:
    """An invalid file of registries.d refuses the image, and only the log names the file."""
    async with bench_with(tmp_path, policy) as bench:
        bench.signatures.refuses = ConfigurationError("/etc/registries.d/a.yaml: line 1: bad.")
        with capturedLogs() as events:
            record = await bench.pull("lib/app:1")
        assert record.status is State.FAILURE
        assert "cannot be used" in (record.cause or "")
        assert "a.yaml" not in f"{record.cause} {record.remedy}"
        assert any("a.yaml: line 1" in str(event.get("text")) for event in events)


@pytest_twisted.ensureDeferred
async def test_a_policy_on_a_disk_that_hangs(
    tmp_path: Path, policy: PolicyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull fails in time, and may be tried again."""
    end = Event()

    def hang(path: Path) -> Policy:
        end.wait(patient(60))
        return read_policy(path)

    monkeypatch.setattr(job_policy, "FILE_SECONDS", 0.2)
    monkeypatch.setattr(job_policy, "read_policy", hang)
    async with bench_with(tmp_path, policy) as bench:
        try:
            record = await bench.pull("lib/app:1")
        finally:
            end.set()
        assert (record.status, record.retryable) == (State.FAILURE, True)
        assert "was not read within" in (record.cause or "")
        assert bench.cache.downloads == []
