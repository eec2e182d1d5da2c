"""Polls as `shifterimg` sends them, with a real worker: every loop ends.

The rules and the worker communicate by records in the store. If the worker writes a record that the
rules do not find, the same pull starts for ever.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from shiftergw.errors import GatewayError
from shiftergw.job.targets import meta_of
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.oci.meta import read_meta
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from tests.configurations import load_config
from tests.job.workbench import MANIFEST, SISTER, SYSTEM, Bench, running_bench
from tests.matrices import examples
from tests.store.places import sqlite_place
from tests.store.pulls import OF_THE_ORIGINAL
from tests.work.fakes import FakeQueue

ALICE = Session(SYSTEM, "alice", 2001, "users", 2100, frozenset({2100}))
BOB = Session(SYSTEM, "bob", 2002, "users", 2100, frozenset({2100}))
ROOT = Session(SYSTEM, "root", 0, "root", 0, frozenset({0}), admin=True)
LOGINS = {"default": RegistryLogin("somebody", "secret")}
APP = "lib/app:1"


class Loops:
    """A gateway in front of a worker."""

    def __init__(self, bench: Bench, root: Path) -> None:
        """Serve the two systems of the bench."""
        self.bench = bench
        self.put = sqlite_place(bench.store, root / "store.sqlite").put
        sister = {"accesstype": "local", "local": {"imageDir": "/images"}}
        config = load_config({f"Platforms/{SISTER}": sister}).config
        self.gateway = Gateway(
            config,
            bench.store,
            lambda: bench.seal,
            lambda: None,
            reactor,
            FakeQueue(0),
        )

    async def poll(
        self,
        session: Session,
        image: str = APP,
        users: tuple[int, ...] = (),
        itype: str = "docker",
    ) -> ImageRecord:
        """Send one poll."""
        return await self.gateway.pull(session, itype, image, users, (), "request")

    async def work(self) -> None:
        """Run all waiting work at the same time."""
        waiting = await self.bench.store.waiting(math.inf, 10)
        await gatherResults(
            [Deferred.fromCoroutine(self.bench.worker.run(record.key)) for record in waiting],
            consumeErrors=True,
        )

    async def pull(self, *arguments: Any) -> ImageRecord:
        """Poll until the pull ends, after at most one piece of work.

        The next poll repeats the end.
        """
        if (await self.poll(*arguments)).status not in {State.READY, State.FAILURE}:
            await self.work()
        record = await self.poll(*arguments)
        assert record.status in {State.READY, State.FAILURE}
        assert (await self.poll(*arguments)).status is record.status
        assert await self.bench.store.waiting(math.inf, 10) == []
        return record

    async def check_readers(self) -> Sequence[ImageRecord]:
        """Return the READY records, which must all have the readers of the delivered metadata."""
        records = await self.bench.store.find_id([SYSTEM, SISTER], MANIFEST.hex)
        meta = self.bench.meta() if records else None
        for record in records:
            assert meta == read_meta(meta_of(record).content)
        return records


@pytest.mark.parametrize(
    "members",
    [
        {"status": "EXPIRED", "private": True, "userACL": [2009], "tag": [APP]},
        {"status": "EXPIRED", "id": None},
        {"status": "FAILURE", "last_pull": None},
        {"status": "FAILURE", "id": None, "private": True, "userACL": [2009], "last_pull": 1.0},
        {"status": "INIT", "id": None, "tag": []},
        {"status": "PENDING", "id": None, "tag": [], "last_pull": 1.0},
        {"status": "TRANSFER", "last_heartbeat": 1.0},
        {"status": "EXPIRING", "tag": [APP]},
        {"status": "READY", "id": MANIFEST.hex, "itype": "custom", "tag": [APP]},
        {"status": "READY", "id": MANIFEST.hex, "tag": [APP], "last_pull": None},
        {"status": "READY", "id": "f" * 64, "tag": APP, "private": True, "userACL": [2001]},
        {"status": "SUCCESS", "id": "f" * 64, "tag": [APP], "private": True, "userACL": None},
    ],
)
@pytest_twisted.ensureDeferred
async def test_records_of_the_original_do_not_disturb_a_pull(
    tmp_path: Path, members: dict[str, Any]
) -> None:
    """Records of the original in any state neither hide work in flight nor repeat it."""
    async with running_bench(tmp_path) as bench:
        loops = Loops(bench, tmp_path)
        document = OF_THE_ORIGINAL | {"system": SYSTEM, "pulltag": APP} | members
        loops.put("1" * 24, {name: value for name, value in document.items() if value is not None})
        assert (await loops.poll(ALICE)).status is State.INIT
        assert (await loops.poll(BOB)).status is State.PENDING
        await loops.work()
        assert (await loops.poll(ALICE)).id == MANIFEST.hex
        assert bench.builder.builds == 1
        await loops.check_readers()


@pytest_twisted.ensureDeferred
async def test_types_share_an_image_and_keep_their_tags(tmp_path: Path) -> None:
    """The same tag of another type is another tag, with its own work and look-ups."""
    async with running_bench(tmp_path) as bench:
        loops = Loops(bench, tmp_path)
        for _ in range(2):
            for itype in ("docker", "custom"):
                assert (await loops.pull(ALICE, APP, (), itype)).itype == itype
        for itype in ("docker", "custom"):
            assert (await loops.gateway.lookup(BOB, itype, APP)).tags == (APP,)
        assert bench.builder.builds == 1


@pytest_twisted.ensureDeferred
async def test_an_expired_image_is_pulled_and_expired_again(tmp_path: Path) -> None:
    """The record of the first removal is not mistaken for the image of the second pull."""
    async with running_bench(tmp_path) as bench:
        loops = Loops(bench, tmp_path)
        for _ in range(3):
            assert (await loops.pull(ALICE)).status is State.READY
            await loops.gateway.owner.expire(ROOT, "docker", APP)
            await loops.work()
            assert list(bench.images.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_concurrent_pulls_of_one_image(tmp_path: Path) -> None:
    """Users with proof share one access list, also with several tags and systems."""
    async with running_bench(tmp_path) as bench:
        loops = Loops(bench, tmp_path)
        bench.source.private = True
        alice, bob = replace(ALICE, logins=LOGINS), replace(BOB, logins=LOGINS)
        await loops.poll(alice, APP, (2009,))
        await loops.poll(bob, "lib/app:2")
        await loops.poll(replace(bob, system=SISTER))
        await loops.work()
        record, sister_record = await loops.check_readers()
        assert {*record.tags, *sister_record.tags} == {APP, "lib/app:2"}
        assert {ALICE.uid, BOB.uid} <= set(record.user_acl or ())
        assert record.user_acl == sister_record.user_acl == bench.meta().user_acl


@dataclass(frozen=True)
class UserRequest:
    """A user's whole poll loop, or the expiry of an image."""

    session: Session
    image: str
    itype: str
    users: tuple[int, ...] = ()
    expire: bool = False


