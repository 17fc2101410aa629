"""The real cluster, through the official client. The only module that imports `kubernetes`.

Objects stay plain dicts, as they are on the wire. The client brings configuration, authentication,
TLS, connections and the watch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError
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
from selfalign.run.executors.kubernetes.crd import GROUP, MANAGER, PLURAL, VERSION

_API_GROUPS = {
    PLURAL: f"apis/{GROUP}/{VERSION}",
    "jobs": "apis/batch/v1",
    "cronjobs": "apis/batch/v1",
    "pods": "api/v1",
    "configmaps": "api/v1",
    "events": "api/v1",
}
_PAGE_SIZE = 500  # client-go's default page
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 20.0
_WATCH_SLACK_SECONDS = 30.0  # beyond the server's own timeout before a watch counts as dead
_SENTENCE_LIMIT = 500
_IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Expired(Exception):
    """The server has forgotten this resource version: list again. Expected."""


def connect(
    namespace: str | None = None, *, context: str | None = None, kubeconfig: str | None = None
) -> KubernetesCluster:
    """Connect as a pod's service account, or as a person by kubeconfig.

    Args:
        namespace: None is the pod's own, or that of the kubeconfig's context.
        context: of the kubeconfig; None is its current one.
        kubeconfig: a file; None is $KUBECONFIG or ~/.kube/config.

    Raises:
        ConfigurationError: no kubeconfig, a broken one, or the client is not installed.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ConfigurationError(
            "the Kubernetes client is not installed",
            remedy="pip install 'selfalign[cluster]'",
        ) from error
    settings = client.Configuration()
    settings.connection_pool_maxsize = 16
    settings.keep_alive = True
    # A person in a pod who brings a kubeconfig means that one.
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    try:
        if in_cluster and kubeconfig is None and context is None:
            config.load_incluster_config(client_configuration=settings)
            found = _IN_CLUSTER_NAMESPACE.read_text().strip()
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
    return KubernetesCluster(namespace or found, client.ApiClient(settings))


