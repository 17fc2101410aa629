"""The platform as `make deploy` installs it on a real node, and an S3 server that pods reach."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Conflict, Gone, Resource, name_of
from selfalign.run.executors.kubernetes.crd import new_run
from tests.store.proxy import Proxy, running_proxy

PROJECT = Path(__file__).resolve().parents[2]
BUCKET = "selfalign"
SECRET = "notARealSecretKey0notARealSecretKey0notA"
PATIENCE_SECONDS = 900
OVERRIDES = [
    *("seed", "seeds.directory", "evaluate.ablate_principles", "engine.kind", "align.sampling"),
    *("instruct.general_requests", "*.num_shards", "engrave.max_steps", "clone.max_steps"),
]


def kubectl(*arguments: str, stdin: Any = None, check: bool = True) -> str:
    """What kubectl prints."""
    text = None if stdin is None else json.dumps(stdin)
    result = subprocess.run(
        ["kubectl", "--request-timeout=60s", *arguments],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0 or not check, result.stderr
    return result.stdout


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What the condition returns once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Gone, Conflict):
            if found := condition():
                return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass
class S3:
    """An S3 server on an address that pods reach, behind a proxy that fails on demand."""

    url: str
    log: Path
    proxy: Proxy

    @classmethod
    @contextlib.contextmanager
    def serving(cls, host: str, directory: Path) -> Iterator[S3]:
        log = directory / "s3.log"
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "tests/store/moto_process.py"), host, "0", str(log)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        upstream = process.stdout.readline().strip()
        try:
            with running_proxy(upstream, host) as proxy:
                yield cls(proxy.url, log, proxy)
        finally:
            process.communicate(input="")

    def client(self) -> Any:
        """boto3's client of this server."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key=SECRET,
        )  # fmt: skip

    def publications(self, prefix: str) -> Counter[str]:
        """How often each manifest below a prefix was written: method, path and 200."""
        written = (line.split() for line in self.log.read_text().splitlines())
        return Counter(
            path
            for method, path, status in written
            if method == "PUT" and status == "200" and path.endswith("/manifest.json")
            and path.startswith(f"/{BUCKET}/{prefix}/artifacts/")
        )  # fmt: skip


