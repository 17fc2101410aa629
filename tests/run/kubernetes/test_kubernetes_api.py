"""What the official client's API server may answer, and what becomes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster, connect, refusal
from selfalign.run.executors.kubernetes.cluster import (
    ClusterDenied,
    ClusterRejected,
    ClusterUnavailable,
    Conflict,
    Gone,
    Resource,
    name_of,
)

from .api_server import Answer, ApiServer


def config_map(name: str) -> Resource:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {}}


def test_the_api_server_says_who_this_is(api_server: ApiServer, http_cluster: Cluster) -> None:
    review = {"kind": "SelfSubjectReview", "status": {"userInfo": {"username": "anna"}}}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews?"
    api_server.answers.append(Answer("POST", path, 201, raw=json.dumps(review)))
    assert http_cluster.user() == "anna"
    api_server.answers.append(Answer("POST", path, 201, raw="{}"))
    assert http_cluster.user() is None


def test_a_list_is_read_page_by_page(
    api_server: ApiServer, http_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.run.executors.kubernetes.api._PAGE_SIZE", 3)
    for number in range(7):
        http_cluster.create("configmaps", config_map(f"m{number}"))
    api_server.requests.clear()
    assert len(http_cluster.list("configmaps")) == 7
    assert [query.get("continue") for _, _, query in api_server.requests] == [None, "3", "6"]


def test_a_list_whose_continuation_expired_starts_again(
    api_server: ApiServer, http_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.run.executors.kubernetes.api._PAGE_SIZE", 3)
    for number in range(7):
        http_cluster.create("configmaps", config_map(f"m{number}"))
    api_server.answers.append(Answer("GET", "continue=3", 410, "too old", "Expired"))
    assert len({name_of(found) for found in http_cluster.list("configmaps")}) == 7


def test_a_watch_that_fell_behind_ends_so_that_its_reader_lists_again(
    api_server: ApiServer, http_cluster: Cluster
) -> None:
    changes = iter(http_cluster.watch("configmaps", 20))
    assert next(changes) is None
    api_server.cluster.create("configmaps", config_map("missed"))
    api_server.cluster.compact()
    assert [c for c in changes if c is not None and name_of(c.resource) != "missed"] == []
    assert name_of(next(iter(http_cluster.watch("configmaps", 20))).resource) == "missed"


@pytest.mark.parametrize(
    ("status", "contains", "raises"),
    [
        (410, "watch=true", False),
        (500, "watch=true", True),
        (429, "watch=true", True),
        (503, "limit=", True),
    ],
)
def test_a_watch_that_is_refused_ends_at_once(
    api_server: ApiServer, http_cluster: Cluster, status: int, contains: str, raises: bool
) -> None:
    api_server.answers.append(Answer("GET", contains, status, "not now", "Any"))
    if raises:
        with pytest.raises(ClusterUnavailable):
            list(http_cluster.watch("configmaps", 20))
    else:
        assert list(http_cluster.watch("configmaps", 20)) == [None]


def test_a_watch_asks_for_bookmarks_and_a_timeout_and_shows_no_bookmark(
    api_server: ApiServer, http_cluster: Cluster
) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "5"}}}
    api_server.answers.append(Answer("GET", "watch=true", 200, events=[bookmark]))
    shown = list(http_cluster.watch("configmaps", 1, "mine"))
    assert shown[0] is None
    assert all(change is None for change in shown)
    query = next(q for _, _, q in api_server.requests if q.get("watch") == "true")
    assert query["allowWatchBookmarks"] == "true"
    assert query["timeoutSeconds"] == "1"
    assert query["labelSelector"] == "mine"
    assert query["resourceVersion"].isdigit()


def test_writes_name_their_field_manager(api_server: ApiServer, http_cluster: Cluster) -> None:
    http_cluster.create("configmaps", config_map("x"))
    method, _, query = api_server.requests[-1]
    assert (method, query["fieldManager"]) == ("POST", "selfalign-controller")


def test_a_refusal_by_rbac_names_verb_resource_and_remedy(
    api_server: ApiServer, http_cluster: Cluster
) -> None:
    message = 'jobs.batch is forbidden: User "x" cannot create resource "jobs"'
    api_server.answers.append(Answer("POST", "/jobs", 403, message, "Forbidden"))
    with pytest.raises(ClusterDenied) as caught:
        http_cluster.create("jobs", {"metadata": {"name": "x"}, "spec": {}})
    assert "create jobs in namespace selfalign" in caught.value.message
    assert "kubectl auth can-i create jobs -n selfalign" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ('admission webhook "policy" denied the request', "policy"),
        ("unable to create: namespace is being terminated", "being deleted"),
    ],
)
def test_other_refusals_have_remedies_of_their_own(message: str, remedy: str) -> None:
    body = f'{{"message": "{message}"}}'.replace('"policy"', "policy").encode()
    error = refusal(403, body, verb="create", resource="jobs", namespace="ns")
    assert isinstance(error, ClusterDenied)
    assert remedy in str(error.remedy)


@pytest.mark.parametrize(
    ("status", "verb", "reason", "expected"),
    [
        (404, "get", "NotFound", Gone),
        (404, "list", "NotFound", ClusterRejected),
        (404, "get", "", ClusterRejected),
        (409, "create", "AlreadyExists", Conflict),
        (410, "get", "Gone", ClusterUnavailable),
        (401, "get", "Unauthorized", ClusterDenied),
        (403, "create", "Forbidden: exceeded quota", ClusterUnavailable),
        (422, "create", "Invalid", ClusterRejected),
        (400, "create", "BadRequest", ClusterRejected),
        (429, "list", "TooManyRequests", ClusterUnavailable),
        (500, "list", "InternalError", ClusterUnavailable),
        (503, "list", "ServiceUnavailable", ClusterUnavailable),
        (504, "create", "Timeout", ClusterUnavailable),
    ],
)
def test_every_answer_has_its_meaning(
    status: int, verb: str, reason: str, expected: type[Exception]
) -> None:
    body = f'{{"reason": "{reason}", "message": "{reason}"}}'.encode()
    assert type(refusal(status, body, verb=verb, resource="jobs", namespace="ns")) is expected


def test_an_answer_that_is_no_status_is_not_repeated() -> None:
    page = b"<html>Authorization: Bearer abc</html>"
    error = refusal(502, page, verb="get", resource="jobs", namespace="ns")
    assert "Bearer" not in str(error)


def test_a_missing_crd_says_how_to_install_it(api_server: ApiServer, http_cluster: Cluster) -> None:
    api_server.answers.append(
        Answer("GET", "alignmentruns", 404, "could not find the resource", "NotFound")
    )
    with pytest.raises(ClusterRejected) as caught:
        http_cluster.list("alignmentruns")
    assert caught.value.remedy == "install the platform: make deploy NAMESPACE=selfalign"


def test_an_api_server_that_is_gone_is_unavailable_and_no_secret_is_told(
    api_server: ApiServer, http_cluster: Cluster
) -> None:
    api_server.answers.append(Answer("POST", "/configmaps", 0))
    with pytest.raises(ClusterUnavailable) as caught:
        http_cluster.create("configmaps", config_map("x"))
    cause = caught.value.__cause__
    assert cause is not None
    assert "secret" not in str(caught.value) + str(cause)


def test_the_token_is_sent_and_never_told(api_server: ApiServer, http_cluster: Cluster) -> None:
    api_server.answers.append(Answer("GET", "limit=", 500, "etcd", "InternalError"))
    with pytest.raises(ClusterUnavailable) as caught:
        list(http_cluster.watch("configmaps", 1))
    assert api_server.headers[0]["authorization"] == "Bearer a-secret-token"
    assert "a-secret-token" not in str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize(
    "body",
    [
        *("<html>log in</html>", "", "null", "[]", "{" * 200_000, "{}"),
        *('{"items": 5}', '{"items": [null, 3, {}]}', '{"metadata": "x"}'),
    ],
)
def test_an_answer_that_is_no_kubernetes_object_is_an_error_or_an_empty_list(
    api_server: ApiServer, http_cluster: Cluster, body: str
) -> None:
    api_server.answers.append(Answer("GET", "limit=", 200, raw=body))
    if body in ("{}", '{"items": [null, 3, {}]}'):
        assert http_cluster.list("configmaps") == []
    else:
        with pytest.raises(ClusterUnavailable, match="no Kubernetes object"):
            http_cluster.list("configmaps")
    api_server.answers.append(Answer("GET", "configmaps/x", 200, raw=body))
    with pytest.raises(ClusterUnavailable, match="no Kubernetes object"):
        http_cluster.get("configmaps", "x")


@pytest.mark.parametrize(
    "line", ["5", '{"type": "ERROR"}', '{"type": "MODIFIED"}', "[" * 100_000], ids=lambda v: v[:20]
)
def test_a_watch_of_something_else_is_an_error(
    api_server: ApiServer, http_cluster: Cluster, line: str
) -> None:
    api_server.answers.append(Answer("GET", "watch=true", 200, raw=line + "\n"))
    with pytest.raises(ClusterUnavailable, match="no Kubernetes object"):
        list(http_cluster.watch("configmaps", 1))


@pytest.mark.parametrize(
    ("status", "body"),
    [(410, '{"reason": "Expired"}'), (200, '{"items": [], "metadata": {"continue": "same"}}')],
)
def test_a_list_that_never_ends_is_given_up(
    api_server: ApiServer, http_cluster: Cluster, status: int, body: str
) -> None:
    api_server.answers.extend(Answer("GET", "limit=", status, raw=body) for _ in range(9))
    with pytest.raises(ClusterUnavailable, match="never gives its end"):
        http_cluster.list("configmaps")
    assert len(api_server.requests) <= 3


def test_a_run_nested_thousands_deep_hides_no_other(
    api_server: ApiServer, http_cluster: Cluster
) -> None:
    limit = sys.getrecursionlimit()
    deep = '{"metadata": {"name": "deep"}, "spec": ' + '{"a":' * 9_900 + "1" + "}" * 9_901
    page = '{"items": [%s, {"metadata": {"name": "other"}}]}' % deep  # noqa: UP031 - braces
    api_server.answers.append(Answer("GET", "limit=", 200, raw=page))
    found = http_cluster.list(crd.PLURAL)
    assert [name_of(run) for run in found] == ["deep", "other"]
    assert sys.getrecursionlimit() == limit


def test_a_pod_s_log_comes_line_by_line(api_server: ApiServer, http_cluster: Cluster) -> None:
    api_server.cluster.create("pods", {"metadata": {"name": "p"}})
    api_server.cluster.logs["p"] = ["one", "zwei – ü", "three"]
    lines = http_cluster.log_lines("p", container="stage", follow=True)
    assert list(lines) == ["one", "zwei – ü", "three"]
    tail = http_cluster.log_lines("p", container="stage", follow=False, tail_lines=1)
    assert list(tail) == ["three"]
    with pytest.raises(Gone):
        list(http_cluster.log_lines("none", container="stage", follow=False))


def test_the_namespace_is_the_given_one_or_the_context_s(
    api_server: ApiServer, tmp_path: Path
) -> None:
    kubeconfig = str(api_server.kubeconfig(tmp_path / "config"))
    assert connect(kubeconfig=kubeconfig).namespace == "selfalign"
    assert connect("other", kubeconfig=kubeconfig).namespace == "other"


def test_no_kubeconfig_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(kubeconfig=str(tmp_path / "none"))
    assert "KUBECONFIG" in str(caught.value.remedy)


def test_a_broken_kubeconfig_is_said_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("apiVersion: v1\nkind: Config\nusers: [{name: x, user: {token: hunter2}}]\n")
    with pytest.raises(ConfigurationError) as caught:
        connect(kubeconfig=str(path))
    assert "hunter2" not in str(caught.value)
