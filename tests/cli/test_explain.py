"""explain: the words for people, the JSON for scripts, and the exit code."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.cli.answers import InvalidAnswer, parse_explanation
from shiftergw.cli.exits import GatewayBusy, NoGateway, RequestRefused, Stop
from shiftergw.cli.explain import explanation_of, last_state, show
from shiftergw.cli.explanation_text import lines_of
from shiftergw.cli.main import main
from shiftergw.cli.polling import INTERVAL, SILENCE_LIMIT
from shiftergw.model.explanations import (
    EXPLANATION_SECONDS,
    MOST_EXPLANATIONS,
    DeliveredImage,
    Explanation,
    ImagePlace,
    LayerPresence,
    Obstacle,
    RequestLimit,
)
from shiftergw.model.signatures import PolicyVerdict
from tests.cli.command import ENVIRONMENT, PROGRAM, answering, start
from tests.configurations import SMALLEST
from tests.images import oci_layout, tar_of
from tests.registries import USER, DockerRegistry

LIMIT = RequestLimit("", 9, "9 of 100 requests in 6 hours are left")
SMALL = {"image": "a", "system": "s", "architecture": "x", "directory": "d", "action": "build"}
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
    previous_image=DeliveredImage(
        "cc", (), True, 7000, 0.0, {"PULLING": 2.0, "TRANSFER": 0.5}, 5000, 2000
    ),
    work="PULLING: Pulling layers",
)


def test_the_words() -> None:
    """Each fact has a line."""
    assert list(lines_of(EXPLANATION)) == [
        "image      team/app:1",
        "system     mycluster, arm64/v8",
        "login      alice",
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
        "old image  cc, 7 kB, private, last pulled 1970-01-01 00:00:00",
        "           the delivery took 2.5 s (PULLING 2 s, TRANSFER 0.5 s)",
        "           the system copied 5 kB of it, 2 kB were sent",
        "under way  PULLING: Pulling layers",
        "a pull     downloads 6 kB, converts the image, and delivers it to /images.",
    ]


def test_the_words_of_a_cache_that_could_not_be_looked_up() -> None:
    """The layers are listed without what is known of them."""
    layers = tuple(replace(layer, cached_size=None) for layer in EXPLANATION.layers)
    unknown = replace(EXPLANATION, action="unknown", layers=layers, missing_size=None)
    lines = list(lines_of(unknown))
    assert lines[lines.index("layers     5, 9 kB") + 1] == "           sha256:11      2 kB"
    assert lines[-1] == "a pull     may succeed or not: not everything could be looked up."


def test_the_words_of_other_ends() -> None:
    """A pull that waits or fails has its reasons, with what to do."""
    reused_image = replace(
        EXPLANATION, action="reuse", delivered_image=DeliveredImage("dd", (), False)
    )
    lines = list(lines_of(reused_image))
    assert "delivered  dd" in lines
    assert "a pull     downloads nothing: the image is on the system already." in lines
    cached_image = replace(EXPLANATION, missing_size=0, is_converted=True)
    lines = list(lines_of(cached_image))
    assert "layers     5, 9 kB, all in the cache" in lines
    assert lines[-1] == (
        "a pull     downloads nothing, and delivers the image, which is converted already, to"
        " /images."
    )
    obstacle = Obstacle("x", "It is down.", "Try later.", "host:1", 60.0, "reg (unreachable)")
    assert list(lines_of(replace(reused_image, action="wait", obstacles=(obstacle,))))[-4:] == [
        "a pull     waits in the queue.",
        "because    Until 1970-01-01 00:01:00 it waits for reg (unreachable): It is down.",
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


RUNNING = {"status": "RUNNING"}
WAITING = {"status": "WAITING"}
READY = {"status": "READY", "explanation": json.loads(json.dumps(EXPLANATION.to_document()))}
SILENCE = NoGateway("The gateway g is silent.")


class ListedStates:
    """A `Remote` whose answers are listed beforehand; the last one is repeated."""

    def __init__(self, *states: dict[str, Any] | Stop) -> None:
        """Give the states, or raise the errors, one after the other."""
        self._states = list(states)
        self.calls: list[Any] = []

    async def explain(self, itype: str, image: str) -> dict[str, Any]:
        """Return the next state."""
        return self._answer((itype, image))

    async def explanation(self, explanation_id: str) -> dict[str, Any]:
        """Return the next state."""
        return self._answer(explanation_id)

    def _answer(self, call: Any) -> dict[str, Any]:
        self.calls.append(call)
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, Stop):
            raise state
        return {"id": "ab", **state}


def polling(*states: dict[str, Any] | Stop) -> tuple[ListedStates, Clock, list[Any]]:
    """Begin to poll; return the gateway, the clock, and a list that gets the state or the error."""
    remote, clock, ends = ListedStates(*states), Clock(), list[Any]()
    gateway: Any = remote
    Deferred.fromCoroutine(last_state(gateway, clock, "team/app:1")).addBoth(ends.append)
    return remote, clock, ends


ASKING = ("docker", "team/app:1")


def test_polls_of_a_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    """The gateway is polled for the explanation; a wait for other users is reported once."""
    remote, clock, ends = polling(WAITING, WAITING, RUNNING, READY)
    clock.pump([INTERVAL] * 3)
    assert [explanation_of(state) for state in ends] == [EXPLANATION]
    assert remote.calls == [ASKING, *["ab"] * 3]
    assert capsys.readouterr().err == "Waiting for the explanations of other users.\n"


def test_a_gateway_that_is_silent_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    """Polls that fail are repeated, as those of a pull, which is reported once."""
    busy = GatewayBusy("The gateway g is silent.")
    remote, clock, ends = polling(RUNNING, SILENCE, busy, SILENCE, RUNNING, READY)
    clock.pump([INTERVAL] * 6)
    assert [explanation_of(state) for state in ends] == [EXPLANATION]
    assert remote.calls == [ASKING, *["ab"] * 5]
    assert capsys.readouterr().err == "The gateway g is silent. Still trying.\n"


@pytest.mark.parametrize("failures", [[SILENCE], [RequestRefused("There is no such one.")]])
def test_a_gateway_that_has_forgotten_the_explanation(failures: list[Stop]) -> None:
    """After a restart, or for good silence, the explanation is asked for once more."""
    count = round(SILENCE_LIMIT / INTERVAL) + 2 if failures == [SILENCE] else 1
    remote, clock, ends = polling(RUNNING, *failures * count, RUNNING, READY)
    clock.pump([INTERVAL] * (count + 3))
    assert [explanation_of(state) for state in ends] == [EXPLANATION]
    assert remote.calls == [ASKING, *["ab"] * count, ASKING, "ab"]


def test_a_gateway_that_always_forgets() -> None:
    """The second refusal ends the command, with the words of the gateway."""
    refusal = RequestRefused("There is no such explanation.")
    remote, clock, ends = polling(RUNNING, refusal, RUNNING, refusal)
    clock.pump([INTERVAL] * 9)
    assert [end.value for end in ends] == [refusal]
    assert remote.calls == [ASKING, "ab", ASKING, "ab"]


@pytest.mark.parametrize("state", [WAITING, RUNNING])
def test_a_gateway_that_never_ends(state: dict[str, Any]) -> None:
    """The command ends when the gateway would have made all explanations that it accepts."""
    _, clock, ends = polling(state)
    seconds = MOST_EXPLANATIONS * EXPLANATION_SECONDS
    clock.pump([INTERVAL] * round(seconds / INTERVAL))
    assert ends == []
    clock.pump([INTERVAL] * round(90 / INTERVAL))
    (failure,) = ends
    assert failure.check(NoGateway)
    assert "within 31 minutes. Tell the site's support" in failure.value.message
    assert clock.getDelayedCalls() == []


def test_cancelled_polls() -> None:
    """Ctrl-C leaves nothing behind, while it waits and while it retries."""
    for states in ([WAITING], [RUNNING, SILENCE]):
        gateway: Any = ListedStates(*states)
        clock = Clock()
        running = Deferred.fromCoroutine(last_state(gateway, clock, "a:1"))
        clock.pump([INTERVAL] * 3)
        running.cancel()
        assert clock.getDelayedCalls() == []
        ends: list[Any] = []
        running.addErrback(ends.append)
        assert ends[0].check(CancelledError)


def test_output_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that a gateway sends controls the terminal; the exit code is that of the action."""
    assert show(replace(EXPLANATION, work="\x1b[2J", source="\n"), as_json=False) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert len(output.splitlines()) == len(list(lines_of(EXPLANATION)))
    for action in ("wait", "fail", "unknown"):
        assert show(replace(EXPLANATION, action=action), as_json=True) == 1
        assert json.loads(capsys.readouterr().out)["action"] == action


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ({"status": "FAILURE", "cause": "Too\nslow.", "remedy": "Try later."}, 1, "Too.+\nTry"),
        ({"status": "FAILURE"}, 1, "did not explain it"),
        ({"status": "READY", "explanation": {"image": 1}}, 3, "not understood"),
        ({"status": "DANCING"}, 3, "not understood"),
        ({"status": "READY", "explanation": {**SMALL, "size": -1}}, 3, "not understood"),
    ],
)
def test_a_gateway_that_does_not_explain(state: dict[str, Any], code: int, words: str) -> None:
    """The gateway's reason is shown; an answer of another form is not the image's fault."""
    with pytest.raises(Stop, match=words) as caught:
        explanation_of(state)
    assert caught.value.exit_code == code
    with pytest.raises(InvalidAnswer):
        parse_explanation(state)  # it has no id


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "a" * 101, "a\n", 7, None])
def test_an_invalid_id(key: Any) -> None:
    """Only an id becomes part of the path of a request."""
    with pytest.raises(InvalidAnswer):
        parse_explanation({"status": "RUNNING", "id": key})


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


@pytest_twisted.ensureDeferred
async def test_an_interrupted_command() -> None:
    """Ctrl-C ends the wait for a gateway at once."""

    def interrupt(url: str) -> tuple[int, str]:
        options = ["--gateway", url, "--system", "mycluster", "--credential", "x"]
        with start(
            *(*options, "explain", "app:1"),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            return process.wait(), line + process.stderr.read()

    async with answering(b'{"id": "ab", "status": "WAITING"}') as url:
        end: Any = await deferToThread(interrupt, url)
    assert end == (130, "Waiting for the explanations of other users.\nInterrupted.\n")