@dataclass
class Site:
    """One namespace with platform and stages.

    Attributes:
        config: the run configuration, with `store:` names.
    """

    cluster: Cluster
    s3: S3
    tag: str
    config: dict[str, Any]
    directory: Path
    stage_values: dict[str, Any] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.cluster.namespace

    def push_inputs(self, config: Path) -> Path:
        """Push this configuration's inputs to the namespace's place in the bucket; it, resolved."""
        resolved = self.directory / "resolved.yaml"
        place = f"store=s3://{BUCKET}/{self.namespace}"
        pushed = self.cli(
            "inputs", "push", "--config", str(config), "--set", place, "--out", str(resolved)
        )
        assert pushed.returncode == 0, pushed.stderr
        self.config = yaml.safe_load(resolved.read_text())
        return resolved

    def deploy(self, *, nightly: str | None = None, serving: Resource | None = None) -> None:
        """`make deploy`, with images that the node has already.

        Args:
            serving: that section of the platform's values; None: nothing is served.
        """
        port = int(self.s3.url.rpartition(":")[2])
        environment = {
            "AWS_REGION": "us-east-1",
            "SELFALIGN_S3_ENDPOINT_URL": self.s3.url,
            "SELFALIGN_S3_ADDRESSING_STYLE": "path",
            "SELFALIGN_S3_MAX_ATTEMPTS": "2",
        }
        platform = {
            "environment": environment,
            "networkPolicy": {"storePorts": [port]},
            "runs": {"overrides": OVERRIDES},
            "serving": serving or {"kind": "none"},
            "nightly": {"schedule": nightly or "0 1 * * *", "suspend": nightly is None},
        }
        stages = {"networkPolicy": {"storePorts": [port]}, **self.stage_values}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "selfalign-store"},
            "stringData": {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET},
        }
        kubectl("apply", "-n", self.namespace, "-f", "-", stdin=secret)
        self.make(
            "deploy",
            VALUES=self._written("platform.yaml", platform),
            STAGE_VALUES=self._written("stages.yaml", stages),
            CONFIG=self._written("resolved.yaml", self.config),
            CHECK_BUCKET="0",
        )
        kubectl("-n", self.namespace, "rollout", "status", "deployment/selfalign-controller",
                "--timeout=180s")  # fmt: skip

    def make(self, target: str, **variables: str) -> str:
        """A target of the Makefile, in this namespace."""
        shared = {"NAMESPACE": self.namespace, "VARIANT": "cpu", "SKIP_BUILD": "1",
                  "IMAGE_TAG": self.tag}  # fmt: skip
        given = [f"{name}={value}" for name, value in {**shared, **variables}.items()]
        result = subprocess.run(
            ["make", "--no-print-directory", target, *given],
            cwd=PROJECT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"make {target}: {result.stdout}{result.stderr}"
        return result.stdout

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`selfalign`, as on a laptop with a kubeconfig and access to the bucket."""
        environment = {
            **os.environ, "SELFALIGN_S3_ENDPOINT_URL": self.s3.url, "AWS_REGION": "us-east-1",
            "SELFALIGN_S3_ADDRESSING_STYLE": "path", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET, "COLUMNS": "200",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "selfalign", *arguments],
            cwd=PROJECT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def create_run(self, name: str, **spec: Any) -> None:
        """`kubectl create` of an AlignmentRun."""
        kubectl("create", "-f", "-", stdin=new_run(name, self.namespace, spec))

    def status(self, run: str) -> Resource:
        return self.cluster.get("alignmentruns", run).get("status") or {}

    def phases(self, run: str) -> dict[str, str]:
        return {row["name"]: row["phase"] for row in self.status(run).get("stages") or []}

    def artifacts(self, run: str) -> dict[str, tuple[str, str]]:
        """Key and digest of what each stage of a finished run wrote."""
        return {row["name"]: (row["key"], row["digest"]) for row in self.status(run)["stages"]}

    def ended(self, run: str, seconds: float = PATIENCE_SECONDS) -> Resource:
        """The run's status once it has ended."""
        try:
            return until(
                lambda: s if (s := self.status(run)).get("completedAt") else None, run, seconds
            )  # type: ignore[no-any-return]
        except AssertionError as error:
            told = self.cli("status", run, "--logs", "-n", self.namespace)
            raise AssertionError(f"{error}\n{told.stdout}") from None

    def pods(self, run: str) -> list[Resource]:
        return self.cluster.list("pods", f"selfalign.io/run={run}")

    def controller_is_ready(self) -> bool:
        """Whether a controller's pod is ready: it acts."""
        pods = self.cluster.list("pods", "app.kubernetes.io/component=controller")
        return any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
            for condition in pod["status"].get("conditions") or []
        )

    def kill_controller(self) -> bool:
        """SIGKILL the controller's process from the node; whether there was one to kill."""
        pods = self.cluster.list("pods", "app.kubernetes.io/component=controller")
        uids = {pod["metadata"]["uid"].replace("-", "_") for pod in pods} | {
            pod["metadata"]["uid"] for pod in pods
        }
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                if b"controller" not in command or not any(b"selfalign" in c for c in command):
                    continue
                if any(uid in (process / "cgroup").read_text() for uid in uids):
                    os.kill(int(process.name), signal.SIGKILL)
                    return True
        return False

    def renew_controller_pod(self) -> None:
        """Delete the controller's pod at once: a new one has no restarts behind it to wait for."""
        kubectl(
            "-n", self.namespace, "delete", "pod", "--force", "--grace-period=0", "--wait=false",
            "-l", "app.kubernetes.io/component=controller", check=False,
        )  # fmt: skip

    def evict(self, pod: Resource) -> None:
        """As `kubectl drain` does."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name_of(pod), "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name_of(pod)}/eviction"
        kubectl("create", "--raw", path, "-f", "-", stdin=eviction, check=False)

    def _written(self, name: str, value: dict[str, Any]) -> str:
        path = self.directory / name
        path.write_text(yaml.safe_dump(value, sort_keys=False))
        return str(path)


def running_stage_pods(site: Site, run: str) -> list[Resource]:
    """Pods of the run whose container runs and that nobody has deleted yet."""
    return [
        pod
        for pod in site.pods(run)
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
