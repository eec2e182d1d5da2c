"""The page in a real browser: live, by keyboard, without scripts, in the dark, and on a phone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import pytest
import pytest_twisted

from shiftergw.model.records import Failed, Ready
from shiftergw.service.site_report import SiteReporter
from shiftergw.web import event_connection
from shiftergw.web.admin import AdminApplication, make_admin_site
from shiftergw.web.page import live_report
from shiftergw.web.page.admin_page import AdminPage
from shiftergw.web.page.live_report import LiveReport, ReportStream
from tests.installed_reactor import reactor
from tests.service.gateway_bench import BOB
from tests.web.fakes import READY, listening
from tests.web.page.browser import (
    Chromium,
    ShownGateway,
    Window,
    break_connections,
    directory_of_screenshots,
    shown_gateway,
    window,
)
from tests.web.page.test_admin_page import EMPTY, FULL, FakeReporter

T = TypeVar("T")

IMAGES = ("ubuntu:24.04", "quay.io/lab/solver:2.1", "docker.io/library/python:3.13-slim", "r:4.4")
FAILURE = Failed(
    "PULLING",
    "The registry quay.io has no image lab/missing:1.",
    "Check the spelling of the name, and of the tag.",
    retryable=False,
)


@dataclass
class Viewer:
    """The window of a browser, which is opened only once because that takes long."""

    chromium: Chromium
    window: Window

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in the thread of the browser."""
        return await self.chromium.run(function)


@pytest_twisted.async_yield_fixture(scope="module")
async def shared_viewer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Viewer]:
    """Run one browser with one window for all tests."""
    chromium = Chromium()
    try:
        await chromium.start()
        screenshots = directory_of_screenshots(tmp_path_factory.mktemp("screenshots"))
        context = window(chromium, screenshots)
        yield Viewer(chromium, await chromium.run(context.__enter__))
        await chromium.run(lambda: context.__exit__(None, None, None))
    finally:
        await chromium.stop()


@pytest_twisted.async_yield_fixture
async def viewer(shared_viewer: Viewer) -> AsyncIterator[Viewer]:
    """Return the browser; after the test, check that nothing went wrong in it."""
    shared_viewer.window.faults.clear()
    yield shared_viewer
    assert shared_viewer.window.faults == []


@pytest_twisted.async_yield_fixture
async def gateway(tmp_path: Path, viewer: Viewer) -> AsyncIterator[ShownGateway]:
    """Run a gateway with something to show, until its page is closed."""
    async with shown_gateway(tmp_path) as running:
        await fill(running)
        yield running
        await viewer.run(viewer.window.close)


async def fill(gateway: ShownGateway) -> None:
    """Give a gateway images, pulls that work and wait, and a failure."""
    for number, image in enumerate(IMAGES):
        work = await gateway.begin(image)
        acl = {"private": True, "user_acl": (2001,)} if number == 1 else {"user_acl": ()}
        changes = {"size": 28_100_000 * 9**number, "expiration": 1.9e9, "group_acl": (), **acl}
        await gateway.end(work, Ready(f"{number + 10:x}" * 64, changes))
    await gateway.end(await gateway.begin("quay.io/lab/missing:1"), FAILURE)
    work = await gateway.begin("docker.io/nvidia/cuda:13.0-devel", BOB)
    await gateway.report(work, 812_000_000, 1_430_000_000)
    await gateway.gateway.pull(BOB, "docker", "waiting:1", (), (), "request2")


@pytest_twisted.ensureDeferred
async def test_a_running_pull_moves_and_fails(viewer: Viewer, gateway: ShownGateway) -> None:
    """Without a reload the bars grow, the end of the pull removes it, and its reason appears."""
    page = viewer.window.page
    work = await gateway.begin("quay.io/lab/moving:1")
    await gateway.report(work, 250_000_000, 1_000_000_000)
    row = "#queue li:has-text('moving:1')"

    def open_page() -> None:
        viewer.window.enter(gateway.url, gateway)
        page.wait_for_selector("html[data-live=yes]")
        page.wait_for_selector(f"{row} > progress[value='0.25']")
        assert "yours" in page.inner_text(row)
        layer = f"{row} .layers li[data-digest='0a1b2c3d4e5f'] progress"
        assert float(page.get_attribute(layer, "value") or "") == 0.25

    await viewer.run(open_page)
    await gateway.report(work, 750_000_000, 1_000_000_000)

    def see_progress() -> None:
        page.wait_for_selector(f"{row} > progress[value='0.75']")
        page.wait_for_selector(f"{row} .layers progress[value='0.75']")
        assert "Pulling 750 of 1,000 MB, 42 MB/s, 15 s left" in page.inner_text(row)

    await viewer.run(see_progress)
    await gateway.end(work, FAILURE)

    def see_reason() -> None:
        page.wait_for_selector(row, state="detached")
        failure = page.inner_text("#failures li:has-text('moving:1')")
        assert FAILURE.cause in failure
        assert FAILURE.remedy in failure

    await viewer.run(see_reason)
    new_work = await gateway.begin("quay.io/lab/new:1")
    await viewer.run(lambda: page.wait_for_selector("#queue li:has-text('new:1')"))
    await gateway.end(new_work, Ready("f" * 64, {"user_acl": (), "group_acl": ()}))
    await viewer.run(lambda: page.wait_for_selector("#news:has-text('new:1 is ready')"))


