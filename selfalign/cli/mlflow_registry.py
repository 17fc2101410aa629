"""The promoted model as a version in MLflow's model registry, keyed by its digest.

    promoted model -> registered model NAME, one version for each digest, its alias `current`

The version's source is the model's directory in the store; nothing is copied.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from selfalign.errors import ConfigurationError, DataError, StoreDenied, StoreUnavailable, needing
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.serving.directory import directory_of, read_served
from selfalign.stages.models import current_model
from selfalign.store.artifact import read_file_as, read_manifest
from selfalign.store.base import Store
from selfalign.store.pointer import Pointer, read_pointer

DIGEST_TAG = "selfalign.digest"
ALIAS = "current"
_PAGE_SIZE = 200
_DENIED = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
_WRONG = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"}


def register(store: Store, uri: str, name: str) -> str:
    """Register the promoted model once, and move the alias to it.

    Args:
        uri: of the registry, as MLflow takes it, such as https://... .
        name: of the registered model; made where it does not exist.

    Returns:
        The version.

    Raises:
        ConfigurationError: nothing is promoted, or MLflow is not installed or refuses the request.
        StoreDenied, StoreUnavailable: the registry refuses the credentials, or fails.
    """
    model = current_model(store)
    if read_served(store, model.digest) is None:
        raise ConfigurationError(
            f"{store.url}/{directory_of(model.digest)}: is not there or not complete, so a version "
            "would have no source",
            remedy="promote a model with this version of selfalign",
        )
    if uri.startswith("http") and not store.url.startswith("s3://"):
        raise ConfigurationError(
            f"--mlflow: an MLflow server takes no directory ({store.url}) as a version's source",
            remedy="register from a store in a bucket (s3://...)",
        )
    current = read_pointer(store)
    assert current is not None  # `current_model` read it
    tags = _tags(store, current.pointer)
    client, failure = _client(uri)
    try:
        versions = _versions(client, name, model.digest)
        if versions is None:
            client.create_registered_model(name, description="Promoted by selfalign's gate")
        if not versions:
            source = f"{store.url}/{directory_of(model.digest)}"
            made = client.create_model_version(name, source, tags=tags, await_creation_for=0)
            # Two at once: the first one's stands. A search may not know the newest one yet.
            found = {made.version, *(_versions(client, name, model.digest) or [])}
            versions = sorted(found, key=int)
            for later in versions[1:]:
                client.delete_model_version(name, later)
        if client.get_registered_model(name).aliases.get(ALIAS) != versions[0]:
            client.set_registered_model_alias(name, ALIAS, versions[0])
    except failure as error:
        raise _translated(error) from error
    return str(versions[0])


def _tags(store: Store, pointer: Pointer) -> dict[str, str]:
    """What a version says: whose model it is, and the final model's overall scores."""
    model = pointer.model
    tags = {
        DIGEST_TAG: model.digest,
        "selfalign.artifact": f"{model.artifact}/{model.key}",
        "selfalign.promoted_at": pointer.moved_at,
        "selfalign.run": pointer.run or "",
    }
    promotion = pointer.promotion and read_manifest(store, "promotion", pointer.promotion)
    if not promotion:  # a rollback: scores are of the evaluation that promoted
        return tags
    promotion.parent_digest("evaluation")  # raises for a manifest that names none
    key = promotion.parents["evaluation"].key
    evaluation = read_manifest(store, "evaluation", key)
    if evaluation is None:
        raise DataError(
            f"{store.url}: evaluation {key} is gone, which the promotion names",
            remedy="restore it; what promoted models are made of must be kept from expiry",
        )
    summary = read_file_as(store, evaluation, "summary.json", EvaluationSummary)
    for row in summary.metrics:
        if row.model == "final" and row.kind is None and row.mean is not None:
            interval = "" if row.low is None else f" [{row.low:.4f}, {row.high:.4f}]"
            tags[f"selfalign.score.{row.metric}"] = f"{row.mean:.4f}{interval}"
    return tags


def _client(uri: str) -> tuple[Any, type[Exception]]:
    """MLflow's client and its exception."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports each use to its makers
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    with needing("--mlflow needs MLflow's client", "mlflow"):
        mlflow = importlib.import_module("mlflow")
        failure: type[Exception] = importlib.import_module("mlflow.exceptions").MlflowException
    try:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri), failure
    except failure as error:
        raise _translated(error) from error


def _versions(client: Any, name: str, digest: str) -> list[str] | None:
    """Versions of this digest, oldest first; None where the registered model does not exist."""
    quoted = name.replace("'", "''")
    if not client.search_registered_models(filter_string=f"name = '{quoted}'"):
        return None
    found, token = [], None
    while True:
        page = client.search_model_versions(
            f"name = '{quoted}'", max_results=_PAGE_SIZE, page_token=token
        )
        found += [v.version for v in page if (v.tags or {}).get(DIGEST_TAG) == digest]
        token = page.token
        if not token:
            return sorted(found, key=int)


def _translated(error: Exception) -> Exception:
    code = str(getattr(error, "error_code", ""))
    said = f"--mlflow: {' '.join(str(error).split())[:300]}"
    if code in _DENIED:
        remedy = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD"
        return StoreDenied(said, remedy=remedy)
    if code in _WRONG:
        return ConfigurationError(said, remedy="name an MLflow server with a model registry")
    return StoreUnavailable(said, remedy="see that the MLflow server answers; then run it again")
