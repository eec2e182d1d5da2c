"""The page in a real browser: live, by keyboard, without scripts, in the dark, and on a phone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import pytest_twisted

from shiftergw.model.records import Failed, Ready
from shiftergw.service.site_report import SiteReporter
from shiftergw.web.admin import AdminApplication, make_admin_site
from shiftergw.web.page.admin_page import AdminPage, browser_pages
from tests.installed_reactor import reactor
from tests.service.gateway_bench import BOB
from tests.web.fakes import listening
from tests.web.page.browser import (
    Chromium,
    ShownGateway,
    directory_of_screenshots,
    shown_gateway,
    window,
)
from tests.web.page.test_admin_page import EMPTY, FULL, MEASUREMENTS, FakeReporter

IMAGES = ("ubuntu:24.04", "quay.io/lab/solver:2.1", "docker.io/library/python:3.13-slim", "r:4.4")
FAILURE = Failed(
    "PULLING",
    "The registry quay.io has no image lab/missing:1.",
    "Check the spelling of the name, and of the tag.",
    retryable=False,
)


@pytest_twisted.async_yield_fixture(scope="module")
async def chromium() -> AsyncIterator[Chromium]:
    """Run one browser for all tests."""
    running = Chromium()
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_twisted.async_yield_fixture()
async def gateway(tmp_path: Path) -> AsyncIterator[ShownGateway]:
    """Run a gateway with images, pulls that work and wait, and a failure."""
    async with shown_gateway(tmp_path) as running:
        for number, image in enumerate(IMAGES):
            work = await running.begin(image)
            acl = {"private": True, "user_acl": (2001,)} if number == 1 else {"user_acl": ()}
            changes = {"size": 28_100_000 * 9**number, "expiration": 1.9e9, "group_acl": (), **acl}
            await running.end(work, Ready(f"{number + 10:x}" * 64, changes))
        await running.end(await running.begin("quay.io/lab/missing:1"), FAILURE)
        work = await running.begin("docker.io/nvidia/cuda:13.0-devel", BOB)
        await running.report(work, 812_000_000, 1_430_000_000)
        await running.gateway.pull(BOB, "docker", "waiting:1", (), (), "request2")
        yield running


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the pictures."""
    return directory_of_screenshots(tmp_path_factory.mktemp("screenshots"))


@pytest_twisted.ensureDeferred
async def test_a_running_pull_moves_and_fails(
    chromium: Chromium, gateway: ShownGateway, screenshots: Path
) -> None:
    """Without a reload the bar grows, the end of the pull removes it, and its reason appears."""
    work = await gateway.begin("quay.io/lab/moving:1")
    await gateway.report(work, 250_000_000, 1_000_000_000)
    row = "#queue li:has-text('moving:1')"
    context = window(chromium, gateway.url, screenshots)
    shown_window = await chromium.run(context.__enter__)
    page = shown_window.page

    def open_page() -> None:
        page.goto(gateway.entry())
        page.wait_for_url("**/page/")
        page.wait_for_selector("html[data-live=yes]")
        assert float(page.get_attribute(f"{row} progress", "value") or "") == 0.25
        assert "yours" in page.inner_text(row)

    await chromium.run(open_page)
    await gateway.report(work, 750_000_000, 1_000_000_000)

    def see_progress() -> None:
        page.wait_for_selector(f"{row} progress[value='0.75']")
        assert "Pulling 750 of 1,000 MB, 42 MB/s, 15 s left" in page.inner_text(row)

    await chromium.run(see_progress)
    await gateway.end(work, FAILURE)

    def see_reason() -> None:
        page.wait_for_selector(row, state="detached")
        failure = page.inner_text("#failures li:has-text('moving:1')")
        assert FAILURE.cause in failure
        assert FAILURE.remedy in failure

    await chromium.run(see_reason)
    new_work = await gateway.begin("quay.io/lab/new:1")
    await chromium.run(lambda: page.wait_for_selector("#queue li:has-text('new:1')"))
    await gateway.end(new_work, Ready("f" * 64, {"user_acl": (), "group_acl": ()}))
    await chromium.run(lambda: page.wait_for_selector("#news:has-text('new:1 is ready')"))
    await chromium.run(lambda: context.__exit__(None, None, None))


@pytest_twisted.ensureDeferred
async def test_documents_are_accessible(
    chromium: Chromium, gateway: ShownGateway, screenshots: Path
) -> None:
    """axe-core finds nothing, on a desk and on a phone; dark mode is dark."""

    def run() -> None:
        with window(chromium, gateway.url, screenshots) as shown_window:
            page = shown_window.page
            page.goto(gateway.entry())
            page.wait_for_url("**/page/")
            for name, link in (("queue", "Queue"), ("images", "Images"), ("end", "Sign out")):
                page.click(f"text={link}")
                page.wait_for_load_state()
                shown_window.check_looks(name)
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert int(background.removeprefix("rgb(").partition(",")[0]) < 128

    await chromium.run(run)


@pytest_twisted.ensureDeferred
async def test_search_by_keyboard(
    chromium: Chromium, gateway: ShownGateway, screenshots: Path
) -> None:
    """Results follow the letters, a key leads past the header, a reload keeps the search."""

    def run() -> None:
        with window(chromium, gateway.url, screenshots) as shown_window:
            page = shown_window.page
            page.goto(gateway.entry())
            page.wait_for_url("**/page/")
            page.goto(f"{gateway.url}/page/images")
            page.keyboard.press("Tab")
            assert page.inner_text(":focus") == "Skip to the content"
            page.keyboard.press("Enter")
            page.keyboard.press("Tab")
            page.keyboard.type("SOLVER")
            page.wait_for_selector("text=1 of ")
            assert page.locator("tbody tr").count() == 1
            assert "you" in page.inner_text("tbody tr")
            assert page.url.endswith("images?search=SOLVER")
            page.reload()
            assert page.input_value("#search") == "SOLVER"

    await chromium.run(run)


@pytest_twisted.ensureDeferred
async def test_without_scripts(
    chromium: Chromium, gateway: ShownGateway, screenshots: Path
) -> None:
    """Entry, queue, search and the end of the session work with HTML alone."""

    def run() -> None:
        with window(chromium, gateway.url, screenshots, java_script_enabled=False) as shown_window:
            page = shown_window.page
            page.goto(gateway.entry())
            page.wait_for_url("**/page/")
            assert "Pulling 812 of 1,430 MB" in page.inner_text("#queue")
            page.click("text=Images")
            page.fill("#search", "python")
            page.keyboard.press("Enter")
            page.wait_for_url("**/images?search=python")
            assert page.locator("tbody tr").count() == 1
            page.click("text=Sign out")
            page.wait_for_selector("text=no longer shows")

    await chromium.run(run)


@pytest_twisted.ensureDeferred
async def test_the_page_of_operators(chromium: Chromium, screenshots: Path) -> None:
    """It is accessible, fits into the window, and follows what changes."""
    reporter = FakeReporter(FULL)
    page_of_site = AdminPage(cast("SiteReporter", reporter), lambda: MEASUREMENTS)
    application = AdminApplication({}, reactor, browser_pages(page_of_site))
    async with listening(make_admin_site(application, reactor)) as port:
        url = f"http://127.0.0.1:{port}"

        def run() -> None:
            with window(chromium, url, screenshots) as shown_window:
                shown_window.page.goto(url)
                shown_window.check_looks("site")
                reporter.site_report = EMPTY
                shown_window.page.wait_for_selector("text=No machine works")

        await chromium.run(run)
