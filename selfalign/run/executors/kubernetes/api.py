"""The real cluster, through the official client. The only module that imports `kubernetes`.

Objects stay plain dicts, as they are on the wire. The client brings configuration, authentication,
TLS, connections and the watch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError, needing
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.cluster import (
    Change,
    ClusterDenied,
    ClusterRejected,
    ClusterUnavailable,
    Conflict,
    Gone,
    Resource,
    Resources,
)

_API_GROUPS = {
    crd.PLURAL: f"apis/{crd.API_VERSION}",
    "jobs": "apis/batch/v1",
    "cronjobs": "apis/batch/v1",
    "deployments": "apis/apps/v1",
    "controllerrevisions": "apis/apps/v1",
    "inferenceservices": "apis/serving.kserve.io/v1beta1",
    "pods": "api/v1",
    "configmaps": "api/v1",
    "events": "api/v1",
    "selfsubjectreviews": "apis/authentication.k8s.io/v1",
}
_CLUSTER_WIDE = ("selfsubjectreviews",)
_PAGE_SIZE = 500  # client-go's default page
_LIST_ATTEMPTS = 3  # a list that expires while it is read begins anew
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 20.0
_WATCH_SLACK_SECONDS = 30.0  # beyond the server's own timeout before a watch counts as dead
_SENTENCE_LIMIT = 500
# Enough for what the API server takes: objects nested 10,000 deep.
_DEEP_RECURSION, _DEEP_STACK_BYTES = 50_000, 64 * 1024 * 1024
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
Query = dict[str, str | int]


class Expired(Exception):
    """The server has forgotten this resource version: list again. Expected."""


def connect(
    namespace: str | None = None, *, context: str | None = None, kubeconfig: str | None = None
) -> Cluster:
    """Connect as a pod's service account, or as a person by kubeconfig.

    Args:
        namespace: None is the pod's own, or that of the kubeconfig's context.
        context: of the kubeconfig; None is its current one.
        kubeconfig: a file; None is $KUBECONFIG or ~/.kube/config.

    Raises:
        ConfigurationError: no kubeconfig, a broken one, or the client is not installed.
    """
    with needing("a cluster needs the package kubernetes", "cluster"):
        from kubernetes import client, config
    settings = client.Configuration()
    settings.keep_alive = True
    # A person in a pod who brings a kubeconfig means that one.
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    try:
        if in_cluster and kubeconfig is None and context is None:
            config.load_incluster_config(client_configuration=settings)
            found = _NAMESPACE_FILE.read_text().strip()
        else:
            config.load_kube_config(kubeconfig, context, settings, persist_config=False)
            contexts, active = config.list_kube_config_contexts(kubeconfig)
            chosen = next((c for c in contexts if c["name"] == context), active) or {}
            found = str(chosen.get("context", {}).get("namespace") or "default")
    except (config.ConfigException, OSError) as error:
        raise ConfigurationError(
            f"no usable kubeconfig: {str(error).splitlines()[0][:200]}",
            remedy="set KUBECONFIG to your cluster's file; `kubectl cluster-info` must answer",
        ) from error
    return Cluster(namespace or found, client.ApiClient(settings))


class Cluster:
    """One namespace of a cluster. Safe to use from several threads.

    Kinds are plural names: alignmentruns, jobs, pods, cronjobs, configmaps, events, deployments,
    inferenceservices. Every method raises ClusterUnavailable or ClusterDenied where that is the
    cause. The tests have another one, in memory, and both pass one contract suite.
    """

    def __init__(self, namespace: str, client: Any) -> None:
        self.namespace = namespace
        self._client = client  # kubernetes.client.ApiClient

    def list(self, kind: str, selector: str = "", fields: str = "") -> Resources:
        """All objects of a kind that match a label selector and a field selector."""
        return self._list(kind, selector, fields)[0]

    def get(self, kind: str, name: str) -> Resource:
        """One object. Raises Gone."""
        return self._object("get", kind, name)

    def create(self, kind: str, body: Resource) -> Resource:
        """Raises Conflict when the name is taken, ClusterRejected when the object is wrong."""
        return self._object("create", kind, body=body)

    def patch(self, kind: str, name: str, change: Resource) -> Resource:
        """Apply a JSON merge patch. Raises Gone."""
        return self._object("patch", kind, name, body=change)

    def patch_status(self, run: Resource, status: Resource) -> Resource:
        """Replace an AlignmentRun's status. Raises Gone, and Conflict when another version of the
        run is stored than the one given."""
        metadata = {name: run["metadata"][name] for name in ("uid", "resourceVersion")}
        # a merge patch keeps what the new status does not have, unless it is null
        removed = {name: None for name in run.get("status") or {} if name not in status}
        body = {"metadata": metadata, "status": {**removed, **status}}
        return self._object("patch", f"{crd.PLURAL}/status", run["metadata"]["name"], body=body)

    def delete(self, kind: str, name: str, *, uid: str) -> None:
        """Delete this very object and, in the background, what it owns; it may be gone already."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with contextlib.suppress(Gone, Conflict):
            self._call("delete", kind, name, body=body)

    def watch(self, kind: str, timeout_seconds: int, selector: str = "") -> Iterator[Change | None]:
        """All objects, None when that list is complete, then each as it changes.

        Ends at the timeout, or when the server no longer has the history: list again then.
        """
        from kubernetes import watch
        from kubernetes.client.exceptions import ApiException

        found, version = self._list(kind, selector, "")
        yield from map(Change, found)
        yield None

        def begin(*, timeout_seconds: int, **_of_watch: object) -> Any:
            query: Query = {"watch": "true", "allowWatchBookmarks": "true"}
            query |= {"resourceVersion": version, "timeoutSeconds": timeout_seconds}
            query |= {"labelSelector": selector} if selector else {}
            read_seconds = timeout_seconds + _WATCH_SLACK_SECONDS
            return self._send("watch", kind, "", query, read_seconds=read_seconds)

        with _network_errors():
            try:
                for event in watch.Watch().stream(begin, timeout_seconds=timeout_seconds):
                    known = event and event.get("type") in ("ADDED", "MODIFIED", "DELETED")
                    if known and _is_object(event["object"]):
                        yield Change(event["object"], event["type"] == "DELETED")
            except Expired:
                return
            except (TypeError, KeyError, RecursionError) as error:  # the client reads on trust
                raise self._no_object("watch", kind) from error
            except ApiException as error:
                if error.status != 410:
                    raise

    def log_lines(
        self, pod: str, *, container: str, follow: bool, tail_lines: int | None = None
    ) -> Iterator[str]:
        """Lines of a container's log; with `follow` until the container ends. Raises Gone."""
        from kubernetes.watch.watch import iter_resp_lines

        query: Query = {"container": container, "follow": str(follow).lower()}
        query |= {} if tail_lines is None else {"tailLines": tail_lines}
        # A stage may be silent for long; whoever follows it stops with a signal.
        read_seconds = 3600.0 if follow else _READ_SECONDS
        response = self._send("get", "pods/log", pod, query, read_seconds=read_seconds)
        with _network_errors(), contextlib.closing(response):
            yield from (line for line in iter_resp_lines(response) if line)

    def user(self) -> str | None:
        """Whom the API server takes this client for; None where it does not say."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = self._call("create", "selfsubjectreviews", body=body)
        name = ((answer.get("status") or {}).get("userInfo") or {}).get("username")
        return str(name) if name else None

    def _list(self, kind: str, selector: str, fields: str) -> tuple[Resources, str]:
        query: Query = {"limit": _PAGE_SIZE, "labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        items: Resources = []
        attempts = _LIST_ATTEMPTS
        while attempts:
            try:
                page = self._call("list", kind, query=query)
            except Expired:
                query.pop("continue", None)
                items, attempts = [], attempts - 1
                continue
            found, about = page.get("items") or [], page.get("metadata") or {}
            if not isinstance(found, list) or not isinstance(about, dict):
                raise self._no_object("list", kind)
            items += filter(_is_object, found)
            more = about.get("continue")
            if not more:
                return items, str(about.get("resourceVersion") or "")
            if more == query.get("continue"):
                break
            query["continue"] = str(more)
        raise ClusterUnavailable(
            f"list {kind} in namespace {self.namespace}: the API server begins a list and never "
            "gives its end",
            remedy="see `kubectl get --raw /readyz?verbose`",
        )

    def _object(
        self, verb: str, kind: str, name: str = "", body: Resource | None = None
    ) -> Resource:
        answer = self._call(verb, kind, name, body=body)
        if not _is_object(answer):
            raise self._no_object(verb, kind)
        return answer

    def _no_object(self, verb: str, kind: str) -> ClusterUnavailable:
        return ClusterUnavailable(
            f"{verb} {kind} in namespace {self.namespace}: the answer is no Kubernetes object",
            remedy="see that no proxy answers in the API server's place",
        )

    def _call(
        self,
        verb: str,
        kind: str,
        name: str = "",
        query: Query | None = None,
        body: Resource | None = None,
    ) -> Resource:
        response = self._send(verb, kind, name, query or {}, body=body)
        with _network_errors(), contextlib.closing(response):
            data = response.data
        answer = _decode(data)
        if not isinstance(answer, dict):
            raise self._no_object(verb, kind)
        return answer

    def _send(
        self,
        verb: str,
        kind: str,
        name: str,
        query: Query,
        *,
        body: Resource | None = None,
        read_seconds: float = _READ_SECONDS,
    ) -> Any:
        """The raw response of a request that succeeded. Raises what a refusal stands for."""
        method = {"create": "POST", "patch": "PATCH", "delete": "DELETE"}.get(verb, "GET")
        if method in ("POST", "PATCH"):
            query = {**query, "fieldManager": crd.MANAGER}
        plural, _, subresource = kind.partition("/")
        place = [] if plural in _CLUSTER_WIDE else ["namespaces", self.namespace]
        parts = [_API_GROUPS[plural], *place, plural, name, subresource]
        merge = "merge-patch+json" if method == "PATCH" else "json"
        headers = {"Accept": "application/json", "Content-Type": f"application/{merge}"}
        with _network_errors():
            request = self._client.param_serialize(
                method,
                "/" + "/".join(filter(None, parts)),
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            timeout = (_CONNECT_SECONDS, read_seconds)
            response = self._client.call_api(*request, _request_timeout=timeout).response
            if response.status < 300:
                return response
            with contextlib.closing(response):
                data = response.data
        raise refusal(response.status, data, verb=verb, resource=kind, namespace=self.namespace)


def _is_object(answer: Any) -> bool:
    """Whether an answer is an object of Kubernetes, as far as everything relies on it."""
    if not isinstance(answer, dict):
        return False
    parts = [answer.get(part) or {} for part in ("metadata", "spec", "status", "data")]
    return all(isinstance(part, dict) for part in parts) and isinstance(parts[0].get("name"), str)


def _decode(data: bytes) -> Any:
    """The JSON value; None where there is none.

    The API server takes objects nested 10,000 deep. One such run in a list must not hide the
    others, so where this thread's stack is too small, one with a larger stack decodes.
    """
    with contextlib.suppress(ValueError):
        try:
            return json.loads(data)
        except RecursionError:
            return _decode_deep(data)
    return None


def _decode_deep(data: bytes) -> Any:
    limit, stack = sys.getrecursionlimit(), threading.stack_size(_DEEP_STACK_BYTES)
    found: list[Any] = []

    def decode() -> None:
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(data))

    sys.setrecursionlimit(max(limit, _DEEP_RECURSION))
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(stack)
    return found[0] if found else None


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Translate what the client raises when the API server cannot be reached."""
    import urllib3.exceptions
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config import ConfigException

    try:
        yield
    except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
        raise ClusterUnavailable(
            f"the API server cannot be reached: {type(error).__name__}",
            remedy="check that `kubectl cluster-info` answers",
        ) from error
    except ConfigException as error:
        raise ClusterDenied(
            "the kubeconfig's credentials cannot be loaded",
            remedy="log in to the cluster again; `kubectl auth whoami` must answer",
        ) from error


