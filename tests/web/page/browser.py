"""A headless Chromium, and a gateway on a store in this process that it shows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from shiftergw.auth.mock import MockAuthenticator
from shiftergw.model.records import Failed, ImageRecord, Progress, Ready
from shiftergw.model.requests import Session
from shiftergw.plumbing.seal import Seal
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.web.api import make_site
from tests.configurations import load_config
from tests.installed_reactor import reactor
from tests.parts import need, need_module
from tests.patience import patient
from tests.service.gateway_bench import ALICE
from tests.web.fakes import in_no_thread, listening
from tests.work.fakes import FakeQueue

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

T = TypeVar("T")

SIZES = {"desk": (1280, 800), "phone": (390, 844)}
"""Width and height of the windows that the page is shown in, in pixels."""

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
"""The color schemes of the sizes; each scheme has the same colors at all sizes."""


class Groups:
    """Users whose only group is their primary one."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the groups of a user."""
        return frozenset({gid})


class ShownGateway:
    """A gateway on a store, which listens at `url`; tests take the part of its workers."""

    def __init__(self, store: SqliteStore) -> None:
        """Have one system, whose admin is root."""
        self.store = store
        self.queue = FakeQueue(0)
        seal = Seal(b"k" * 32)
        config = load_config({"Locations/*": {"remotetype": "dockerv2"}}).config
        self.gateway = Gateway(config, store, lambda: seal, lambda: None, reactor, self.queue)
        users = {name: MockAuthenticator(name, Groups(), ["root"]) for name in config.systems}
        self.site = make_site(self.gateway, users, reactor, in_no_thread)
        self.url = ""

    def entry(self, session: Session = ALICE) -> str:
        """Return the address of an entry for a user."""
        return f"{self.url}/page/enter?entry={self.gateway.page_sessions.make_entry(session)}"

    async def begin(self, image: str, session: Session = ALICE) -> ImageRecord:
        """Request a pull, and begin its work."""
        pull = await self.gateway.pull(session, "docker", image, (), (), "request1")
        work = await self.store.begin(pull.key, "here:1", time.time(), 60)
        assert work is not None
        await self.store.advance(
            work.key, work.attempt, State.PULLING, "Pulling layers", time.time()
        )
        return work

    async def report(self, work: ImageRecord, done: int, total: int) -> None:
        """Report the progress of a download."""
        progress = Progress("fetch", done, total, rate=42_000_000, time_left=15.0)
        await self.store.heartbeat(work.key, work.attempt, progress, time.time())

    async def end(self, work: ImageRecord, outcome: Ready | Failed) -> None:
        """End the work of a pull."""
        await self.store.finish(work.key, work.attempt, outcome, time.time())


@asynccontextmanager
async def shown_gateway(directory: Path) -> AsyncIterator[ShownGateway]:
    """Run a gateway whose store is in a directory."""
    store = SqliteStore(reactor, directory / "store.sqlite")
    await store.startService()
    try:
        gateway = ShownGateway(store)
        async with listening(gateway.site) as port:
            gateway.url = f"http://127.0.0.1:{port}"
            yield gateway
    finally:
        await store.stopService()


class Chromium:
    """A browser, and the only thread that may call it."""

    def __init__(self) -> None:
        """Start no browser yet."""
        self._pool = ThreadPool(1, 1, "browser")
        self._playwright: Any = None
        self.browser: Browser

    async def start(self) -> None:
        """Start the browser; skip the test if it is not installed."""
        need_module("playwright")
        program = shutil.which("google-chrome") or need("chromium")
        self._pool.start()
        await self.run(lambda: self._launch(program))

    def _launch(self, program: str) -> None:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - may not be installed

        self._playwright = sync_playwright().start()
        # Without a sandbox: tests often run as root, and show nothing but our own pages.
        arguments = ["--disable-gpu", "--disable-dev-shm-usage", "--no-zygote"]
        self.browser = self._playwright.chromium.launch(
            executable_path=program, args=arguments, timeout=1000 * patient(60)
        )

    async def stop(self) -> None:
        """End the browser and its thread."""
        if self._playwright is not None:
            await self.run(self._close)
        if self._pool.started:
            self._pool.stop()

    def _close(self) -> None:
        self.browser.close()
        self._playwright.stop()

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in the thread of the browser."""
        result: T = await deferToThreadPool(reactor, self._pool, function)
        return result


class Window:
    """A window of a browser, and what went wrong in it."""

    def __init__(self, page: Page, url: str, screenshots: Path) -> None:
        """Note errors of scripts and requests to other sites than `url`."""
        self.page = page
        self.faults: list[str] = []
        self._screenshots = screenshots
        page.on("console", lambda line: self._note_line(line.type, line.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self._note_request(request.url, url))

    def _note_line(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.faults.append(text)

    def _note_request(self, address: str, url: str) -> None:
        if not address.startswith(f"{url}/"):
            self.faults.append(f"a request to {address}")

    def check_looks(self, name: str) -> None:
        """Check the document at each size, in one color scheme each, and keep pictures of it.

        axe-core finds nothing against the rules for accessible documents, and nothing is wider than
        the window.
        """
        from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - as above

        self.page.evaluate(Axe().axe_script)
        for (size, (width, height)), scheme in zip(SIZES.items(), SCHEMES, strict=True):
            self.page.set_viewport_size({"width": width, "height": height})
            self.page.emulate_media(color_scheme=scheme)
            self.page.screenshot(
                path=self._screenshots / f"{name}-{size}-{scheme}.png", full_page=True
            )
            found_rules = self.page.evaluate("axe.run().then((results) => results.violations)")
            assert [
                f"{rule['id']}: {node['html']}" for rule in found_rules for node in rule["nodes"]
            ] == []
            assert self.page.evaluate("document.documentElement.scrollWidth") <= width, name


@contextmanager
def window(chromium: Chromium, url: str, screenshots: Path, **options: Any) -> Iterator[Window]:
    """Open a window without cookies, for the site at `url`; check that nothing went wrong.

    Runs in the thread of the browser.
    """
    context = chromium.browser.new_context(locale="en-GB", timezone_id="UTC", **options)
    context.set_default_timeout(1000 * patient(15))
    try:
        shown_window = Window(context.new_page(), url, screenshots)
        yield shown_window
        assert shown_window.faults == []
    finally:
        context.close()


def directory_of_screenshots(default: Path) -> Path:
    """Return where pictures are kept: `$SHIFTERGW_ARTEFACTS`, or a directory of the test."""
    directory = Path(os.environ.get("SHIFTERGW_ARTEFACTS") or default)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
