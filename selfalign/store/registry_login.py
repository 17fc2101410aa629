"""Who this is to an OCI registry: the logins of docker and podman, and the tokens got with them.

Read from REGISTRY_AUTH_FILE, else $DOCKER_CONFIG/config.json, else ~/.docker/config.json: what is
written there, or what a credential helper named there gives. No login is no error: a registry may
take anybody. A password or token enters no log, error or other host's request.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

import httpx2

from selfalign.errors import ConfigurationError, StoreDenied
from selfalign.store.documents import decode_json

_HUB_KEY = "https://index.docker.io/v1/"  # under which docker keeps the login of docker.io
_HELPER_SECONDS = 60.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TOKEN = re.compile(r"[!-~]+")
_IDENTITY_TOKEN = "<token>"  # the user's name, where a helper's secret is an identity token


@dataclass(frozen=True, slots=True)
class Login:
    """A user's name and password, or an identity token for which a registry gives others."""

    user: str
    password: str = field(repr=False)
    is_identity_token: bool = False

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(host: str) -> Login | None:
    """The login for a registry, or None. Raises ConfigurationError for a file that is damaged."""
    path = _config_path()
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
        logins, helpers = config.get("auths") or {}, config.get("credHelpers") or {}
        key = _HUB_KEY if host == "docker.io" else host
        if helper := helpers.get(key) or helpers.get(host):
            return _ask_helper(str(helper), key)
        entry = logins.get(key) or logins.get(f"https://{host}") or {}
        if found := _written(entry):
            return found
        return _ask_helper(str(config["credsStore"]), key) if config.get("credsStore") else None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ConfigurationError(
            f"{path}: cannot be read as docker's configuration: {type(error).__name__}",
            remedy=f"docker login {host}, or name another file in REGISTRY_AUTH_FILE",
        ) from None  # the error may quote a password


def _config_path() -> Path:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _written(entry: dict[str, Any]) -> Login | None:
    if token := entry.get("identitytoken"):
        return Login("", str(token), is_identity_token=True)
    if not entry.get("auth"):
        return None
    try:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except binascii.Error as error:
        raise ValueError("auth is no base64") from error
    return Login(user, password.rstrip("\0"))


def _ask_helper(name: str, key: str) -> Login | None:
    """What docker-credential-NAME knows of a registry (its protocol is docker's)."""
    program = f"docker-credential-{name}"
    if not _HELPER_NAME.fullmatch(name):
        raise ValueError("a helper's name holds other characters")
    try:
        done = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired) as error:
        raise StoreDenied(
            f"{program}: {type(error).__name__}; docker's configuration names it for {key}",
            remedy="install it, or log in without it",
        ) from error
    if done.returncode != 0:
        return None  # it keeps no login of this registry; the registry says if one is needed
    try:
        found = json.loads(done.stdout)
        user, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError):
        raise StoreDenied(
            f"{program}: does not answer with Username and Secret; docker's configuration names "
            f"it for {key}",
            remedy="repair it, or log in without it",
        ) from None  # the error may quote a password
    return Login(user, secret, is_identity_token=user == _IDENTITY_TOKEN)


class RegistryAuth(httpx2.Auth):
    """Answers a registry's challenge, with a password or with a token that it gives for one.

    Args:
        base: the address whose requests carry the login; one to another host carries nothing.
        name: the repository that is to be pushed to.
    """

    requires_response_body = True

    def __init__(self, base: str, name: str, login: Login | None) -> None:
        self._origin, self._login = _origin(httpx2.URL(base)), login
        self._scope = f"repository:{name}:pull,push"
        self._header: str | None = None

    def auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """As httpx2 defines it: each yielded request is sent, and its answer comes back."""
        if _origin(request.url) != self._origin:
            yield request
            return
        if self._header:
            request.headers["Authorization"] = self._header
        response = yield request
        if response.status_code != 401:
            return
        scheme, values = _challenge(response.headers.get("WWW-Authenticate", ""))
        if scheme == "basic" and self._login is not None:
            self._header = self._login.basic
        elif scheme == "bearer" and (asked := self._token_request(values, request.url)):
            given = yield asked
            if not given.is_success:
                return  # what the token service says is the answer
            self._header = _bearer(given)
        else:
            return
        if not isinstance(request.stream, httpx2.ByteStream):
            raise httpx2.WriteError("the token ran out while a file was sent")
        request.headers.pop("Authorization", None)
        if self._header:
            request.headers["Authorization"] = self._header
        yield request

    def _token_request(self, values: dict[str, str], asked: httpx2.URL) -> httpx2.Request | None:
        realm = httpx2.URL(values.get("realm", ""))
        if realm.scheme != "https" and realm.scheme != asked.scheme:
            return None  # a password never goes unencrypted where the registry is not
        wanted = {"service": values.get("service", ""), "scope": self._scope}
        if self._login is not None and self._login.is_identity_token:
            form = wanted | {
                "grant_type": "refresh_token",
                "refresh_token": self._login.password,
                "client_id": "selfalign",
            }
            return httpx2.Request("POST", realm, data=form)
        headers = {} if self._login is None else {"Authorization": self._login.basic}
        return httpx2.Request("GET", realm.copy_merge_params(wanted), headers=headers)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _challenge(header: str) -> tuple[str, dict[str, str]]:
    scheme, _, rest = header.strip().partition(" ")
    pairs = [each for each in parse_http_list(rest) if each.partition("=")[2]]
    return scheme.lower(), parse_keqv_list(pairs)


def _bearer(response: httpx2.Response) -> str | None:
    try:
        found = decode_json(response.content) if response.is_success else {}
    except ValueError:
        return None
    token = found.get("token") or found.get("access_token") if isinstance(found, dict) else None
    # what is no header's value would be quoted by the error about it
    usable = isinstance(token, str) and _TOKEN.fullmatch(token)
    return f"Bearer {token}" if usable else None
