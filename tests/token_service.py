"""The token service of a real registry: signed tokens, by a password or by an identity token."""

from __future__ import annotations

import base64
import json
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.certificates import Authority
from tests.registries import USER
from tests.server_thread import ServerThread

ISSUER, SERVICE = "tokens of tests", "registry of tests"
LIFE = 300


@dataclass(frozen=True)
class TokenRequest:
    """A request for a token: the parameters of its query or form, and its `Authorization`."""

    method: str
    parameters: dict[str, str]
    authorization: str | None


class TokenService(ServerThread):
    """Signs tokens for a registry (token specifications of the distribution project).

    `USER` gets all that is asked for, by GET. A request with `identity_token` as its refresh token
    gets the right to read, by POST. Tokens for anonymous users allow nothing. `auth` is the section
    of the registry's configuration that names this service, and `requests` has all requests so far.
    """

    def __init__(self, directory: Path, identity_token: str) -> None:
        """Listen on a free port of the loopback; answer while the context lasts."""
        self.identity_token = identity_token
        self.requests: list[TokenRequest] = []
        authority = Authority(directory)
        key = load_pem_private_key(authority.own_file().read_bytes(), None)
        self._key = cast("ec.EllipticCurvePrivateKey", key)
        certificate = x509.load_pem_x509_certificate(authority.pem.read_bytes())
        self._certificate = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        server = HTTPServer(("127.0.0.1", 0), self._handler())
        super().__init__(server)
        self.auth = {
            "token": {
                "realm": f"http://127.0.0.1:{server.server_port}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(authority.pem),
            }
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                self._answer(urlsplit(self.path).query)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                self._answer(self.rfile.read(length).decode())

            def _answer(self, text: str) -> None:
                authorization = self.headers.get("Authorization")
                request = TokenRequest(self.command, dict(parse_qsl(text)), authorization)
                status, document = service.answer(request)
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Write nothing."""

        return Handler

    def answer(self, request: TokenRequest) -> tuple[int, dict[str, Any]]:
        """Return the status and the document that answer a request."""
        self.requests.append(request)
        kind, _, rest = request.parameters.get("scope", "").partition(":")
        name, _, actions = rest.rpartition(":")
        rights: set[str] = set()
        if request.method == "POST":
            token = request.parameters.get("refresh_token")
            if token != self.identity_token:
                return 401, {"details": f"the identity token {token} was revoked"}
            rights = {"pull"}
        elif request.authorization is not None:
            pair = base64.b64encode(f"{USER.user}:{USER.password}".encode()).decode()
            if request.authorization != f"Basic {pair}":
                return 401, {"details": "wrong password"}
            rights = {"pull", "push"}
        permitted_actions = sorted(rights.intersection(actions.split(",")))
        access = (
            [{"type": kind, "name": name, "actions": permitted_actions}]
            if permitted_actions
            else []
        )
        return 200, {"token": self._sign(access), "expires_in": LIFE}

    def _sign(self, access: list[dict[str, Any]]) -> str:
        """Return a token that grants access (RFC 7519, by ES256 of RFC 7518)."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "nbf": now - 60,
            "exp": now + LIFE,
            "access": access,
        }
        head = {"typ": "JWT", "alg": "ES256", "x5c": [self._certificate]}
        text = f"{_encode(json.dumps(head).encode())}.{_encode(json.dumps(claims).encode())}"
        numbers = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(SHA256())))
        signature = b"".join(number.to_bytes(32, "big") for number in numbers)
        return f"{text}.{_encode(signature)}"


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
