"""explain: the words for people, the JSON for scripts, and the exit code."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.cli.answers import InvalidAnswer, parse_explanation
from shiftergw.cli.exits import Stop
from shiftergw.cli.explain import INTERVAL, explanation_of, last_state, lines_of, show
from shiftergw.cli.main import main
from shiftergw.model.explanations import (
    DeliveredImage,
    Explanation,
    ImagePlace,
    LayerPresence,
    Obstacle,
    RequestLimit,
)
from shiftergw.model.signatures import PolicyVerdict
from tests.cli.command import ENVIRONMENT, PROGRAM
from tests.configurations import SMALLEST
from tests.images import oci_layout, tar_of
from tests.registries import USER, DockerRegistry

LIMIT = RequestLimit("", 9, "9 of 100 requests in 6 hours are left")
MIRROR = ImagePlace("mirror", "cache", "https://cache", "hub/app", "p:1", "robot", failure="down")
EXPLANATION = Explanation(
    image="team/app:1",
    system="mycluster",
    architecture="arm64/v8",
    directory="/images",
    action="build",
    user="alice",
    private=True,
    places=(
        MIRROR,
        ImagePlace("registry", "reg", "https://reg", "team/app", limits=(LIMIT,)),
    ),
    source="reg",
    digest="sha256:aa",
    source_digest="sha256:bb",
    layers=(
        LayerPresence("sha256:11", 2000, 2000),
        LayerPresence("sha256:22", 3000, 1000),
        LayerPresence("sha256:33", 4000, 0),
    ),
    layer_count=5,
    size=9000,
    missing_size=6000,
    is_converted=False,
    policy=PolicyVerdict(True, "signedBy (docker reg)", "key", "It is signed by key.", "", ""),
    previous_image=DeliveredImage("cc", (), True, 7000, 0.0, {"PULLING": 2.0, "TRANSFER": 0.5}),
    work="PULLING: Pulling layers",
)


def test_the_words() -> None:
    """Each fact has a line."""
    assert list(lines_of(EXPLANATION)) == [
        "image      team/app:1",
        "system     mycluster, arm64/v8, login alice",
        "mirror     cache, https://cache, repository hub/app, proxy p:1, login robot",
        "           passed over: down",
        "registry   reg, https://reg, repository team/app",
        "           9 of 100 requests in 6 hours are left, without a login",
        "digest     sha256:aa, from reg, private: the registry asked for the login",
        "           sha256:bb is what the name means: an index",
        "layers     5, 9 kB, 6 kB of them not in the cache",
        "           sha256:11      2 kB in the cache",
        "           sha256:22      3 kB 1 kB in the cache",
        "           sha256:33      4 kB to be downloaded",
        "           and 2 more",
        "policy     accepted by signedBy (docker reg): It is signed by key.",
        "delivered  no",
        "tag now    cc, 7 kB, private, last pulled 1970-01-01 00:00:00",
        "           that took 2.5 s (PULLING 2 s, TRANSFER 0.5 s)",
        "under way  PULLING: Pulling layers",
        "a pull     downloads 6 kB, converts the image, and delivers it to /images.",
    ]


def test_the_words_of_other_ends() -> None:
    """A pull that waits or fails has its reasons, with what to do."""
    reused_image = replace(
        EXPLANATION, action="reuse", delivered_image=DeliveredImage("dd", (), False)
    )
    lines = list(lines_of(reused_image))
    assert "delivered  dd" in lines
    assert "a pull     does nothing: the image is delivered." in lines
    obstacle = Obstacle("x", "It is down.", "Try later.", "host:1", 60.0, "reg (unreachable)")
    assert list(lines_of(replace(reused_image, action="wait", obstacles=(obstacle,))))[-4:] == [
        "a pull     waits in the queue.",
        "because    Until 1970-01-01 00:01:00, for reg (unreachable): It is down.",
        "           host:1",
        "           → Try later.",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./image.tar"], "is an image of your own"),
        (["custom:app:1"], "come from no registry"),
        (["--password-stdin", "app:1"], "needs --username"),
        (["--system", "other", "app:1"], "must be one of: mycluster"),
        (["UPPER:1"], "is not an image reference"),
        (["--config", "/nonexistent.json", "app:1"], "cannot be read"),
    ],
)
def test_misuse(arguments: list[str], words: str, tmp_path: Path) -> None:
    """A wrong command line exits with 2 before anything is asked."""
    file = tmp_path / "imagemanager.json"
    file.write_text(json.dumps(SMALLEST))
    (tmp_path / "image.tar").touch()
    result = CliRunner().invoke(main, ["explain", "--config", str(file), *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


class ListedStates:
    """A `Remote` whose answers are listed beforehand."""

    def __init__(self, *states: dict[str, Any]) -> None:
        """Answer the first request with the first state, and polls with the next ones."""
        self.states = [{"id": "ab", **state} for state in states]
        self.calls: list[Any] = []

    async def explain(self, itype: str, image: str) -> dict[str, Any]:
        """Return the first state."""
        self.calls.append((itype, image))
        return self.states.pop(0)

    async def explanation(self, explanation_id: str) -> dict[str, Any]:
        """Return the next state."""
        self.calls.append(explanation_id)
        return self.states.pop(0)


def test_polls_of_a_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    """The gateway is polled until it has the explanation; a wait for other users is told once."""
    ready = {"status": "READY", "explanation": json.loads(json.dumps(EXPLANATION.to_document()))}
    remote: Any = ListedStates(*[{"status": "WAITING"}] * 2, {"status": "RUNNING"}, ready)
    clock = Clock()
    polling = Deferred.fromCoroutine(last_state(remote, clock, "team/app:1"))
    clock.pump([INTERVAL] * 3)
    states: list[Any] = []
    polling.addCallback(states.append)
    assert [explanation_of(state) for state in states] == [EXPLANATION]
    assert remote.calls == [("docker", "team/app:1"), *["ab"] * 3]
    assert capsys.readouterr().err == "Waiting for the explanations of other users\n"


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that a gateway sends controls the terminal; the exit code is that of the action."""
    assert show(replace(EXPLANATION, work="\x1b[2J", source="\n"), as_json=False) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert len(output.splitlines()) == len(list(lines_of(EXPLANATION)))
    for action in ("wait", "fail"):
        assert show(replace(EXPLANATION, action=action), as_json=True) == 1
        assert json.loads(capsys.readouterr().out)["action"] == action


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ({"status": "FAILURE", "cause": "Too\nslow.", "remedy": "Try later."}, 1, "Too.+\nTry"),
        ({"status": "FAILURE"}, 1, "did not explain it"),
        ({"status": "READY", "explanation": {"image": 1}}, 3, "not understood"),
        ({"status": "DANCING"}, 3, "not understood"),
    ],
)
def test_a_gateway_that_does_not_explain(state: dict[str, Any], code: int, words: str) -> None:
    """Its reason is shown; an answer of another form is not the image's fault."""
    with pytest.raises(Stop, match=words) as caught:
        explanation_of(state)
    assert caught.value.exit_code == code
    with pytest.raises(InvalidAnswer):
        parse_explanation(state)  # it has no id


