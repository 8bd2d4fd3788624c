"""Telling people that a night needs a look: a web hook, a command, or both."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from recsys.errors import InputError

# What a chat shows at once, and what its hooks take.
MOST: Final = 8000


class AlertsConfig(BaseModel):
    """Who is told of a night that was held, kept out or has failed. Nobody by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # It may hold a secret, so it is in no copy of the config and in no message.
    webhook: str = Field(
        "", repr=False, exclude=True, description="an https URL that a JSON body is sent to, such as a chat's"
    )
    webhook_env: str = Field("", description="name of the environment variable that holds the URL, instead")
    command: tuple[str, ...] = Field(
        (), description='a command and its arguments, run without a shell, the text on its stdin: ["mail", "-s", …]'
    )
    timeout_seconds: float = Field(10, gt=0, description="how long hook and command may take")


def check_alerts(config: AlertsConfig) -> None:
    """Refuse at the beginning of a night what would only be noticed when it is needed.

    Raises:
        InputError: the variable that should hold the URL is not set, or what it or the config holds is no such URL.
    """
    if config.webhook and config.webhook_env:
        raise InputError(
            "nightly.alerts has both webhook and webhook_env",
            expected="the URL, or the name of the environment variable that holds it",
            do="leave one of them out",
        )
    if fault := _fault(config):
        where = config.webhook_env or "nightly.alerts.webhook"
        raise InputError(
            f"{where} cannot be sent to: {fault}",
            expected="an https URL, or an http URL of this machine itself",
            do=f"correct {where}",
        )


def alert(config: AlertsConfig, *, subject: str, lines: Sequence[str]) -> None:
    """Tell what has happened. It never raises: what could not be delivered is said on stderr, without the URL.

    The web hook gets a POST with the body `{"text": …}`, which Slack, Mattermost, Teams and Google Chat show;
    redirects are not followed. The command gets the same text on its stdin. When its time is up, it and what it has
    started are killed.

    Args:
        config: who is told.
        subject: what it is about, the first line of the text.
        lines: what more there is to say.
    """
    text = "\n".join([subject, *(f"- {line}" for line in lines)])
    text = text if len(text) <= MOST else f"{text[:MOST]}…"
    if config.webhook or config.webhook_env:
        _try("web hook", lambda: _post(config, text))
    if config.command:
        _try(f"command {config.command[0]!r}", lambda: _run(config, text))


class _UndeliveredError(Exception):
    """Why, in words that hold no secret."""


def _try(way: str, deliver: Callable[[], None]) -> None:
    try:
        deliver()
    except Exception as error:  # whatever it is, the night is worth more
        # Other messages than our own may quote the URL.
        why = str(error) if isinstance(error, _UndeliveredError) else type(error).__name__
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed
            sys.stderr.write(f"! an alert was not delivered by the {way}: {why}\n")


def _url(config: AlertsConfig) -> str:
    return os.environ.get(config.webhook_env, "") if config.webhook_env else config.webhook


def _fault(config: AlertsConfig) -> str | None:
    """Why the URL cannot be used, if there should be one."""
    if not (config.webhook or config.webhook_env):
        return None
    if not _url(config):
        return "this environment variable is not set"
    try:
        parts = urlsplit(_url(config))
        host, _ = parts.hostname, parts.port  # a port that is no number raises
    except ValueError:
        return "it is no URL"
    if not host or parts.scheme not in ("http", "https"):
        return "it is no https URL"
    if parts.scheme == "http" and not _is_loopback(host):
        return "its http would show the alert to the network"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Where a redirect leads was not configured."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: it stays an error."""


def _post(config: AlertsConfig, text: str) -> None:
    if fault := _fault(config):
        raise _UndeliveredError(fault)
    url = _url(config)
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "recsys"}
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310  # _fault knows the scheme
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if url.startswith("http:"):
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy's "this machine" is another one
    try:
        urllib.request.build_opener(*handlers).open(request, timeout=config.timeout_seconds).close()
    except urllib.error.HTTPError as error:
        error.close()
        raise _UndeliveredError(f"it answered {error.code}") from None
    except urllib.error.URLError as error:
        raise _UndeliveredError(type(error.reason).__name__) from None


def _run(config: AlertsConfig, text: str) -> None:
    # Nobody reads its output: a pipe that a child of it keeps open would outlive the time limit.
    with subprocess.Popen(  # noqa: S603  # whoever writes the config may run what they like
        config.command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            process.communicate(f"{text}\n".encode(), timeout=config.timeout_seconds)
        except subprocess.TimeoutExpired:
            raise _UndeliveredError(f"it took more than {config.timeout_seconds:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise _UndeliveredError(f"it ended with {process.returncode}")
