"""images, lookup and queue: as processes against a gateway, and their parts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.web.pages import notFound
from twisted.web.server import Site

from shiftergw.cli import exchange
from shiftergw.cli import gateways as client
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import NoGateway, RequestRefused
from shiftergw.cli.main import main
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import BadRequest, NotAllowed, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.cli.clients import both_clients
from tests.cli.command import ask
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.raw_servers import Answer, answering, endless
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening, site_of

WORKING = ImageRecord(system="mycluster", status=State.PULLING, stage="fetch", done=1, total=4)
FAILURE = ImageRecord(
    system="mycluster",
    status=State.FAILURE,
    cause="No such tag.",
)


# As processes.


@pytest_twisted.ensureDeferred
async def test_images() -> None:
    """There is a header, and a row for each tag that fits; `--json` prints the records."""
    fake = FakeGateway(images=[replace(READY, tags=("b:2", "a:1"), size=10**6)])
    result = await ask(fake, "images")
    assert result.returncode == 0
    assert [line.split()[:4] for line in result.stdout.splitlines()] == [
        ["NAME", "ID", "SIZE", "PULLED"],
        ["a:1", IMAGE_ID[:12], "1", "MB"],
        ["b:2", IMAGE_ID[:12], "1", "MB"],
    ]
    options = ("--filter", "access=public", "--sort", "size", "b")
    assert (await ask(fake, "images", *options)).stdout.splitlines()[1].startswith("b:2 ")
    (record,) = json.loads((await ask(fake, "images", "--json")).stdout)
    assert (record["id"], record["size"], record["private"]) == (IMAGE_ID, 10**6, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["c*"], "no image that fits on mycluster"), (["--filter", "owner=x"], "that fits")],
)
@pytest_twisted.ensureDeferred
async def test_no_image_fits(arguments: list[str], words: str) -> None:
    """Standard error says so, and scripts read nothing, or an empty list."""
    result = await ask(FakeGateway(), "images", *arguments)
    assert (result.returncode, result.stdout) == (0, "")
    assert words in result.stderr
    assert (await ask(FakeGateway(), "images", "--json", *arguments)).stdout == "[]\n"


@pytest_twisted.ensureDeferred
async def test_lookup() -> None:
    """`lookup` prints the id, or exits with 4."""
    assert (await ask(FakeGateway(), "lookup", "ubuntu:24.04")).stdout == f"{IMAGE_ID}\n"
    result = await ask(FakeGateway(), "lookup", "custom:nothing:1")
    assert (result.returncode, result.stdout) == (4, "")
    assert "There is no image nothing:1." in result.stderr


@pytest_twisted.ensureDeferred
async def test_queue() -> None:
    """There is a header, and one line per pull; `--json` prints the rows."""
    waiting = [replace(WORKING, pulltag="a:1"), replace(FAILURE, pulltag="b:1", requested_by=0)]
    fake = FakeGateway(waiting=waiting)
    result = await ask(fake, "queue")
    assert [line.split(maxsplit=4) for line in result.stdout.splitlines()] == [
        ["IMAGE", "STATE", "AGE", "USER", "PROGRESS"],
        ["a:1", "pulling", "-", "-", "Downloading the image: 25 %, 1 bytes of 4 bytes"],
        ["b:1", "failed", "-", "root", "No such tag."],
    ]
    rows = json.loads((await ask(fake, "queue", "--json")).stdout)
    assert [row.get("owner") for row in rows] == [None, 0]


@pytest_twisted.ensureDeferred
async def test_an_empty_queue() -> None:
    """Standard error says so, and scripts read nothing, or an empty list."""
    result = await ask(FakeGateway(), "queue")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "No pull waits, works or has failed on mycluster.\n"
    assert (await ask(FakeGateway(), "queue", "--json")).stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotAllowed("Not yours."), 4), (BadRequest("Odd."), 2), (Unavailable("Away."), 3)],
)
@pytest_twisted.ensureDeferred
async def test_refusals_have_their_codes(error: Exception, code: int) -> None:
    """The gateway's message is on standard error; the exit code says what kind it is."""
    result = await ask(FakeGateway(raises=error), "images")
    assert (result.returncode, result.stdout) == (code, "")
    assert str(error) in result.stderr


# Without a gateway.


@pytest.mark.parametrize(
    "arguments",
    [
        ["lookup"],
        ["lookup", "local:/x"],
        ["lookup", ""],
        ["lookup", "docker:"],
        ["lookup", "quay.io/"],
        ["lookup", "docker://quay.io/a/b:1/"],
        ["--system", "a,,b", "images"],
        ["images", "--system", ","],
        ["images", "--filter", "color=red"],
        ["images", "--sort", "color"],
        ["--munge-socket", "a=", "images"],
        ["nonsense"],
    ],
)
def test_misuse(arguments: list[str]) -> None:
    """An invalid command line is refused before any request."""
    assert CliRunner().invoke(main, arguments).exit_code == 2


