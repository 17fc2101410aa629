"""One contract: the API double, the official client over HTTP, and a real API server."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from selfalign.controller.cluster import (
    Change,
    Cluster,
    ClusterRejected,
    Conflict,
    Gone,
    Resource,
    labels_of,
    name_of,
)
from selfalign.controller.resources import new_run


def a_run(cluster: Cluster, name: str = "toy", **options: Any) -> Resource:
    return cluster.create("alignmentruns", new_run(name, cluster.namespace, {}, **options))


def a_map(name: str, **data: str) -> Resource:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def owned(body: Resource, owner: Resource) -> Resource:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [reference]}}


def test_what_is_created_has_an_identity_and_can_be_read(cluster: Cluster) -> None:
    made = a_run(cluster)
    metadata = made["metadata"]
    assert {"uid", "resourceVersion", "creationTimestamp", "generation"} <= metadata.keys()
    assert metadata["namespace"] == cluster.namespace
    assert cluster.get("alignmentruns", "toy")["metadata"]["uid"] == metadata["uid"]


def test_a_name_is_taken_once(cluster: Cluster) -> None:
    cluster.create("configmaps", a_map("x"))
    with pytest.raises(Conflict):
        cluster.create("configmaps", a_map("x"))


def test_what_is_not_there_is_gone(cluster: Cluster) -> None:
    with pytest.raises(Gone):
        cluster.get("jobs", "none")
    with pytest.raises(Gone):
        cluster.patch("configmaps", "none", {"data": {"a": "b"}})
    with pytest.raises(Gone):
        cluster.replace_status({**new_run("none", cluster.namespace, {}), "status": {}})


def test_a_wrong_object_is_rejected(cluster: Cluster) -> None:
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "wrong"}}
    with pytest.raises(ClusterRejected):
        cluster.create("jobs", body)


def test_a_status_is_written_under_the_version_that_was_read(cluster: Cluster) -> None:
    run = a_run(cluster)
    first = cluster.replace_status({**run, "status": {"message": "one"}})
    with pytest.raises(Conflict):
        cluster.replace_status({**run, "status": {"message": "two"}})
    cluster.replace_status({**first, "status": {"message": "three"}})
    assert cluster.get("alignmentruns", "toy")["status"]["message"] == "three"


def test_a_status_changes_neither_spec_nor_generation(cluster: Cluster) -> None:
    run = a_run(cluster)
    changed = {**run, "spec": {"suspend": True}, "status": {"message": "one"}}
    after = cluster.replace_status(changed)
    assert after["spec"].get("suspend", False) is False
    assert after["metadata"]["generation"] == 1


def test_an_edited_spec_is_a_new_generation_and_keeps_the_status(cluster: Cluster) -> None:
    run = a_run(cluster)
    cluster.replace_status({**run, "status": {"message": "one"}})
    after = cluster.patch("alignmentruns", "toy", {"spec": {"suspend": True}})
    assert after["metadata"]["generation"] == 2
    assert after["status"]["message"] == "one"


def test_a_new_run_has_no_status_whatever_was_sent(cluster: Cluster) -> None:
    body = {**new_run("toy", cluster.namespace, {}), "status": {"verdict": "Promoted"}}
    assert "verdict" not in (cluster.create("alignmentruns", body).get("status") or {})


def test_the_status_that_the_controller_writes_survives_the_crd_s_schema(cluster: Cluster) -> None:
    attempt = {
        "stage": "align", "key": "0123", "number": 3, "condition": "Failed", "cause": "temporary",
        "exitCode": 71, "message": "out of memory", "disrupted": True,
        "startedAt": "2026-11-01T01:00:00Z", "finishedAt": "2026-11-01T02:00:00Z",
    }  # fmt: skip
    stage = {
        "name": "align", "phase": "Failed", "key": "0123", "digest": "ab", "job": "toy-align-3",
        "attempts": 2, "done": 7, "message": "out of memory",
    }  # fmt: skip
    status = {
        "observedGeneration": 1, "stage": "align", "progress": "2/8", "message": "m",
        "stages": [stage], "attempts": [attempt], "startedAt": "2026-11-01T01:00:00Z",
    }  # fmt: skip
    cluster.replace_status({**a_run(cluster), "status": status})
    assert cluster.get("alignmentruns", "toy")["status"] == status


def test_labels_and_fields_select(cluster: Cluster) -> None:
    for name, labels in (("a", {"x": "1"}), ("b", {"x": "2"}), ("c", {})):
        body = a_map(name)
        body["metadata"]["labels"] = labels
        cluster.create("configmaps", body)
    assert {name_of(o) for o in cluster.list("configmaps", "x")} == {"a", "b"}
    assert {name_of(o) for o in cluster.list("configmaps", "x=2")} == {"b"}
    assert {name_of(o) for o in cluster.list("configmaps", fields="metadata.name=c")} == {"c"}
    assert cluster.list("configmaps", "x=3") == []


def test_deleting_goes_by_uid(cluster: Cluster) -> None:
    made = cluster.create("configmaps", a_map("x"))
    cluster.delete("configmaps", "x", uid="00000000-0000-0000-0000-000000000000")
    assert cluster.get("configmaps", "x")["metadata"]["uid"] == made["metadata"]["uid"]
    cluster.delete("configmaps", "x", uid=made["metadata"]["uid"])
    with pytest.raises(Gone):
        cluster.get("configmaps", "x")
    cluster.delete("configmaps", "x", uid=made["metadata"]["uid"])


def test_deleting_a_run_deletes_what_it_owns(cluster: Cluster) -> None:
    run = a_run(cluster)
    cluster.create("configmaps", owned(a_map("toy-config"), run))
    cluster.create("configmaps", a_map("other"))
    going = iter(cluster.watch("configmaps", 90))  # a new CRD takes the collector half a minute
    assert {name_of(change.resource) for change in _until_listed(going)} >= {"toy-config"}
    cluster.delete("alignmentruns", "toy", uid=run["metadata"]["uid"])
    change = next(c for c in going if c and name_of(c.resource) == "toy-config" and c.deleted)
    assert change.deleted
    assert cluster.get("configmaps", "other")


def test_a_watch_shows_what_is_there_then_each_change_and_the_end(cluster: Cluster) -> None:
    cluster.create("configmaps", a_map("x", n="1"))
    changes = iter(cluster.watch("configmaps", 20))
    listed = [name_of(change.resource) for change in _until_listed(changes)]
    assert "x" in listed
    cluster.patch("configmaps", "x", {"data": {"n": "2"}})
    made = cluster.create("configmaps", a_map("y"))
    cluster.delete("configmaps", "y", uid=made["metadata"]["uid"])
    seen = [_next(changes, "x"), _next(changes, "y"), _next(changes, "y")]
    assert [change.deleted for change in seen] == [False, False, True]
    assert seen[0].resource["data"] == {"n": "2"}


def test_a_watch_of_labels_shows_no_others(cluster: Cluster) -> None:
    changes = iter(cluster.watch("configmaps", 20, "mine"))
    assert _until_listed(changes) == []
    cluster.create("configmaps", a_map("other"))
    labelled = a_map("own")
    labelled["metadata"]["labels"] = {"mine": "yes"}
    cluster.create("configmaps", labelled)
    change = next(changes)
    assert change is not None
    assert labels_of(change.resource) == {"mine": "yes"}


def test_a_watch_ends_by_itself(cluster: Cluster) -> None:
    assert [c for c in cluster.watch("leases", 1) if c is not None] == []


def test_two_writers_of_a_lease_do_not_both_succeed(cluster: Cluster) -> None:
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "x", "namespace": cluster.namespace},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 30},
    }
    made = cluster.create("leases", body)
    outcomes: list[str] = []

    def take(who: str) -> None:
        try:
            cluster.replace("leases", {**made, "spec": {**made["spec"], "holderIdentity": who}})
            outcomes.append(who)
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=take, args=(who,)) for who in ("b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("conflict") == 1
    winner = next(who for who in outcomes if who != "conflict")
    assert cluster.get("leases", "x")["spec"]["holderIdentity"] == winner


def _until_listed(changes: Any) -> list[Change]:
    listed = []
    for change in changes:
        if change is None:
            return listed
        listed.append(change)
    raise AssertionError("the list never ended")


def _next(changes: Any, name: str) -> Change:
    return next(c for c in changes if c is not None and name_of(c.resource) == name)
