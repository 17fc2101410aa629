"""Charts rendered once per set of values by Helm's own engine; the strict check of manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.deploy import helm, releases
from selfalign.deploy.images import VARIANTS
from selfalign.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "charts/selfalign/files/alignmentruns.selfalign.io.yaml"
NAMESPACE = "somewhere"
# The oldest version supported (KEP-3998, KEP-3939 and podReplacementPolicy stable) and the newest
# one that kubernetes-validate knows.
VERSIONS = ("1.34", "1.37")
# Kinds of other projects, whose schemas no package ships; they are installed only where asked for.
UNCHECKED_GROUPS = frozenset({"monitoring.coreos.com"})
Manifest = dict[str, Any]


def renderings() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """File, chart, release and values: every file in ci/, every stage in every variant."""
    for path in sorted((ROOT / "charts").glob("*/ci/*-values.yaml")):
        chart, values = path.parts[-3], helm.read_values(path)
        release = (
            chart if chart == "selfalign" else releases.release_name(values.get("stage", chart))
        )
        yield "/".join(path.parts[-4:]), chart, release, values
    for stage in STAGES:
        for variant in VARIANTS:
            values = releases.stage_values(ROOT, stage.name, variant=variant)
            name = f"jobs/{stage.name}.yaml, {variant}"
            yield name, "stage", releases.release_name(stage.name), values


RENDERINGS = list(renderings())


def check(manifest: Manifest, version: str = VERSIONS[0]) -> list[str]:
    """What Kubernetes' own schemas find wrong: unknown fields and wrong types."""
    import jsonschema
    import kubernetes_validate

    group = manifest["apiVersion"].rpartition("/")[0]
    if group in UNCHECKED_GROUPS:
        return []
    if group == "selfalign.io":
        found = jsonschema.Draft202012Validator(_run_schema()).iter_errors(manifest)
        return [f"{error.json_path}: {error.message}" for error in found]
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


@cache
def _run_schema() -> Manifest:
    """The AlignmentRun's schema as strict field validation reads it: the rest is unknown."""
    version = yaml.safe_load(CRD.read_text("utf-8"))["spec"]["versions"][0]

    def closed(schema: Manifest) -> Manifest:
        if "items" in schema:
            return {**schema, "items": closed(schema["items"])}
        if "properties" not in schema:
            return schema
        properties = {name: closed(child) for name, child in schema["properties"].items()}
        unknown = schema.get("x-kubernetes-preserve-unknown-fields", False)
        return {**schema, "properties": properties, "additionalProperties": unknown}

    return closed(version["schema"]["openAPIV3Schema"])


@cache
def _rendered(chart: str, release: str, values: str) -> list[Manifest]:
    files = helm.render(ROOT / "charts" / chart, release, NAMESPACE, json.loads(values))
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def render(chart: str, release: str, values: Mapping[str, Any]) -> list[Manifest]:
    """Render a chart, once per set of values."""
    return _rendered(chart, release, json.dumps(values))


def render_stage(stage: str, variant: Any = "gpu", **values: Any) -> list[Manifest]:
    """Render a stage as it is deployed: render_stage("align", nodes=2)."""
    merged = releases.stage_values(ROOT, stage, variant=variant)
    return render("stage", releases.release_name(stage), {**merged, **values})


def render_platform(**values: Any) -> list[Manifest]:
    """Render the platform: render_platform(nightly={"enabled": False})."""
    return render("selfalign", "selfalign", values)


@cache
def everything() -> list[Manifest]:
    """Every manifest of every file of values there is."""
    return [m for _, *rendering in RENDERINGS for m in render(*rendering)]


@pytest.fixture(params=[stage.name for stage in STAGES])
def stage(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one manifest of a kind, or the one of that name."""
    found = [m for m in of_kind(manifests, kind) if name in (None, m["metadata"]["name"])]
    assert len(found) == 1, [m["metadata"]["name"] for m in found]
    return found[0]


def job_of(manifests: list[Manifest], name: str | None = None) -> Manifest:
    """The spec of the Job that a CronJob would make."""
    spec: Manifest = only(manifests, "CronJob", name)["spec"]["jobTemplate"]["spec"]
    return spec


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod spec within a workload; None for anything else."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec.get("template", {}).get("spec") if isinstance(spec, dict) else None


def environment(pod: Manifest) -> dict[str, Any]:
    """Name -> value, or source, of the first container's environment."""
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom"))
        for entry in pod["containers"][0]["env"]
    }