# Both clients in this process.


def _settings(*urls: str, credential: str = "good:ann") -> Settings:
    return Settings(urls, ["mycluster"], credential)


@both_clients
@pytest_twisted.ensureDeferred
async def test_gateways_are_tried_until_one_answers(with_client: Any) -> None:
    """Gateways that are away or refuse are passed over; the one that answered is asked again."""
    good, bad = FakeGateway(), FakeGateway(raises=NotAllowed("No."))

    async def five_lists(remote: Remote) -> list[int]:
        return [len(await remote.images()) for _ in range(5)]

    async with (
        listening(site_of(good, reactor)) as first,
        listening(site_of(bad, reactor)) as second,
    ):
        urls = [f"http://127.0.0.1:{port}" for port in (second, free_port(), first)]
        assert await with_client(_settings(*urls), five_lists) == [1] * 5
    assert len(good.calls) == 5
    assert len(bad.calls) <= 1


@both_clients
@pytest_twisted.ensureDeferred
async def test_a_refusal_takes_precedence_over_silence(with_client: Any) -> None:
    """If one gateway refuses and the other is away, the refusal is reported."""
    async with listening(site_of(FakeGateway(), reactor)) as port:
        urls = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{port}"]
        for order in (urls, urls[::-1]):
            with pytest.raises(RequestRefused, match="not valid"):
                await with_client(_settings(*order, credential="bad"), Remote.images)


@both_clients
@pytest_twisted.ensureDeferred
async def test_no_gateway_answers(with_client: Any) -> None:
    """The error names the gateway and the reason."""
    port = free_port()
    with pytest.raises(NoGateway, match=f"127.0.0.1:{port} cannot be reached: nothing listens"):
        await with_client(_settings(f"http://127.0.0.1:{port}"), Remote.images)


@both_clients
@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_a_gateway_answers(with_client: Any) -> None:
    """A server that is not a gateway counts as silent, whatever it answers."""
    for path in ("/livez?", "/?"):
        async with listening(site_of(FakeGateway(), reactor)) as port:
            with pytest.raises(NoGateway, match="is it a gateway"):
                await with_client(_settings(f"http://127.0.0.1:{port}{path}"), Remote.images)


@both_clients
@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_a_gateway_refuses(with_client: Any) -> None:
    """A refusal without a message is not a gateway's: the port is wrong, or it is a proxy."""
    async with listening(Site(notFound())) as port:  # type: ignore[arg-type]  # any site
        with pytest.raises(NoGateway, match="HTTP status 404: is it a gateway"):
            await with_client(_settings(f"http://127.0.0.1:{port}"), Remote.images)


@both_clients
@pytest_twisted.ensureDeferred
async def test_a_gateway_that_is_too_slow(
    with_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that does not come in time is given up, and does not look like Ctrl-C."""
    monkeypatch.setattr(client, "ANSWER_LIMIT", 0.05)
    fake = FakeGateway(gate=Deferred())
    async with listening(site_of(fake, reactor)) as port:
        with pytest.raises(NoGateway, match="did not answer"):
            await with_client(_settings(f"http://127.0.0.1:{port}"), Remote.images)


@pytest_twisted.ensureDeferred
async def test_a_request_can_be_cancelled() -> None:
    """Cancelling ends the request as a cancellation, at whatever point it is."""
    fake = FakeGateway(gate=Deferred())
    async with listening(site_of(fake, reactor)) as port:
        remote = Remote(TwistedExchange(reactor), _settings(f"http://127.0.0.1:{port}"))
        request = Deferred.fromCoroutine(remote.images())
        while not fake.calls:
            await deferLater(reactor, 0.01, int)
        request.cancel()
        with pytest.raises(CancelledError):
            await request


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), "response head of more than"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"x" * 60_000), "response head of more than"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 60_000), "answer is longer than 1 MB"),
    ],
)
@both_clients
@pytest_twisted.ensureDeferred
async def test_an_answer_without_end(
    with_client: Any, answer: Answer, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head and body are bounded, whatever server listens at the address of the gateway."""
    monkeypatch.setattr(exchange, "ANSWER_BYTES", 1_000_000)
    async with answering(answer) as server:
        with pytest.raises(NoGateway, match=words):
            await with_client(_settings(f"http://127.0.0.1:{server.port}"), Remote.images)
    assert server.bytes_sent < 16 << 20
