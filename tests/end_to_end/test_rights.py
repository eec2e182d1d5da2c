"""The rights of three users and an admin on three systems, with two real munge daemons.

`alpha` and `gamma` share a key and an image directory; `beta` has its own key and directory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from shiftergw.oci.meta import read_meta
from tests.client_double import ShifterImg
from tests.images import entry, oci_layout, tar_of
from tests.munged import MungeDaemon
from tests.parts import lacking, need
from tests.patience import patient
from tests.registries import SECOND_USER, USER, DockerRegistry
from tests.running_service import POLL_PAUSE, Service, until


@dataclass(frozen=True)
class User:
    """A user who makes credentials; `login` is the user's login at the private registry."""

    name: str
    uid: int
    gid: int
    login: str = ""

    def credential(self, munged: MungeDaemon, *, with_login: bool = False) -> str:
        """Return a new credential of this user, which a process of the user makes."""
        (credential,) = self.credentials(munged, 1, with_login=with_login)
        return credential

    def credentials(
        self, munged: MungeDaemon, count: int, *, with_login: bool = False
    ) -> list[str]:
        """Return several credentials; a shell starts `munge` faster than this process."""
        logins = {"closed": self.login} if with_login else {}
        payload = json.dumps({"authorized_locations": logins}) if logins else ""
        script = 'for each in $(seq "$1"); do printf %s "$3" | munge "--socket=$2"; done'
        result = subprocess.run(
            ["sh", "-ec", script, "sh", str(count), str(munged.socket), payload],
            stdout=subprocess.PIPE,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            check=True,
            timeout=patient(20 + count / 10),
        )
        return result.stdout.decode().split()


ALICE = User("alice", 2001, 2100, f"{USER.user}:{USER.password}")
BOB = User("bob", 2002, 2101, f"{SECOND_USER.user}:{SECOND_USER.password}")
CAROL = User("carol", 2003, 2102)
BOSS = User("boss", 2009, 2109)
USERS = {user.name: user for user in (ALICE, BOB, CAROL, BOSS)}
PROJECT = 2300
"""A supplementary group of Carol."""

PASSWD = "".join(f"{u.name}:x:{u.uid}:{u.gid}::/:/bin/sh\n" for u in USERS.values())
GROUP = f"project:x:{PROJECT}:carol\n"

OPEN = "open/app:1"
ALICES_IMAGE, BY_UID = "closed/lib/mine:1", "closed/lib/uid:1"
BY_GID, BY_PROJECT = "closed/lib/gid:1", "closed/lib/project:1"
SHARED_IMAGE = "closed/lib/shared:1"
"""The image of the test that changes its readers."""

ACLS: dict[str, dict[str, str]] = {
    OPEN: {},
    ALICES_IMAGE: {},
    BY_UID: {"allowed_uids": str(BOB.uid)},
    BY_GID: {"allowed_gids": str(BOB.gid)},
    BY_PROJECT: {"allowed_gids": str(PROJECT)},
}
READERS = {
    OPEN: {"alice", "bob", "carol", "boss"},
    ALICES_IMAGE: {"alice"},
    BY_UID: {"alice", "bob"},
    BY_GID: {"alice", "bob"},
    BY_PROJECT: {"alice", "carol"},
}
METAS = {
    OPEN: (None, None),
    ALICES_IMAGE: ((ALICE.uid,), ()),
    BY_UID: ((BOB.uid, ALICE.uid), ()),
    BY_GID: ((ALICE.uid,), (BOB.gid,)),
    BY_PROJECT: ((ALICE.uid,), (PROJECT,)),
}
SYSTEMS = ["alpha", "gamma"]