SESSIONS = st.builds(
    lambda session, system, logins: replace(session, system=system, logins=logins),
    st.sampled_from([ALICE, BOB, ROOT]),
    st.sampled_from([SYSTEM, SISTER]),
    st.sampled_from([LOGINS, LOGINS, {}]),
)
REQUESTS = st.builds(
    UserRequest,
    SESSIONS,
    st.sampled_from([APP, "lib/app:2"]),
    st.sampled_from(["docker", "docker", "custom"]),
    st.sampled_from([(), (2001,), (2009,), (2001, 2002)]),
    st.sampled_from([False, False, False, False, True]),
)


@settings(max_examples=examples(30))
@given(st.lists(REQUESTS, min_size=3, max_size=8), st.sampled_from([True, True, False]))
@pytest_twisted.ensureDeferred
async def test_every_loop_ends(requests: list[UserRequest], private: bool) -> None:
    """Each poll loop ends after one piece of work, for any order of pulls of any users.

    Records of all tags, types and systems agree with the delivered metadata on the readers.
    """
    with tempfile.TemporaryDirectory() as directory:
        async with running_bench(Path(directory)) as bench:
            loops = Loops(bench, Path(directory))
            bench.source.private = private
            denied_polls = set()
            for request in requests:
                if request.expire:
                    with suppress(GatewayError):  # not allowed, or nothing to expire
                        await loops.gateway.owner.expire(
                            request.session, request.itype, request.image
                        )
                    await loops.work()
                else:
                    record = await loops.pull(
                        request.session, request.image, request.users, request.itype
                    )
                    poll = request.session.uid, request.session.system, request.itype, request.image
                    if private and not request.session.logins:
                        denied_polls.add(poll)  # repeated while `FailureHold` lasts
                    assert record.status is State.READY or poll in denied_polls
                await loops.check_readers()
