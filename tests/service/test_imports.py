"""Pulls of files that the gateway reads as their users."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.errors import (
    BadRequest,
    NotAllowed,
)
from shiftergw.model.uploads import ImageFile, UploadChoice
from shiftergw.service.gateway import Gateway
from shiftergw.service.imports import ImportChoice
from shiftergw.states import State
from tests.configurations import load_config
from tests.service.custom_bench import PATH, CustomBench
from tests.service.gateway_bench import (
    ALICE,
    BOB,
)


@pytest_twisted.ensureDeferred
async def test_an_import_and_its_polls(custom_bench: CustomBench) -> None:
    """The original's request works; once the image is not fresh, the file is read again."""
    first = await custom_bench.import_file()
    assert (first.status, custom_bench.checks) == (State.INIT, [(PATH, "alice")])
    file = ImageFile(kind="squashfs", path=PATH, user="alice", public=True)
    assert first.upload == file
    assert (await custom_bench.import_file()).status is State.PENDING
    await custom_bench.finish()
    assert (await custom_bench.import_file()).status is State.READY
    custom_bench.clock.advance(301)
    assert (await custom_bench.import_file()).status is State.INIT
    assert custom_bench.wakes == 2


@pytest_twisted.ensureDeferred
async def test_another_access_is_another_image(custom_bench: CustomBench) -> None:
    """A fresh image does not answer a request for fewer or more readers; a poll of it does."""
    steps: list[dict[str, Any]] = [
        {"public": True},
        {"users": (BOB.uid,)},
        {"users": (BOB.uid, 2003)},
        {"users": (2003,)},
        {"public": True},
    ]
    for step in steps:
        assert (await custom_bench.import_file(**step)).status is State.INIT
        await custom_bench.finish()
        assert (await custom_bench.import_file(**step)).status is State.READY
    assert custom_bench.wakes == len(steps)


@pytest_twisted.ensureDeferred
async def test_an_upload_with_other_readers_is_another_pull(custom_bench: CustomBench) -> None:
    """A request for other readers waits for the first pull, and is not answered by its result."""
    upload_id = await custom_bench.upload()
    await custom_bench.make(upload_id, users=(BOB.uid,))
    changes: list[dict[str, Any]] = [{}, {"public": True}]
    for members in changes:
        answer = await custom_bench.make(upload_id, **members)
        assert (answer.status, answer.upload) == (State.PENDING, None)
        assert "your other pull" in answer.status_message
    await custom_bench.finish()
    assert (await custom_bench.make(upload_id)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_file_that_may_not_be_read(custom_bench: CustomBench) -> None:
    """The refusal comes before any work, and polls of a READY image do not look again."""
    custom_bench.refusal = NotAllowed("not public")
    with pytest.raises(NotAllowed, match="not public"):
        await custom_bench.import_file()
    assert custom_bench.wakes == 0
    with pytest.raises(BadRequest, match="format"):
        await custom_bench.import_file(format="cramfs")


@pytest.mark.parametrize(
    ("users", "may_import"),
    [
        ("all", True),
        (["alice"], True),
        (["bob"], False),
        ([], False),
        ("none", False),
        (None, False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_users_that_may_import(
    custom_bench: CustomBench, spool: UploadFiles, users: Any, may_import: bool
) -> None:
    """`ImportUsers` is the original's key; with an empty list no user may import."""
    changes = {} if users is None else {"ImportUsers": users}
    place = CustomBench(custom_bench.store, spool, **changes)
    if may_import:
        assert (await place.import_file()).status is State.INIT
    else:
        with pytest.raises(NotAllowed, match="shiftergw import"):
            await place.import_file()


@pytest.mark.parametrize(
    ("members", "command", "public"),
    [
        ({}, [], True),
        ({"users": (2002,)}, [], False),
        ({}, ["cat", "{user}", "{path}"], False),
        ({"public": True}, ["cat", "{user}", "{path}"], True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_users_that_may_use_an_imported_image(
    custom_bench: CustomBench, spool: UploadFiles, members: Any, command: list[str], public: bool
) -> None:
    """A public file makes a public image; a file that was read as the user makes a private one."""
    place = CustomBench(custom_bench.store, spool, ImportUsers="all", ImportCommand=command)
    record = await place.import_file(**members)
    assert record.upload.public is public


@pytest_twisted.ensureDeferred
async def test_a_gateway_without_uploads(custom_bench: CustomBench) -> None:
    """The error says that the gateway takes no uploads."""
    gateway = Gateway(
        load_config({}).config,
        custom_bench.store,
        lambda: custom_bench.seal,
        lambda: None,
        custom_bench.clock,
        custom_bench.queue,
    )
    choice = UploadChoice("0" * 32)
    with pytest.raises(NotAllowed, match="no files"):
        await gateway.pull(ALICE, "custom", "app:1", (), (), "request", choice)
    with pytest.raises(NotAllowed, match="no files"):
        _ = gateway.files
    choice_of_file = ImportChoice(PATH, "squashfs")
    with pytest.raises(NotAllowed, match="no files"):
        await gateway.import_file(ALICE, "custom", "app:1", (), (), "request", choice_of_file)