class Site:
    """The service, and the requests of its users."""

    def __init__(self, service: Service, munged: Mapping[str, MungeDaemon]) -> None:
        """Use a service with the munge daemons of its systems."""
        self.service, self.munged = service, munged

    def ask(
        self,
        user: User,
        system: str,
        path: str,
        *,
        body: Mapping[str, str] | None = None,
        with_login: bool = False,
        method: str = "GET",
    ) -> tuple[int, Any]:
        """Send a request of a user; return the status and the body of the answer."""
        credential = user.credential(self.munged[system], with_login=with_login)
        content = json.dumps(body).encode() if body else None
        return self.service.ask(path, credential, "POST" if body else method, content)

    def pull(self, user: User, system: str, image: str, **options: Any) -> dict[str, Any]:
        """Poll a pull until it ends; return the last answer."""

        def final_answer() -> dict[str, Any] | None:
            path = f"/api/pull/{system}/docker/{quote(image, safe='')}/"
            status, answer = self.ask(user, system, path, method="POST", **options)
            assert status == 200, answer
            return answer if answer["status"] in {"READY", "FAILURE"} else None

        return until(final_answer, 60, f"the end of the pull of {image}", POLL_PAUSE)

    def lookup(self, user: User, system: str, image: str) -> tuple[int, Any]:
        """Look up an image; return the status and the body."""
        return self.ask(user, system, f"/api/lookup/{system}/docker/{quote(image, safe='')}/")

    def list_tags(self, user: User, system: str) -> set[str]:
        """Return the tags in the list of a user."""
        status, answer = self.ask(user, system, f"/api/list/{system}/")
        assert status == 200, answer
        return {tag for record in answer["list"] for tag in record["tag"]}

    def expire(self, user: User, system: str, image: str) -> int:
        """Expire a tag; return the status of the answer."""
        path = f"/api/expire/{system}/docker/{quote(image, safe='')}/"
        return self.ask(user, system, path)[0]

    def acl(self, image_id: str) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        """Return the user and group ACL in the delivered metadata."""
        read = read_meta((self.service.images / f"{image_id}.meta").read_bytes())
        return read.user_acl, read.group_acl


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DockerRegistry]]:
    """Run a public registry, and a private one that requires logins."""
    root = tmp_path_factory.mktemp("registries")
    with (
        DockerRegistry(root / "open") as public_registry,
        DockerRegistry(root / "closed", private=True) as private_registry,
    ):
        for image in (*ACLS, SHARED_IMAGE):
            location, name = image.split("/", 1)
            layout = root / re.sub("[/:]", "-", name)
            oci_layout(layout, [tar_of([entry("etc"), entry("etc/name", image.encode())])])
            (public_registry if location == "open" else private_registry).push(layout, name)
        yield {"open": public_registry, "closed": private_registry}


