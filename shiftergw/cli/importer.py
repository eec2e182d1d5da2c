"""shiftergw-pyxis: have the gateway get an image, and tell pyxis the path of its squashfs file.

pyxis, the container plugin of Slurm, runs the program that its option `importer` names: `get URI`
before a container starts, and `release` after it, which may come twice (pyxis, `importers/`). It
does so on each node, as the user of the job, without standard input. The first line of standard
output is the path; standard error is shown to the user only if the exit code is not 0.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shiftergw import __version__
from shiftergw.cli.client_conf import CLIENT_CONF, ClientConf
from shiftergw.cli.enroot_names import image_of_uri
from shiftergw.cli.exits import DONE, Misuse, RequestRefused, Stop
from shiftergw.cli.settings import check_text
from shiftergw.errors import printable

if TYPE_CHECKING:
    from shiftergw.cli.remote import Remote
    from shiftergw.plumbing.reactor import Reactor

LONGEST_PAUSE = 10.0
"""Seconds between two polls of a pull that takes long, since every node of a job polls."""

VISIBLE_SECONDS = 60.0
"""Seconds for which a node may not see a file that was just delivered.

The client of a network file system may believe for so long that a file is absent (`acdirmax` in
nfs(5)).
"""

_LOOK_PAUSE = 1.0
_MAGIC = b"hsqs"
_SUPPORT = "Tell the site's support."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shiftergw-pyxis")
def importer() -> None:
    """Bring images to compute nodes for pyxis, by its option `importer`.

    Gateway, system and image directory are in /etc/shiftergw/client.conf.
    """


@importer.command()
@click.argument("uri", metavar="IMAGE_URI")
def get(uri: str) -> None:
    """Have the gateway get an image, and print the path of its squashfs file.

    IMAGE_URI is docker://[USER@][REGISTRY#]IMAGE[:TAG][@DIGEST].
    """
    image = image_of_uri(uri)
    conf = _client_conf()
    # These take long to load, and a name that is refused does not need them.
    from shiftergw.cli.blocking import ThreadCall  # noqa: PLC0415
    from shiftergw.cli.exchange_twisted import TwistedExchange  # noqa: PLC0415
    from shiftergw.cli.reactor import exit_code_of  # noqa: PLC0415
    from shiftergw.cli.remote import Remote  # noqa: PLC0415

    ids: list[str] = []

    async def command(reactor: Reactor) -> int:
        remote = Remote(TwistedExchange(reactor), conf.settings)
        ids.append(await ready_id(remote, reactor, image))
        return DONE

    code = exit_code_of(command, "Interrupted. The gateway goes on with a pull that has begun.")
    if code != DONE:
        sys.exit(code)
    path = conf.image_directory / f"{ids[0]}.squashfs"
    end = time.monotonic() + VISIBLE_SECONDS
    try:
        # In a thread that nothing waits for: the file system may hang.
        ThreadCall(partial(wait_until_readable, path, end)).result(lambda: end + _LOOK_PAUSE)
    except TimeoutError:
        raise Stop(f"The file system of {path} does not answer. {_SUPPORT}") from None
    # Only now, because pyxis reads one line and closes the pipe.
    click.echo(path)


@importer.command()
def release() -> None:
    """Do nothing: the file of an image stays, for other jobs. May be repeated."""


def _client_conf() -> ClientConf:
    """Return the site's settings.

    The variables of `shiftergw` for gateway and system do not count: a job has those of the
    terminal in which it was submitted, where they may be about another cluster.
    """
    file = os.environ.get("SHIFTERGW_CLIENT_CONF") or CLIENT_CONF
    credential = os.environ.get("SHIFTERGW_CREDENTIAL", "")
    check_text(credential, "SHIFTERGW_CREDENTIAL")
    return ClientConf.read(Path(file), credential)


async def ready_id(remote: Remote, clock: Reactor, image: tuple[str, str]) -> str:
    """Pull an image, wait until it is READY, and return its id; an upload is looked up instead.

    Raises `Stop` if the image fails, or no gateway answers for a minute.
    """
    from shiftergw.cli import polling  # noqa: PLC0415 - loads Twisted
    from shiftergw.cli.pull import WAITING, end_of  # noqa: PLC0415 - loads Twisted
    from shiftergw.plumbing import timing  # noqa: PLC0415 - loads Twisted

    if image[0] == "custom":
        return await remote.lookup(*image)

    def ignore(_: str) -> None:
        """Drop a line about a silent gateway: the error that ends the command names it."""

    call = partial(remote.pull, *image, {})
    record = await polling.retry_while_silent(call, clock, ignore)
    pause = polling.INTERVAL
    while record.get("status") in WAITING:
        # At random, so that the nodes of a job do not all poll at once.
        await timing.pause(pause * random.uniform(0.5, 1.5), clock)  # noqa: S311 - no secret
        pause = min(1.3 * pause, LONGEST_PAUSE)
        call = partial(remote.poll, *image, {}, ignore)
        record = await polling.retry_while_silent(call, clock, ignore)
    end = end_of(record)
    if end.code != DONE:
        raise Stop("\n".join(end.messages))
    return end.image_id


def wait_until_readable(path: Path, end: float, pause: float = _LOOK_PAUSE) -> None:
    """Return once the caller can read a squashfs file; blocks until `end` (`time.monotonic`).

    There are `pause` seconds between two looks. Raises `Stop` if the file is absent until then, and
    at once if it cannot be read for another reason.
    """
    while True:
        try:
            _check_readable(path)
        except OSError as error:
            is_absent = error.errno in {errno.ENOENT, errno.ESTALE}
            if is_absent and time.monotonic() < end:
                time.sleep(pause)
                continue
            raise _unreadable(path, error) from error
        return


def _check_readable(path: Path) -> None:
    """Raise `OSError` unless a file can be read and begins as a squashfs does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.read(descriptor, len(_MAGIC)) != _MAGIC:
            raise OSError(errno.EINVAL, "Not a squashfs file")
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> Stop:
    name = printable(str(path), 1000)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return RequestRefused(
            f"The image is there, but you may not read {name}. {_SUPPORT} Users may read images if"
            " the gateway's configuration has FileMode for the system."
        )
    if error.errno in {errno.ENOENT, errno.ESTALE}:
        return Misuse(
            f"The image is there, but this node has no file {name}. {_SUPPORT} imagePath in"
            " client.conf is the image directory as the node sees it."
        )
    return Stop(f"The image is there, but {name} cannot be read: {error.strerror}. {_SUPPORT}")
