"""A registry with a token service, and clients of it."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from shiftergw.model.images import Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.client import RegistryClient
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import Sink, quiet

IMAGE = make_image([tar_of({"a": b"a"}), tar_of({"b": b"b"})])
ALICE = RegistryLogin("alice", "pä:ss wörd")
REFERENCE = ImageReference.parse("team/app")
SECRETS = ("wörd", base64.b64encode("alice:pä:ss wörd".encode()).decode(), "token-")


class TokenRegistry(FakeRegistry):
    """A registry with a token service at `/token`.

    `public` says whether anonymous tokens are accepted. `queries` has those of all tokens; a
    token is valid until `revoke`. `service` answers in place of the token service.
    """

    def __init__(self, *, public: bool) -> None:
        """Start without tokens."""
        super().__init__(IMAGE, misbehave=self._misbehave)
        self.public = public
        self.queries: list[dict[str, list[str]]] = []
        self.good: set[str] = set()
        self.realm = ""
        self.scope = ',scope="repository:team/app:pull"'
        self.answer: dict[str, Any] = {}
        self.member = "token"
        self.service: Any = lambda _: None

    def revoke(self) -> None:
        """Invalidate all tokens."""
        self.good.clear()

    def _misbehave(self, ask: Ask) -> object:
        if ask.path.startswith("/token"):
            return self.service(ask) or self._token(ask)
        authorization = ask.header("Authorization") or ""
        if authorization.removeprefix("Bearer ") in self.good:
            return None
        realm = self.realm or f"http://{self.host}/token?x=1"
        challenge = f'Bearer realm="{realm}",service="the registry"{self.scope}'
        return ask.answer(401, b'{"errors":[]}', WWW_Authenticate=challenge)

    def _token(self, ask: Ask) -> object:
        query = parse_qs(urlsplit(ask.path).query)
        self.queries.append(query)
        login = ask.header("Authorization")
        if login is not None and login != f"Basic {SECRETS[1]}":
            return ask.answer(401)
        token = f"token-{len(self.queries)}"
        if login is not None or self.public:
            self.good.add(token)
        body = json.dumps({self.member: token, **self.answer}).encode()
        return ask.answer(200, body, Content_Type="application/json; charset=utf-8")

    def paths(self) -> list[str]:
        """Return the last path segments of all requests, without queries."""
        return [ask.path.partition("?")[0].rpartition("/")[2] for ask in self.requests]


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> ResolvedImage:
    """Resolve the image."""
    return (await client.resolve(REFERENCE, Platform(), login, quiet))[0]


async def fetch(
    client: RegistryClient, image: ResolvedImage, login: RegistryLogin | None = None, layer: int = 0
) -> None:
    """Download one layer."""
    sink = Sink()
    await client.blob(image, image.layers[layer], login, quiet, 0, sink)
    assert Digest.of(bytes(sink.content)) == image.layers[layer].digest