@pytest.fixture(scope="module")
def site(
    registries: Mapping[str, DockerRegistry], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Run the service; Alice has pulled all images on the systems, with their ACLs."""
    need("mksquashfs")
    need("munge")
    if os.geteuid() != 0:
        lacking("only root may make other users' credentials")
    root = tmp_path_factory.mktemp("rights")
    listing = [sys.executable, "-c", f"print({PASSWD + GROUP!r}, end='')"]
    (root / "beta").mkdir()
    with MungeDaemon() as first_daemon, MungeDaemon() as second_daemon:

        def system(munged: MungeDaemon, images: Path) -> dict[str, Any]:
            return {
                "accesstype": "local",
                "mungeSocketPath": str(munged.socket),
                "groupsCommand": listing,
                "admins": ["boss"],
                "squashfs": {"compressor": "gzip", "level": 1},
                "local": {"imageDir": str(images)},
            }

        images = root / "service" / "images"
        images.mkdir(parents=True)
        changes = {
            "Authentication": "munge",
            "Metrics": True,
            "Platforms": {
                "alpha": system(first_daemon, images),
                "gamma": system(first_daemon, images),
                "beta": system(second_daemon, root / "beta"),
            },
        }
        locations = {
            name: {"remotetype": "dockerv2", "url": f"http://{registry.host}"}
            for name, registry in registries.items()
        }
        with Service(root / "service", locations, changes) as service:
            site = Site(
                service, {"alpha": first_daemon, "gamma": first_daemon, "beta": second_daemon}
            )
            for name in SYSTEMS:
                for image, acl in ACLS.items():
                    answer = site.pull(ALICE, name, image, body=acl, with_login=True)
                    assert answer["status"] == "READY", answer
            yield site


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("image", ACLS)
@pytest.mark.parametrize("name", USERS)
def test_each_user_sees_only_readable_images(
    site: Site, name: str, image: str, system: str
) -> None:
    """On every route, an image that the user may not read looks like a missing one."""
    user = USERS[name]
    reads = name in READERS[image]
    status, record = site.lookup(user, system, image)
    assert status == (200 if reads else 404)
    assert (image in site.list_tags(user, system)) is reads
    answer = site.pull(user, system, image)
    if reads:
        assert answer["id"] == record["id"]
    else:
        assert (answer["status"], answer["id"], answer["ENV"]) == ("FAILURE", "MISSING", "MISSING")
        assert "refused" in answer["cause"]
    if (name, image) != ("alice", ALICES_IMAGE) and name != "boss":  # both may expire it
        assert site.expire(user, system, image) == (403 if reads else 404)


@pytest.mark.parametrize("image", ACLS)
def test_answers_and_metadata_have_the_same_acl(site: Site, image: str) -> None:
    """The ACL in the records of both systems equals that in their common `.meta`."""
    users, groups = METAS[image]
    for system in SYSTEMS:
        _, record = site.lookup(ALICE, system, image)
        assert (record["userACL"], record["groupACL"]) == (list(users or ()), list(groups or ()))
    assert site.acl(record["id"]) == (users, groups)


def test_a_credential_of_another_system_is_refused(site: Site) -> None:
    """A credential with another key is refused, and lists show only images of their system."""
    for path in ("list/beta", "queue/beta", "lookup/beta/docker/open%2Fapp%3A1"):
        credential = ALICE.credential(site.munged["alpha"])
        status, answer = site.service.ask(f"/api/{path}/", credential)
        assert (status, answer["code"]) == (401, "not-authenticated")
    assert BY_GID in site.list_tags(ALICE, "alpha")
    assert BY_GID not in site.list_tags(ALICE, "beta")
    assert site.lookup(ALICE, "beta", BY_GID)[0] == 404


def test_a_credential_counts_once(site: Site) -> None:
    """A credential that was used before is refused."""
    credential = ALICE.credential(site.munged["alpha"])
    assert site.service.ask("/api/list/alpha/", credential)[0] == 200
    status, answer = site.service.ask("/api/list/alpha/", credential)
    assert status == 401
    assert "used before" in answer["error"]


def test_only_admins_use_admin_routes(site: Site) -> None:
    """Users get neither metrics nor the expiry of all images; admins only those of their system."""
    for path in ("/api/metrics/alpha/", "/api/autoexpire/alpha/"):
        assert site.ask(CAROL, "alpha", path)[0] == 403
    image_id = site.lookup(ALICE, "alpha", OPEN)[1]["id"]
    for word in ("takedown", "allow"):
        status, _ = site.ask(CAROL, "alpha", f"/api/{word}/alpha/{image_id}/", method="POST")
        assert status == 403
    status, rows = site.ask(BOSS, "alpha", "/api/metrics/alpha/?limit=1")
    assert (status, rows[0]["user"], rows[0]["uid"], rows[0]["tag"]) == (200, "alice", 2001, OPEN)
    for system in ("alpha", "beta"):
        site.lookup(ALICE, system, OPEN)
        status, rows = site.ask(BOSS, system, f"/api/metrics/{system}/")
        assert {row["system"] for row in rows} <= {system}
    assert site.ask(BOSS, "alpha", "/api/autoexpire/alpha/") == (200, {"status": []})


@pytest.mark.parametrize("system", ["alpha", "beta"])
def test_the_existing_client_in_every_mode(site: Site, system: str) -> None:
    """With munge credentials of two keys, on two systems, no mode crashes or hangs."""
    munged = site.munged[system]

    def client(user: User, *, with_login: bool = False) -> ShifterImg:
        return ShifterImg(
            [site.service.url],
            system,
            lambda: user.credential(munged, with_login=with_login),
            interval=0.1,
        )

    image = "open/app:1"
    outcome = client(CAROL).run("pull", f"docker:{image}")
    assert (outcome.code, outcome.states[-1]) == (0, "READY")
    lookup = client(CAROL).run("lookup", image)
    assert (lookup.code, len(lookup.lines[0])) == (0, 64)
    assert any(line.split()[-1] == image for line in client(CAROL).run("images").lines)
    assert (
        client(CAROL).run("pullnb", image).code == 1
    )  # the real client treats READY as an error here
    assert client(CAROL).run("expire", image).code == 1
    assert client(CAROL).run("autoexpire").code == 1
    assert client(BOSS).run("autoexpire").code == 0
    outcome = client(CAROL).run("pull", "docker:closed/lib/mine:1")
    assert (outcome.code, outcome.states[-1]) == (0, "FAILURE")
    outcome = client(ALICE, with_login=True).run("--user", "2003", "pull", "closed/lib/mine:1")
    assert (outcome.code, outcome.states[-1]) == (0, "READY")
    assert client(CAROL).run("lookup", "closed/lib/mine:1").code == 0
    alone = client(ALICE, with_login=True).run("--user", "2001", "pull", "closed/lib/mine:1")
    assert (alone.code, alone.states[-1]) == (0, "READY")
    assert client(CAROL).run("lookup", "closed/lib/mine:1").code == 1
    anonymous_client = ShifterImg([site.service.url], system, "(null)", interval=0.1)
    assert anonymous_client.run("images").code == 1


@pytest.mark.slow
def test_a_thousand_polls_start_one_job(site: Site) -> None:
    """A thousand requests for the same image begin a single job."""
    munged = site.munged["beta"]
    image = quote(BY_UID, safe="")
    credentials = ALICE.credentials(munged, 1000, with_login=True)

    def poll(credential: str) -> str:
        _, answer = site.service.ask(f"/api/pull/beta/docker/{image}/", credential, "POST")
        return str(answer["status"])

    with ThreadPoolExecutor(8) as threads:
        states = set(threads.map(poll, credentials))
    assert states <= {
        "INIT", "PENDING", "PULLING", "EXAMINATION", "CONVERSION", "TRANSFER", "READY",
    }  # fmt: skip
    assert site.pull(ALICE, "beta", BY_UID, with_login=True)["status"] == "READY"
    line = f"begins: docker:{BY_UID} on beta"
    assert site.service.log_with(line).count(line) == 1


def test_a_second_user_proves_access_and_is_added(site: Site) -> None:
    """Bob is added on all systems, Alice removes Bob again, and an admin takes the image down."""
    for system in SYSTEMS:
        assert site.pull(ALICE, system, SHARED_IMAGE, with_login=True)["status"] == "READY"
    assert site.pull(BOB, "gamma", SHARED_IMAGE, with_login=True)["status"] == "READY"
    for system in SYSTEMS:
        status, record = site.lookup(BOB, system, SHARED_IMAGE)
        assert (status, record["userACL"]) == (200, [ALICE.uid, BOB.uid])
    image_id = record["id"]
    assert site.acl(image_id) == ((ALICE.uid, BOB.uid), ())
    # A reader who names different readers changes nothing, and the pull of that client ends.
    answer = site.pull(BOB, "gamma", SHARED_IMAGE, body={"allowed_uids": "2003"}, with_login=True)
    assert (answer["status"], answer["userACL"]) == ("READY", [ALICE.uid, BOB.uid])
    site.pull(ALICE, "alpha", SHARED_IMAGE, body={"allowed_uids": str(ALICE.uid)})
    assert site.acl(image_id) == ((ALICE.uid,), ())
    for system in SYSTEMS:
        assert site.lookup(BOB, system, SHARED_IMAGE)[0] == 404
    # Bob's failure is shown only to Bob, and does not affect Alice.
    assert site.pull(BOB, "alpha", SHARED_IMAGE)["status"] == "FAILURE"
    assert site.pull(ALICE, "alpha", SHARED_IMAGE)["status"] == "READY"
    assert site.ask(ALICE, "alpha", "/api/queue/alpha/")[1]["list"] == []

    status, answer = site.ask(BOSS, "alpha", f"/api/takedown/alpha/{image_id}/", method="POST")
    assert (status, answer["removed"]) == (200, [f"docker:{SHARED_IMAGE}"] * 2)
    files = [site.service.images / f"{image_id}.{kind}" for kind in ("meta", "squashfs")]
    until(lambda: not any(file.exists() for file in files), 20, "the removal of the files")
    assert site.lookup(ALICE, "gamma", SHARED_IMAGE)[0] == 404
    refusal = site.pull(ALICE, "gamma", SHARED_IMAGE, with_login=True)
    assert (refusal["status"], refusal["retryable"]) == ("FAILURE", False)
    assert "taken this image down" in refusal["cause"]
    assert site.ask(BOSS, "alpha", f"/api/allow/alpha/{image_id}/", method="POST")[0] == 200

    def is_ready_again() -> bool:
        return bool(site.pull(ALICE, "gamma", SHARED_IMAGE, with_login=True)["status"] == "READY")

    until(is_ready_again, 20, "a pull after the failure's hold", POLL_PAUSE)
    assert site.acl(image_id) == ((ALICE.uid,), ())
    # Alice may expire an image that she pulled; its files are removed with the last tag.
    assert site.expire(ALICE, "gamma", SHARED_IMAGE) == 200
    until(lambda: not any(file.exists() for file in files), 20, "the removal of the files")


def test_no_password_is_written_anywhere(site: Site) -> None:
    """No file of the service contains a password: no log, database, journal or other file."""
    secrets = [ALICE.login.encode(), USER.password.encode(), SECOND_USER.password.encode()]
    for path in site.service.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
