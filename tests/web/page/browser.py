"""A headless Chromium, and a gateway on a store in this process that it shows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from twisted.internet.tcp import Server
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from shiftergw.auth.mock import MockAuthenticator
from shiftergw.model.layer_progress import LayerProgress
from shiftergw.model.records import Failed, ImageRecord, Progress, Ready
from shiftergw.model.requests import Session
from shiftergw.plumbing.seal import Seal
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.web.api import make_site
from tests.certificates import Authority
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
    """A gateway on a store, which listens at `url` and, over TLS, at `tls_url`.

    Tests take the part of its workers.
    """

    def __init__(self, store: SqliteStore) -> None:
        """Have one system, whose admin is root."""
        self.store = store
        self.queue = FakeQueue(0)
        seal = Seal(b"k" * 32)
        config = load_config({"Locations/*": {"remotetype": "dockerv2"}}).config
        self.gateway = Gateway(config, store, lambda: seal, lambda: None, reactor, self.queue)
        users = {name: MockAuthenticator(name, Groups(), ["root"]) for name in config.systems}
        self.site = make_site(self.gateway, users, reactor, in_no_thread)
        self.url = self.tls_url = ""

    def entry(self, session: Session = ALICE) -> str:
        """Return the path of an entry for a user."""
        return f"/page/enter?entry={self.gateway.page_sessions.make_entry(session)}"

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
        """Report the progress of a download, half of which is that of one layer."""
        layers = (LayerProgress("0a1b2c3d4e5f", done // 2, total // 2),)
        progress = Progress("fetch", done, total, rate=42_000_000, time_left=15.0, layers=layers)
        await self.store.heartbeat(work.key, work.attempt, progress, time.time())

    async def end(self, work: ImageRecord, outcome: Ready | Failed) -> None:
        """End the work of a pull."""
        await self.store.finish(work.key, work.attempt, outcome, time.time())


@asynccontextmanager
async def shown_gateway(directory: Path) -> AsyncIterator[ShownGateway]:
    """Run a gateway whose store is in a directory."""
    store = SqliteStore(reactor, directory / "store.sqlite")
    await store.startService()
    options = Authority(directory).options("127.0.0.1")
    try:
        gateway = ShownGateway(store)
        async with listening(gateway.site) as port:
            tls_port = reactor.listenSSL(0, gateway.site, options, interface="127.0.0.1")
            gateway.url = f"http://127.0.0.1:{port}"
            gateway.tls_url = f"https://127.0.0.1:{tls_port.getHost().port}"
            try:
                yield gateway
            finally:
                await tls_port.stopListening()
                break_connections()
    finally:
        await store.stopService()


def break_connections() -> None:
    """Break all connections to servers of this process; a browser would keep them for a while."""
    for reader in reactor.getReaders():
        if isinstance(reader, Server):
            reader.abortConnection()


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
    """The only window of a browser, and what went wrong in it: windows cost more than documents."""

    def __init__(self, page: Page, screenshots: Path) -> None:
        """Note errors of scripts, and requests to another site than that of the last `open`."""
        self.page = page
        self.faults: list[str] = []
        self._url = ""
        self._screenshots = screenshots
        page.on("console", lambda line: self._note_line(line.type, line.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self._note_request(request.url))

    def open(self, url: str, path: str, *, scripts: bool = True) -> None:
        """Open an address of a site as a new browser would, without cookies."""
        self._url = url
        self.page.context.clear_cookies()
        devtools = self.page.context.new_cdp_session(self.page)
        devtools.send("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        devtools.detach()
        self.page.goto(f"{url}{path}")

    def enter(self, url: str, gateway: ShownGateway, *, scripts: bool = True) -> None:
        """Open the page of a user by an entry."""
        self.open(url, gateway.entry(), scripts=scripts)
        self.page.wait_for_url("**/page/")

    def close(self) -> None:
        """Show nothing, and ask for nothing more."""
        self.page.goto("about:blank")

    def _note_line(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.faults.append(text)

    def _note_request(self, address: str) -> None:
        if not address.startswith(f"{self._url}/"):
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
def window(chromium: Chromium, screenshots: Path) -> Iterator[Window]:
    """Open a window. Runs in the thread of the browser."""
    context = chromium.browser.new_context(
        locale="en-GB", timezone_id="UTC", ignore_https_errors=True, reduced_motion="reduce"
    )
    context.set_default_timeout(1000 * patient(15))
    try:
        yield Window(context.new_page(), screenshots)
    finally:
        context.close()


def directory_of_screenshots(default: Path) -> Path:
    """Return where pictures are kept: `$SHIFTERGW_ARTEFACTS`, or a directory of the test."""
    directory = Path(os.environ.get("SHIFTERGW_ARTEFACTS") or default)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
