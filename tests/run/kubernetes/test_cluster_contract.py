"""One contract: the API double, the official client over HTTP, and a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Change,
    ClusterRejected,
    Conflict,
    Gone,
    Resource,
    labels_of,
    name_of,
    owned_by,
)
from selfalign.run.executors.kubernetes.crd import new_run, status_of, to_resource_status

from .worlds import full_status

UNKNOWN = {"uid": "00000000-0000-0000-0000-000000000000", "resourceVersion": "1"}


def a_run(cluster: Cluster, name: str = "toy", **options: Any) -> Resource:
    return cluster.create("alignmentruns", new_run(name, cluster.namespace, {}, **options))


def a_map(name: str, **data: str) -> Resource:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def owned(body: Resource, owner: Resource) -> Resource:
    return {**body, "metadata": {**body["metadata"], "ownerReferences": owned_by(owner)}}


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
    nobody = {**a_run(cluster), "metadata": {**a_map("none")["metadata"], **UNKNOWN}}
    with pytest.raises(Gone):
        cluster.patch_status(nobody, {"message": "x"})


def test_a_wrong_object_is_rejected(cluster: Cluster) -> None:
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "wrong"}}
    with pytest.raises(ClusterRejected):
        cluster.create("jobs", body)


def test_a_status_is_written_under_the_version_that_was_read(cluster: Cluster) -> None:
    run = a_run(cluster)
    first = cluster.patch_status(run, {"message": "one", "stage": "align"})
    with pytest.raises(Conflict):
        cluster.patch_status(run, {"message": "two"})
    cluster.patch_status(first, {"message": "three"})
    assert cluster.get("alignmentruns", "toy")["status"] == {"message": "three"}


def test_a_status_is_not_written_to_a_namesake(cluster: Cluster) -> None:
    run = a_run(cluster)
    cluster.delete("alignmentruns", "toy", uid=run["metadata"]["uid"])
    a_run(cluster)
    with pytest.raises(Conflict):
        cluster.patch_status(run, {"message": "one"})


def test_a_status_changes_neither_spec_nor_generation(cluster: Cluster) -> None:
    run = a_run(cluster)
    after = cluster.patch_status({**run, "spec": {"suspend": True}}, {"message": "one"})
    assert after["spec"].get("suspend", False) is False
    assert after["metadata"]["generation"] == 1


def test_an_edited_spec_is_a_new_generation_and_keeps_the_status(cluster: Cluster) -> None:
    run = a_run(cluster)
    cluster.patch_status(run, {"message": "one"})
    after = cluster.patch("alignmentruns", "toy", {"spec": {"suspend": True}})
    assert after["metadata"]["generation"] == 2
    assert after["status"]["message"] == "one"


def test_a_new_run_has_no_status_whatever_was_sent(cluster: Cluster) -> None:
    body = {**new_run("toy", cluster.namespace, {}), "status": {"verdict": "Promoted"}}
    assert "verdict" not in (cluster.create("alignmentruns", body).get("status") or {})


def test_the_status_that_the_controller_writes_survives_the_crd_s_schema(cluster: Cluster) -> None:
    moment = "2026-11-01T01:00:00Z"
    status = full_status("toy")
    body = to_resource_status(status, {}, accepted=True, generation=1, moment=moment)
    cluster.patch_status(a_run(cluster), body)
    found = cluster.get("alignmentruns", "toy")
    assert found["status"] == body
    assert status_of(found) == status


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
    assert labels_of(change.resource) == {"mine": "yes"}


def test_a_watch_ends_by_itself(cluster: Cluster) -> None:
    assert [c for c in cluster.watch("jobs", 1) if c is not None] == []


def _until_listed(changes: Any) -> list[Change]:
    listed = []
    for change in changes:
        if change is None:
            return listed
        listed.append(change)
    raise AssertionError("the list never ended")


def _next(changes: Any, name: str) -> Change:
    return next(c for c in changes if c is not None and name_of(c.resource) == name)
