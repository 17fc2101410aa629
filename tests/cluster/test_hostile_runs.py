"""Sixty hostile runs of somebody who may only create AlignmentRuns, on a real node."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.run.executors.kubernetes.crd import new_run

from .site import Site, kubectl, until

pytestmark = pytest.mark.cluster
ACCOUNT = "run-creator"
PATHS = (
    *("/proc/self/pagemap", "/proc", "/dev/zero", "/dev/stdin", "/etc/shadow", "~/.aws/config"),
    *("file:///etc/passwd", "../../../etc/passwd", "a.jsonl", "\u202e/x", "/var/run/secrets"),
)
MODELS = ("/models/any", "https://example.invalid/x", "evil/model", "store:inputs/base_model/00")


def nested(depth: int, *, lists: bool = False) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def specs() -> Iterator[dict[str, Any]]:
    """Each must be refused by the API server or end with its cause."""
    for path in PATHS:
        yield {"config": {"evaluate": {"heldout": path}}}
        yield {"config": {"seeds": {"directory": path}}}
    for model in MODELS:
        yield {"config": {"base_model": {"path": model}}}
        yield {"config": {"base_model": {"path": model, "revision": "0" * 40}}}
    for options in ({"trust_remote_code": True}, {"model": "evil/model"}, {"tokenizer": "/etc"}):
        yield {"config": {"engine": {"options": options}}}
        yield {"config": {"align": {"engine": {"kind": "vllm", "options": options}}}}
    for store in ("s3://elsewhere/x", "/tmp/store", "file:///tmp/x", "s3://key:secret@host/x"):
        yield {"config": {"store": store}}
    yield {"config": {"promote": {"rules": []}}}
    yield {"config": {"engrave": {"deepspeed": {"zero_optimization": {"stage": 3}}}}}
    yield {"priority": "system-node-critical"}
    yield {"queueName": "somebody-s"}
    for shards in (65, 10**6, 2**31, 2**63, -1, "many"):
        yield {"config": {"instruct": {"num_shards": shards}}}
    yield {"maxAttempts": 10**9}
    yield {"ttlSecondsAfterFinished": 2**40}
    yield {"config": nested(60)}
    yield {"config": {"seed": nested(900)}}
    yield {"config": {"align": nested(900, lists=True)}}
    yield {"config": {"seed": "x" * 900_000}}
    yield {"config": {"seed": 10**400}}
    yield {"config": {f"k{number}": 1 for number in range(2000)}}
    yield {"config": {"[/red]": {":cd:": "\x1b[31m"}}}
    yield {"unknown": True}


def test_hostile_runs_end_with_their_cause_and_delay_nobody(site: Site) -> None:
    namespace = site.namespace
    kubectl("-n", namespace, "create", "serviceaccount", ACCOUNT)
    kubectl(
        "-n",
        namespace,
        "create",
        "rolebinding",
        ACCOUNT,
        "--role=selfalign-run-creator",
        f"--serviceaccount={namespace}:{ACCOUNT}",
    )
    token = kubectl("-n", namespace, "create", "token", ACCOUNT).strip()
    value = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    value["users"][0]["user"] = {"token": token}
    kubeconfig = site.directory / "run-creator.kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(value))
    hostile = list(specs())
    assert len(hostile) >= 60
    refused, made = 0, []
    for number, spec in enumerate(hostile):
        name = f"hostile-{number}"
        body = new_run(name, namespace, spec)
        answer = subprocess.run(
            ["kubectl", "--kubeconfig", str(kubeconfig), "-n", namespace, "create", "-f", "-"],
            input=json.dumps(body),
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            made.append(name)
        else:
            refused += 1
            assert "forbidden" not in answer.stderr, answer.stderr
    asked = time.monotonic()
    site.create_run("honest")
    until(lambda: site.status("honest").get("stages"), "the honest run to begin", 60)
    waited = time.monotonic() - asked
    for name in made:
        status = until(lambda name=name: _ended(site, name), f"{name} to end", 120)
        assert status["message"], name
        assert status["exitCode"] in (2, 3), status
        assert len(json.dumps(status)) < 10_000
    assert refused + len(made) == len(hostile)
    assert waited < 10, f"the honest run waited {waited:.0f} s"
    jobs = {job["metadata"]["labels"]["selfalign.io/run"] for job in site.cluster.list("jobs")}
    assert jobs <= {"honest"}
    log = kubectl("-n", namespace, "logs", "deployment/selfalign-controller", "--tail=-1")
    assert max(map(len, log.splitlines())) < 8_000
    assert site.ended("honest")["verdict"] is not None


def _ended(site: Site, name: str) -> dict[str, Any] | None:
    status = site.status(name)
    return status if status.get("completedAt") else None
