"""A year of nights behind it, the controller is as quick and as small as on the first."""

from __future__ import annotations

import json
import re
import time

import pytest

from .site import Site, kubectl, until

pytestmark = pytest.mark.cluster
FINISHED, FIRST_STATUS_SECONDS, MEMORY_MIB = 200, 5.0, 128


def test_a_new_run_does_not_wait_for_200_finished_ones(site: Site) -> None:
    items = [
        {
            "apiVersion": "selfalign.io/v1alpha1",
            "kind": "AlignmentRun",
            "metadata": {"name": f"old-{number}"},
            "spec": {"config": {"align": {"sampling": {"temprature": number}}}},
        }
        for number in range(FINISHED)
    ]
    kubectl(
        "-n",
        site.namespace,
        "create",
        "-f",
        "-",
        stdin={"apiVersion": "v1", "kind": "List", "items": items},
    )
    until(
        lambda: (
            sum(
                bool((run.get("status") or {}).get("completedAt"))
                for run in site.cluster.list("alignmentruns")
            )
            == FINISHED
        ),
        "the runs to end",
        300,
    )
    site.renew_controller_pod()
    until(site.controller_is_ready, "another controller", 120)
    started = time.monotonic()
    site.create_run("new")
    until(lambda: site.status("new").get("stages"), "its first status", 60)
    waited = time.monotonic() - started
    pod = site.cluster.list("pods", "app.kubernetes.io/component=controller")[-1]
    status = kubectl(
        "-n", site.namespace, "exec", pod["metadata"]["name"], "--", "cat", "/proc/1/status"
    )
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
    print(json.dumps({"first_status_seconds": round(waited, 2), "peak_mib": round(peak, 1)}))
    assert waited < FIRST_STATUS_SECONDS
    assert peak < MEMORY_MIB