def test_a_login_is_not_for_the_gateway() -> None:
    """The gateway gets the stored logins, and no others."""
    result = CliRunner().invoke(main, ["--gateway", "g", "explain", "-u", "alice", "app:1"])
    assert result.exit_code == 2
    assert "--username is for --config" in result.stderr


def test_the_command(tmp_path: Path) -> None:
    """A password from standard input opens a private image, and is shown nowhere."""
    oci_layout(tmp_path / "image", [tar_of({"a": b"b"})])
    (tmp_path / "images").mkdir()
    with DockerRegistry(tmp_path / "registry", private=True) as registry:
        registry.push(tmp_path / "image", "team/app:1")
        document = {
            **SMALLEST,
            "StateDirectory": str(tmp_path / "state"),
            "CacheDirectory": str(tmp_path / "cache"),
            "ExpandDirectory": str(tmp_path / "expand"),
            "DefaultImageLocation": "reg",
            "Locations": {"reg": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}},
            "Platforms": {
                "s": {"accesstype": "local", "local": {"imageDir": str(tmp_path / "images")}}
            },
        }
        (tmp_path / "config.json").write_text(json.dumps(document))
        command = [*PROGRAM, "explain", "--config", str(tmp_path / "config.json")]
        login = ["--username", USER.user, "--password-stdin", "--json"]
        result = subprocess.run(
            [*command, *login, "team/app:1"],
            input=f"{USER.password}\n".encode(),
            env=ENVIRONMENT,
            capture_output=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    explanation = json.loads(result.stdout)
    assert (explanation["action"], explanation["user"]) == ("build", USER.user)
    assert USER.password.encode() not in result.stdout + result.stderr
