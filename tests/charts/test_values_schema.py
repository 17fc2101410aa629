"""values.schema.json: generated, up to date, and strict."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from selfalign.config import RunConfig
from selfalign.deploy import schema
from selfalign.deploy.helm import HelmFailed
from tests.charts.conftest import CRD, ROOT, of_kind, render

every_chart = pytest.mark.parametrize("chart", schema.CHARTS)


@every_chart
def test_schema_is_what_values_and_models_say(chart: str) -> None:
    definitions = schema.values_schema(ROOT, chart)["$defs"]
    assert ("RunConfig" in definitions) == (chart != "serving")
    run = definitions.get("RunConfig", {"properties": RunConfig.model_fields})
    assert set(run["properties"]) == set(RunConfig.model_fields)


def test_every_generated_file_is_up_to_date() -> None:
    for path, text in schema.generated(ROOT).items():
        assert path.read_text("utf-8") == text, "run `make chart-schema`, commit the result"


def _leaves(path: str, node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if "properties" not in node:
        return {path: node}
    found: dict[str, dict[str, Any]] = {}
    for name, child in node["properties"].items():
        found |= _leaves(f"{path}.{name}" if path else name, child)
    return found


def test_the_resource_bounds_every_number_of_a_configuration_and_drops_no_null() -> None:
    version = yaml.safe_load(CRD.read_text("utf-8"))["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    leaves = _leaves("", spec["config"])
    assert all(leaf["nullable"] for leaf in leaves.values())
    numbers = {path: leaf for path, leaf in leaves.items() if "type" in leaf}
    assert len(numbers) > 100
    assert [path for path, leaf in numbers.items() if {"minimum", "maximum"} - set(leaf)] == []
    # An API server takes a bound of an integer only if floating point holds it.
    assert all(abs(leaf["maximum"]) < 2**53 for leaf in numbers.values())
    assert numbers["instruct.num_shards"]["maximum"] == 10_000
    assert "type" not in leaves["engine.options"]


def _objects(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node] if "properties" in node and node.get("type") == "object" else []
        return own + [found for child in node.values() for found in _objects(child)]
    return [found for child in node for found in _objects(child)] if isinstance(node, list) else []


@every_chart
def test_no_object_with_known_keys_takes_unknown_ones(chart: str) -> None:
    objects = _objects(schema.values_schema(ROOT, chart))
    assert len(objects) > (10 if chart == "serving" else 20)
    assert all(found["additionalProperties"] is False for found in objects)


REFUSED_BY_STAGE: list[dict[str, Any]] = [
    {"shards": 4},
    {"image": {"repository": "x"}},
    {"config": {"algin": {}}},
    {"config": {"align": {"temperature": 1}}},
    {"config": {"align": {"sampling": {"top_p": 2}}}},
    {"config": {"promote": {"rules": [{"metric": "hhh", "against": "itself"}]}}},
    {"networkPolicy": {"ports": [443]}},
    {"gpus": "two"},
    {"retries": 21},
    {"maxParallelism": 0},
    {"cache": {"sizeLimit": "lots"}},
    {"stage": "algin"},
    {"env": {"NOT A NAME": "x"}},
    {"tolerations": ["spot"]},
    {"podLabels": {"team": 1}},
]
REFUSED_BY_PLATFORM: list[dict[str, Any]] = [
    {"nightly": {"cron": "0 1 * * *"}},
    {"nightly": {"schedule": "sometimes"}},
    {"controller": {"replicas": 2}},
    {"config": {"base_model": {"url": "x"}}},
    {"environment": {"A": {"valueFrom": {}}}},
    {"image": {"tag": "not a tag"}},
    {"image": {"pullPolicy": "Sometimes"}},
    {"serviceAccounts": {"stages": {}}},
    {"networkPolicy": {"storePorts": []}},
    {"runs": {"overrides": ["align.sampling "]}},
    {"runs": {"maxActiveRuns": 0}},
    {"runs": {"allowEverything": True}},
    {"rbac": {"people": {"create": "yes"}}},
]
REFUSED_BY_SERVING: list[dict[str, Any]] = [
    {"replicas": 0},
    {"config": {}},
    {"server": {"args": []}},
    {"gpus": -1},
    {"verify": {"secretName": "x"}},
]


@pytest.mark.parametrize(
    ("chart", "values"),
    [
        *(("stage", {"stage": "align", **values}) for values in REFUSED_BY_STAGE),
        *(("selfalign", values) for values in REFUSED_BY_PLATFORM),
        *(("serving", values) for values in REFUSED_BY_SERVING),
    ],
    ids=str,
)
def test_wrong_values_are_refused(chart: str, values: dict[str, Any]) -> None:
    with pytest.raises(HelmFailed, match="at '"):
        render(chart, "selfalign-align", values)


def test_nothing_of_the_configuration_is_required_of_values() -> None:
    config = {"base_model": {"revision": "abc"}, "engine": {"batch_size": 4}}
    manifests = render("stage", "selfalign-align", {"stage": "align", "config": config})
    assert of_kind(manifests, "CronJob")


@every_chart
def test_every_value_is_explained_above_it(chart: str) -> None:
    lines = (ROOT / "charts" / chart / "values.yaml").read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        if not re.match(r"\s*[A-Za-z]+:\s*\S", line) or re.match(r"\s*(limits|requests):", line):
            continue  # a group's explanation is its members'
        above = [text.strip() for text in lines[:number]]
        comment = []
        while above and above[-1].startswith("#"):
            comment.append(above.pop())
        assert any(text.startswith("# -- ") for text in comment), f"{chart}: line {number + 1}"