def refusal(status: int, body: bytes, *, verb: str, resource: str, namespace: str) -> Exception:
    """The error that an answer other than 2xx stands for.

    Messages hold the verb, the resource and the server's own sentence, never headers or bodies,
    because those may carry credentials.
    """
    try:
        answer = json.loads(body)
        reason, text = str(answer.get("reason") or ""), str(answer.get("message") or "")
    except (ValueError, AttributeError, RecursionError):
        reason, text = "", "no reason given"
    what = f"{verb} {resource} in namespace {namespace}"
    sentence = f"{what}: {text[:_SENTENCE_LIMIT]}"
    if status == 404 and reason == "NotFound" and verb not in ("list", "watch", "create"):
        return Gone(sentence)
    if status == 409:
        return Conflict(sentence)
    if status == 410 and verb in ("list", "watch"):
        return Expired(sentence)
    if status == 404:
        return ClusterRejected(
            f"{what}: the API server knows no such resource or namespace: {text}",
            remedy=f"install the platform: make deploy NAMESPACE={namespace}",
        )
    if status == 401:
        return ClusterDenied(
            f"{what}: the API server does not accept these credentials",
            remedy="log in to the cluster again; `kubectl auth whoami` must answer",
        )
    if status == 403 and "exceeded quota" in text:
        return ClusterUnavailable(sentence, remedy="free some of the quota or raise it")
    if status == 403:
        return ClusterDenied(sentence, remedy=_remedy(text, verb, resource, namespace))
    if status in (410, 429) or status >= 500:
        return ClusterUnavailable(
            f"{what}: the API server answers {status}: {text[:_SENTENCE_LIMIT]}",
            remedy="see `kubectl get --raw /readyz?verbose`",
        )
    return ClusterRejected(
        f"{what}: the API server finds it wrong ({status}): {text[:_SENTENCE_LIMIT]}",
        remedy="correct the stage's values or the AlignmentRun, and deploy again",
    )


def _remedy(sentence: str, verb: str, resource: str, namespace: str) -> str:
    if "being terminated" in sentence:
        return f"namespace {namespace} is being deleted: use another one"
    if "admission webhook" in sentence:
        return "a policy of the cluster refuses it: correct what it names, or ask its owner"
    return (
        f"allow it: the account needs verb {verb} on {resource} (charts/selfalign installs the "
        f"Role); check with `kubectl auth can-i {verb} {resource} -n {namespace}`"
    )
