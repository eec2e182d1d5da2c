"""Images named by the first digits of their ids."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.errors import AmbiguousId, BadRequest, NotFound
from shiftergw.model.records import Ready
from shiftergw.states import State
from tests.service.gateway_bench import ADMIN, ALICE, BOB, Bench

ID = "abcd" + "0" * 60
TWIN_ID = "abcd" + "1" * 60
PUBLIC = {"private": False, "user_acl": (), "group_acl": ()}
OF_ALICE = {"private": True, "user_acl": (2001,), "group_acl": ()}


async def deliver(bench: Bench, tag: str, image_id: str, **access: object) -> None:
    """Have alice pull an image."""
    await bench.pull(ALICE, tag)
    await bench.end(Ready(image_id, access))


@pytest_twisted.ensureDeferred
async def test_the_first_digits_of_an_id(bench: Bench) -> None:
    """Four digits name an image if no other visible image's id begins with them."""
    await deliver(bench, "app:1", ID, **PUBLIC)
    await deliver(bench, "secret:1", TWIN_ID, **OF_ALICE)
    for digits in ("abcd", "abcd00", ID):
        assert (await bench.gateway.lookup(BOB, "id", digits)).tags == ("app:1",)
    with pytest.raises(AmbiguousId) as error:
        await bench.gateway.lookup(ALICE, "id", "abcd")
    assert "abcd00000000 (app:1); abcd11111111 (secret:1)" in str(error.value)
    assert (await bench.gateway.lookup(ALICE, "id", "abcd1")).tags == ("secret:1",)


@pytest_twisted.ensureDeferred
async def test_hidden_and_absent_ids_are_the_same(bench: Bench) -> None:
    """Another user's private image is not found, in the same words as no image."""
    await deliver(bench, "secret:1", ID, **OF_ALICE)
    texts = []
    for digits in ("abcd", "abce"):
        with pytest.raises(NotFound) as error:
            await bench.gateway.lookup(BOB, "id", digits)
        texts.append(str(error.value).replace(digits, "…"))
    assert texts[0] == texts[1]
    with pytest.raises(NotFound):  # an admin is no reader, but may expire the image
        await bench.gateway.lookup(ADMIN, "id", "abcd")
    await bench.gateway.owner.expire(ADMIN, "id", "abcd")


@pytest.mark.parametrize("text", ["abc", "ABCD", "abcg", "a" * 65, "ab/cd", "abcd\n"])
@pytest_twisted.ensureDeferred
async def test_no_ids(bench: Bench, text: str) -> None:
    """Fewer digits, and other characters, are refused."""
    with pytest.raises(BadRequest):
        await bench.gateway.lookup(ALICE, "id", text)


@pytest_twisted.ensureDeferred
async def test_an_id_stands_for_the_only_tag(bench: Bench) -> None:
    """`expire` takes a tag away, so an image with several tags needs its name."""
    for tag in ("app:1", "app:2"):
        await deliver(bench, tag, ID, **OF_ALICE)
    with pytest.raises(BadRequest, match="has 2 tags"):
        await bench.gateway.owner.expire(ALICE, "id", "abcd")
    await bench.gateway.owner.expire(ALICE, "docker", "app:1")
    await bench.gateway.owner.expire(ALICE, "id", "abcd")
    (removal,) = await bench.store.queue("mycluster")
    assert removal.status is State.EXPIRING


@pytest_twisted.ensureDeferred
async def test_an_error_lists_a_few_images(bench: Bench) -> None:
    """An error names eight images, and three tags of each."""
    for number in range(10):
        await deliver(bench, f"app:{number}", f"abcd{number:060x}", **PUBLIC)
    for number in range(4):
        await deliver(bench, f"more:{number}", f"abcd{0:060x}", **PUBLIC)
    with pytest.raises(AmbiguousId) as error:
        await bench.gateway.lookup(BOB, "id", "abcd")
    assert "(app:0, more:0, more:1, …)" in error.value.what
    assert error.value.what.endswith("; and 2 more.")


@pytest_twisted.ensureDeferred
async def test_images_are_taken_down_by_digits(bench: Bench) -> None:
    """Admins name what they take down and allow again by its first digits."""
    await deliver(bench, "app:1", ID, **OF_ALICE)
    await deliver(bench, "app:2", TWIN_ID, **OF_ALICE)
    admin = bench.gateway.admin
    with pytest.raises(AmbiguousId):
        await admin.take_down(ADMIN, "abcd")
    assert await admin.take_down(ADMIN, "abcd0") == (ID, ["docker:app:1"])
    with pytest.raises(NotFound):
        await admin.take_down(ADMIN, "ffff")
    absent_id = "f" * 64
    assert await admin.take_down(ADMIN, absent_id) == (absent_id, [])
    assert await admin.take_down(ADMIN, TWIN_ID) == (TWIN_ID, ["docker:app:2"])
    with pytest.raises(AmbiguousId):
        await admin.allow(ADMIN, "abcd")
    assert await admin.allow(ADMIN, "abcd1") == TWIN_ID
    assert await admin.allow(ADMIN, "abcd") == ID
    with pytest.raises(NotFound):
        await admin.allow(ADMIN, ID)
