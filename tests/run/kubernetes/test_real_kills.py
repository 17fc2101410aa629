"""The controller as a process, killed twenty times while Jobs and pods are deleted and evicted.

Needs KUBECONFIG, as `test_real_cluster`; takes some minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Conflict, Gone, labels_of, name_of
from selfalign.run.executors.kubernetes.crd import STAGE_LABEL
from selfalign.run.executors.kubernetes.outcome import job_end
from selfalign.store.local import LocalStore

from .test_real_cluster import Site
from .worlds import PROJECT, World, platform_values

pytestmark = pytest.mark.cluster
KILLS, PER_STAGE = 20, 3


class Process:
    """`selfalign controller`, which can be killed and is started anew."""

    def __init__(self, kubeconfig: str, namespace: str, log: Path) -> None:
        self._command = [
            sys.executable, "-m", "selfalign", "controller", "--kubeconfig", kubeconfig,
            "--namespace", namespace, "--metrics-port", "0",
        ]  # fmt: skip
        self._log = log
        self.starts = 0
        self.start()

    def at_work(self) -> bool:
        """Whether it has begun since it was started last."""
        return self._log.read_text().count('"controller.started"') == self.starts

    def start(self) -> None:
        self.starts += 1
        environment = {
            **os.environ, "PYTHONPATH": str(PROJECT), "SELFALIGN_LOG": "json",
        }  # fmt: skip
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, env=environment, stderr=log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def disturb(site: Site, run: str, choose: random.Random, disturbed: Counter[str]) -> bool:
    """Delete or evict something of the run, unless that stage has had its share: the Job
    controller makes each next pod of a Job wait twice as long. Whether there was anything."""
    jobs = [
        job
        for job in site.cluster.list("jobs", f"selfalign.io/run={run}")
        if job_end(job) is None
        and site.node.pods(name_of(job))
        and disturbed[labels_of(job)[STAGE_LABEL]] < PER_STAGE
    ]
    if not jobs:
        return False
    job = choose.choice(jobs)
    disturbed[labels_of(job)[STAGE_LABEL]] += 1
    (pod, *_) = site.node.pods(name_of(job))
    what = choose.choice(["evict", "delete-pod", "delete-job", "stop"])
    if what == "delete-job":
        site.cluster.delete("jobs", name_of(job), uid=job["metadata"]["uid"])
    elif what == "delete-pod":
        site.cluster.delete("pods", name_of(pod), uid=pod["metadata"]["uid"])
    else:
        site.node.end(pod, 143 if what == "stop" else 137, disrupted=what == "evict")
    return True


def test_kills_and_disruptions_change_no_artifact_and_cost_no_attempt(
    real_cluster: Cluster, real_crd: str, tmp_path: Path
) -> None:
    choose = random.Random(5)
    store = LocalStore(tmp_path / "store")
    site = Site(real_cluster, real_crd, platform_values(store=store.url), store)
    process = Process(real_crd, real_cluster.namespace, tmp_path / "controller.log")
    site.submit("toy", maxAttempts=1)
    disturbed: Counter[str] = Counter()
    kills, steps = 0, 0
    try:
        while not site.status("toy").get("completedAt"):
            steps += 1
            assert steps < 2000, site.status("toy").get("message")
            last = site.status("toy").get("stage") == "promote"
            with contextlib.suppress(Gone, Conflict):
                if not disturb(site, "toy", choose, disturbed) and (kills == KILLS or not last):
                    site.work("toy")
            if kills < KILLS and process.at_work() and choose.random() < 0.3:
                process.kill()
                kills += 1
                process.start()
            time.sleep(0.3)
    finally:
        process.kill()
    assert kills >= KILLS
    assert disturbed.total() >= KILLS
    assert site.status("toy")["verdict"] == "Promoted"
    causes = {row.get("cause") for row in site.status("toy")["attempts"]}
    assert causes <= {None, "disrupted"}
    undisturbed = World(platform=platform_values(store=store.url))
    undisturbed.submit()
    undisturbed.to_the_end()
    keys = [(row["key"], row["digest"]) for row in site.status("toy")["stages"]]
    # All templates have one shard here and three there: how work is shared is no part of a key.
    assert keys == [(row["key"], row["digest"]) for row in undisturbed.status()["stages"]]
