"""What the pods of charts/serving in the form adapter say that they serve.

A pod takes a new adapter while it runs, and no object of Kubernetes changes by that. So each pod
is asked, at its own address: GET http://POD:8000/selfalign/status (serving/alias.py).
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, NamedTuple

from selfalign.errors import printable
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.cluster import Resource, labels_of, name_of
from selfalign.serving.alias import STATUS_PATH
from selfalign.store.documents import decode_json

FORM_LABEL = f"{crd.GROUP}/form"
_PORT = 8000
_TIMEOUT_SECONDS = 2.0
_LONGEST_REPLY = 64 << 10


class Told(NamedTuple):
    """How the pods stand with the wanted model.

    Attributes:
        message: what a pod complains of; empty where none does.
    """

    standing: Literal["Served", "Loading", "OtherServer", "Trouble"]
    message: str = ""


def serves_adapters(deployment: Resource) -> bool:
    """Whether a Deployment of charts/serving is of the form adapter."""
    return labels_of(deployment).get(FORM_LABEL) == "adapter"


def ask_pods(pods: list[Resource], digest: str) -> Told:
    """Ask one pod after the other whether it serves the model; the first that does not decides."""
    for pod in pods:
        try:
            told = asyncio.run(_status(str((pod.get("status") or {}).get("podIP"))))
        except (OSError, ValueError) as error:
            said = str(error) or f"nothing within {_TIMEOUT_SECONDS:g} s"
            why = f"pod {name_of(pod)} does not answer at port {_PORT}: {said}"
            return Told("Trouble", f"{why}; look at networkPolicy in charts/serving")
        if told.get("digest") == digest:
            continue
        found: Any = told.get("found")
        if not isinstance(found, dict) or found.get("wanted") != digest:
            return Told("Loading")
        if found.get("reason") == "OtherServer":
            return Told("OtherServer")
        said = printable(" ".join(str(found.get("message")).split()))
        return Told("Trouble", f"pod {name_of(pod)}: {said}")
    return Told("Served")


async def _status(address: str) -> dict[str, Any]:
    """What a pod answers, within the time in all; no proxy is asked and no redirect followed.

    Raises OSError or ValueError.
    """
    asked = f"GET {STATUS_PATH} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"
    reply = b""
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(address, _PORT)
        try:
            writer.write(asked.encode())
            while len(reply) < _LONGEST_REPLY and (block := await reader.read(_LONGEST_REPLY)):
                reply += block
        finally:
            writer.close()
    head, _, body = reply[:_LONGEST_REPLY].partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError("its answer is not HTTP 200")
    found = decode_json(body)
    if not isinstance(found, dict):
        raise ValueError("its answer is no JSON object")
    return found