class KubernetesCluster:
    """One namespace of a real cluster. Safe to use from several threads."""

    def __init__(self, namespace: str, client: Any) -> None:
        self.namespace = namespace
        self._client = client  # kubernetes.client.ApiClient

    def list(self, kind: str, selector: str = "", fields: str = "") -> Resources:
        return self._list(kind, selector, fields)[0]

    def get(self, kind: str, name: str) -> Resource:
        return self._call("get", kind, "GET", name)

    def create(self, kind: str, body: Resource) -> Resource:
        return self._call("create", kind, "POST", body=body)

    def patch(self, kind: str, name: str, change: Resource) -> Resource:
        return self._call("patch", kind, "PATCH", name, body=change)

    def patch_status(self, run: Resource, status: Resource) -> Resource:
        metadata = run["metadata"]
        # null removes what the new status does not have: a merge patch keeps it otherwise
        removed = {name: None for name in run.get("status") or {} if name not in status}
        change = {
            "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
            "status": {**removed, **status},
        }
        return self._call("patch", f"{PLURAL}/status", "PATCH", metadata["name"], body=change)

    def delete(self, kind: str, name: str, *, uid: str) -> None:
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with contextlib.suppress(Gone, Conflict):
            self._call("delete", kind, "DELETE", name, body=body)

    def watch(self, kind: str, timeout_seconds: int, selector: str = "") -> Iterator[Change | None]:
        from kubernetes import watch
        from kubernetes.client.exceptions import ApiException

        found, version = self._list(kind, selector, "")
        yield from map(Change, found)
        yield None
        stream = watch.Watch().stream(
            self._open_watch,
            kind,
            selector,
            resource_version=version,
            timeout_seconds=timeout_seconds,
        )
        with _network_errors():
            try:
                for event in stream:
                    if event and event.get("type") in ("ADDED", "MODIFIED", "DELETED"):
                        yield Change(event["object"], event["type"] == "DELETED")
            except Expired:
                return
            except ApiException as error:
                if error.status != 410:
                    raise

    def log_lines(
        self, pod: str, *, container: str, follow: bool, tail_lines: int | None = None
    ) -> Iterator[str]:
        from kubernetes.watch.watch import iter_resp_lines

        query: dict[str, str | int] = {"container": container, "follow": str(follow).lower()}
        if tail_lines is not None:
            query["tailLines"] = tail_lines
        # A stage may be silent for long; whoever follows it stops with a signal.
        read_seconds = 3600.0 if follow else _READ_SECONDS
        response = self._send("get", "pods", "GET", f"{pod}/log", query, read_seconds=read_seconds)
        with _network_errors(), contextlib.closing(response):
            buffered = iter_resp_lines(response)
            yield from (line for line in buffered if line)

    def _list(self, kind: str, selector: str, fields: str) -> tuple[Resources, str]:
        query: dict[str, str | int] = {"limit": _PAGE_SIZE}
        if selector:
            query["labelSelector"] = selector
        if fields:
            query["fieldSelector"] = fields
        items: Resources = []
        while True:
            try:
                page = self._call("list", kind, "GET", query=query)
            except Expired:
                query.pop("continue", None)
                items = []
                continue
            items += [item for item in page.get("items") or [] if _is_object(item)]
            about = page.get("metadata") or {}
            if not about.get("continue"):
                return items, str(about.get("resourceVersion") or "")
            query["continue"] = about["continue"]

    def _open_watch(
        self,
        kind: str,
        selector: str,
        *,
        watch: bool,
        resource_version: str,
        timeout_seconds: int,
        _preload_content: bool,
    ) -> Any:
        query: dict[str, str | int] = {
            "watch": str(watch).lower(),
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": timeout_seconds,
        }
        if selector:
            query["labelSelector"] = selector
        read_seconds = timeout_seconds + _WATCH_SLACK_SECONDS
        return self._send("watch", kind, "GET", "", query, read_seconds=read_seconds)

    def _call(
        self,
        verb: str,
        kind: str,
        method: str,
        name: str = "",
        *,
        query: dict[str, str | int] | None = None,
        body: Resource | None = None,
    ) -> Resource:
        query = dict(query or {})
        if method in ("POST", "PATCH"):
            query["fieldManager"] = MANAGER
        response = self._send(verb, kind, method, name, query, body=body)
        with _network_errors(), contextlib.closing(response):
            data = response.data
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ClusterUnavailable(
                f"{verb} {kind} in namespace {self.namespace}: the answer is no Kubernetes object",
                remedy="see that nothing between here and the API server answers in its place",
            )
        return answer

    def _send(
        self,
        verb: str,
        kind: str,
        method: str,
        name: str,
        query: dict[str, str | int],
        *,
        body: Resource | None = None,
        read_seconds: float = _READ_SECONDS,
    ) -> Any:
        """The raw response of a request that succeeded. Raises what a refusal stands for."""
        plural, _, subresource = kind.partition("/")
        parts = [_API_GROUPS[plural], "namespaces", self.namespace, plural, name, subresource]
        headers = {"Accept": "application/json"}
        if body is not None:
            merge = "application/merge-patch+json"
            headers["Content-Type"] = merge if method == "PATCH" else "application/json"
        with _network_errors():
            request = self._request(
                method, "/" + "/".join(filter(None, parts)), query, headers, body
            )
            response = self._client.call_api(
                *request, _request_timeout=(_CONNECT_SECONDS, read_seconds)
            ).response
            if response.status < 300:
                return response
            with contextlib.closing(response):
                data = response.data
        raise refusal(response.status, data, verb=verb, resource=kind, namespace=self.namespace)

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str | int],
        headers: dict[str, str],
        body: Resource | None,
    ) -> Any:
        """The client's own form of a request, with its credentials."""
        return self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )


def _is_object(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("metadata"), dict)


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
    reason, sentence = _sentence(body)
    what = f"{verb} {resource} in namespace {namespace}"
    if status == 404:
        if reason == "NotFound" and verb not in ("list", "watch", "create"):
            return Gone(f"{what}: {sentence}")
        return ClusterRejected(
            f"{what}: the API server knows no such resource or namespace: {sentence}",
            remedy=f"install the platform: make deploy NAMESPACE={namespace}",
        )
    if status == 409:
        return Conflict(f"{what}: {sentence}")
    if status == 410:
        return Expired(sentence)
    if status == 401:
        return ClusterDenied(
            f"{what}: the API server does not accept these credentials",
            remedy="log in to the cluster again; `kubectl auth whoami` must answer",
        )
    if status == 403 and "exceeded quota" in sentence:
        return ClusterUnavailable(
            f"{what}: {sentence}", remedy="free some of the quota or raise it"
        )
    if status == 403:
        remedy = _remedy(sentence, verb, resource, namespace)
        return ClusterDenied(f"{what}: {sentence}", remedy=remedy)
    if status == 429 or status >= 500:
        return ClusterUnavailable(
            f"{what}: the API server answers {status}: {sentence}",
            remedy="see `kubectl get --raw /readyz?verbose`",
        )
    return ClusterRejected(
        f"{what}: the API server finds it wrong ({status}): {sentence}",
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


def _sentence(body: bytes) -> tuple[str, str]:
    """Reason and message of a Status object; nothing of any other body."""
    try:
        status = json.loads(body)
        return str(status.get("reason") or ""), str(status.get("message") or "")[:_SENTENCE_LIMIT]
    except (ValueError, AttributeError, RecursionError):
        return "", "no reason given"