@pytest_twisted.ensureDeferred
async def test_documents_are_accessible(viewer: Viewer, gateway: ShownGateway) -> None:
    """Over TLS, axe-core finds nothing, on a desk and on a phone; dark mode is dark."""
    page = viewer.window.page

    def run() -> None:
        viewer.window.enter(gateway.tls_url, gateway)
        (cookie,) = page.context.cookies()
        assert cookie["name"] == "__Host-shiftergw"
        assert (cookie["secure"], cookie["httpOnly"]) == (True, True)
        assert (cookie["sameSite"], cookie["path"]) == ("Strict", "/")
        page.wait_for_selector("html[data-live=yes]")
        for name, link in (("queue", ""), ("images", "Images"), ("end", "Sign out")):
            if link:
                page.click(f"text={link}")
                page.wait_for_load_state()
            viewer.window.check_looks(name)
        assert page.context.cookies() == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert int(background.removeprefix("rgb(").partition(",")[0]) < 128

    await viewer.run(run)


@pytest_twisted.ensureDeferred
async def test_search_by_keyboard(viewer: Viewer, gateway: ShownGateway) -> None:
    """Results follow the letters, a key leads past the header, a reload keeps the search."""
    page = viewer.window.page

    def run() -> None:
        viewer.window.enter(gateway.url, gateway)
        page.goto(f"{gateway.url}/page/images")
        page.keyboard.press("Tab")
        assert page.inner_text(":focus") == "Skip to the content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.type("SOLVER")
        page.wait_for_selector("text=1 of ")
        assert page.locator("tbody tr").count() == 1
        assert "you" in page.inner_text("tbody tr")
        page.wait_for_url("**/images?search=SOLVER")
        page.reload()
        assert page.input_value("#search") == "SOLVER"

    await viewer.run(run)


@pytest_twisted.ensureDeferred
async def test_without_scripts(viewer: Viewer, gateway: ShownGateway) -> None:
    """Entry, queue, search and the end of the session work with HTML alone."""
    page = viewer.window.page

    def run() -> None:
        viewer.window.enter(gateway.tls_url, gateway, scripts=False)
        assert "Pulling 812 of 1,430 MB" in page.inner_text("#queue")
        page.click("text=Images")
        page.fill("#search", "python")
        page.keyboard.press("Enter")
        page.wait_for_url("**/images?search=python")
        assert page.locator("tbody tr").count() == 1
        page.click("text=Sign out")
        page.wait_for_selector("text=no longer shows")

    await viewer.run(run)


@pytest_twisted.ensureDeferred
async def test_the_page_of_operators(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is accessible, follows what changes, and goes on from there after a break."""
    monkeypatch.setattr(event_connection, "RETRY_MILLISECONDS", 50)
    monkeypatch.setattr(live_report, "REPORT_SECONDS", 0.1)
    versions: list[str] = []
    open_stream = LiveReport.open

    def note_version(live: LiveReport, version: str) -> ReportStream:
        versions.append(version)
        return open_stream(live, version)

    monkeypatch.setattr(LiveReport, "open", note_version)
    reporter, page = FakeReporter(FULL), viewer.window.page
    reporter.site_images = [READY]
    admin_page = AdminPage(cast("SiteReporter", reporter), reactor)
    site = make_admin_site(AdminApplication({}, reactor, admin_page), reactor)
    async with listening(site) as port:
        url = f"http://127.0.0.1:{port}"

        def look() -> None:
            viewer.window.open(url, "/images?search=ubuntu")
            assert "1 of 1 images." in page.inner_text("main")
            page.click("text=Gateway")
            page.wait_for_selector("html[data-live=yes]")
            viewer.window.check_looks("site")
            reporter.site_report = EMPTY
            page.wait_for_selector("text=No machine works")
            page.wait_for_selector("html[data-live=yes]")

        await viewer.run(look)
        versions.clear()
        viewer.window.faults.clear()
        reporter.site_report = FULL
        break_connections()
        await viewer.run(lambda: page.wait_for_selector("#workers :text('node1')"))
        assert versions[0].endswith("-2")  # the browser sends what it had before the break
        viewer.window.faults.clear()  # the browser reports the break
        await viewer.run(viewer.window.close)
        break_connections()
