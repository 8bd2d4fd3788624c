"""Alerts reach a real server and a real command, and nothing that goes wrong there reaches the night."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.nightly.alerts import MOST, AlertsConfig, alert, check_alerts

SECRET = "T0KEN-dont-tell"


@dataclass
class Hook:
    """A server on this machine, what it was sent and what it answers."""

    url: str = ""
    status: int = 200
    location: str = ""
    seconds: float = 0
    posts: list[tuple[str, str, Any]] = field(default_factory=list)  # path, content type, body
    gets: int = 0


@pytest.fixture
def hook() -> Iterator[Hook]:
    state = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.posts.append((self.path, self.headers["Content-Type"], json.loads(body)))
            time.sleep(state.seconds)
            self.send_response(state.status)
            if state.location:
                self.send_header("Location", state.location)
            self.end_headers()

        def do_GET(self) -> None:
            state.gets += 1
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/hooks/{SECRET}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def tell(config: AlertsConfig, *lines: str) -> None:
    alert(config, subject="shop: night held", lines=lines)


@pytest.mark.parametrize("how", ["config", "variable"])
def test_a_hook_gets_the_text(
    hook: Hook, how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("SHOP_HOOK", hook.url)
    config = AlertsConfig(webhook=hook.url) if how == "config" else AlertsConfig(webhook_env="SHOP_HOOK")
    check_alerts(config)
    tell(config, "half of the »views« are missing", "two\nlines")
    text = "shop: night held\n- half of the »views« are missing\n- two\nlines"
    assert hook.posts == [(f"/hooks/{SECRET}", "application/json; charset=utf-8", {"text": text})]
    assert capfd.readouterr() == ("", "")


def test_a_long_alert_is_cut(hook: Hook) -> None:
    tell(AlertsConfig(webhook=hook.url), *["x" * 100] * 1000)
    assert len(hook.posts[0][2]["text"]) == MOST + 1


def test_a_command_gets_the_text_as_it_is_and_no_shell_reads_its_arguments(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    code = "import json, sys; json.dump([sys.argv[2:], sys.stdin.buffer.read().decode()], open(sys.argv[1], 'w'))"
    arguments = ("$HOME; touch owned", "a b")
    tell(AlertsConfig(command=(sys.executable, "-c", code, str(out), *arguments)), "»$(id)«")
    assert json.loads(out.read_text()) == [list(arguments), "shop: night held\n- »$(id)«\n"]


def test_hook_and_command_do_not_wait_for_each_others_luck(hook: Hook, tmp_path: Path) -> None:
    hook.status = 500
    tell(AlertsConfig(webhook=hook.url, command=("tee", str(tmp_path / "text"))))
    assert (tmp_path / "text").read_text() == "shop: night held\n"


def test_nobody_is_told_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    check_alerts(AlertsConfig())
    tell(AlertsConfig(), "anything")
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 404}, "it answered 404"),
        ({"status": 302, "location": "/elsewhere"}, "it answered 302"),
        ({"seconds": 1.0}, "TimeoutError"),
    ],
)
def test_what_the_server_does_not_take_is_said_without_the_url(
    hook: Hook, change: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    vars(hook).update(change)
    tell(AlertsConfig(webhook=hook.url, timeout_seconds=0.3))
    err = capfd.readouterr().err
    assert err == f"! an alert was not delivered by the web hook: {said}\n"
    assert len(hook.posts) == 1 and not hook.gets


BAD = [
    f"http://example.org/{SECRET}",
    f"http://127.0.0.1.example.org/{SECRET}",
    f"http://127.0.0.1@example.org/{SECRET}",
    f"file:///{SECRET}",
    f"ftp://localhost/{SECRET}",
    f"https:///{SECRET}",
    f"https://host:port/{SECRET}",
    f"https://[::1/{SECRET}",
    SECRET,
]


@pytest.mark.parametrize("url", BAD)
def test_a_url_that_would_show_it_to_others_is_never_used(
    url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOP_HOOK", url)
    for config in (AlertsConfig(webhook=url), AlertsConfig(webhook_env="SHOP_HOOK")):
        with pytest.raises(InputError) as error:
            check_alerts(config)
        tell(config)
        err = capfd.readouterr().err
        assert err.startswith("! an alert was not delivered by the web hook: it")
        assert SECRET not in err and SECRET not in str(error.value)


def test_nobody_listening_is_said_without_the_url(hook: Hook, capfd: pytest.CaptureFixture[str]) -> None:
    tell(AlertsConfig(webhook=f"http://127.0.0.1:1/{SECRET}"))
    tell(AlertsConfig(webhook=f"http://localhost:1/{SECRET} \n"))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and "ConnectionRefusedError" in lines[0] and SECRET not in "".join(lines)


def test_a_variable_that_is_not_set_is_found_when_the_night_begins(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SHOP_HOOK", raising=False)
    config = AlertsConfig(webhook_env="SHOP_HOOK")
    with pytest.raises(InputError, match="SHOP_HOOK cannot be sent to: this environment variable is not set"):
        check_alerts(config)
    with pytest.raises(InputError, match="both"):
        check_alerts(AlertsConfig(webhook="https://example.org", webhook_env="SHOP_HOOK"))
    tell(config)
    assert "not set" in capfd.readouterr().err


def test_no_copy_of_the_config_has_the_secret() -> None:
    config = AlertsConfig(webhook=f"https://example.org/{SECRET}")
    assert SECRET not in repr(config) and SECRET not in config.model_dump_json()
    assert AlertsConfig.model_validate(config.model_dump(mode="json")) == AlertsConfig()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("false",), "it ended with 1"),
        (("/nowhere/mail",), "FileNotFoundError"),
        (("bad\0name",), "ValueError"),
        (("sh", "-c", "kill -9 $$"), "it ended with -9"),
    ],
)
def test_a_command_that_fails_is_said(command: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    tell(AlertsConfig(command=command))
    assert capfd.readouterr().err == f"! an alert was not delivered by the command {command[0]!r}: {said}\n"


def test_a_command_that_reads_nothing_is_fine(capfd: pytest.CaptureFixture[str]) -> None:
    alert(AlertsConfig(command=("true",)), subject="s", lines=["x" * MOST])
    assert capfd.readouterr().err == ""


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pid = tmp_path / "pid"
    begin = time.monotonic()
    tell(AlertsConfig(command=("sh", "-c", f"sleep 60 & echo $! > {pid}; wait"), timeout_seconds=0.5))
    assert time.monotonic() - begin < 10
    assert capfd.readouterr().err == "! an alert was not delivered by the command 'sh': it took more than 0.5 s\n"
    for _ in range(100):
        if not is_running(int(pid.read_text())):
            return
        time.sleep(0.05)
    raise AssertionError("its child still runs")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
