"""values.schema.json of the charts, generated from values.yaml and the configuration models.

The type of a value is that of its default. `# @schema` above a key narrows it: the name of a
definition below, or keywords of JSON schema, which replace the default's type where they give one.
Reads charts/<chart>/values.yaml; writes charts/<chart>/values.schema.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import yaml

from selfalign.config import NotifyConfig, RunConfig
from selfalign.pipeline import STAGES

CHARTS = ("stage", "selfalign", "serving")
_MARK = "# @schema "
_TYPES = {"bool": "boolean", "int": "integer", "str": "string", "list": "array"}
_SCALARS = [{"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}]
_NAMES = {"propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}}
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_SECRET = ("name", "key")
_PATH = r"^(\*|[a-z0-9_]+)(\.(\*|[a-z0-9_]+))*$"
_DEFINITIONS: dict[str, Any] = {
    "Quantity": {"type": "string", "pattern": _QUANTITY},
    "Labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "Names": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "Paths": {"type": "array", "items": {"type": "string", "pattern": _PATH}},
    "Limits": {
        "type": "object",
        "propertyNames": {"pattern": _PATH},
        "additionalProperties": {"type": "number"},
    },
    "Objects": {"type": "array", "items": {"type": "object"}},
    "Notify": {
        "type": "array",
        "maxItems": 8,
        "items": {
            "type": "object",
            "required": ["secretRef"],
            "properties": {
                "secretRef": {
                    "type": "object",
                    "required": ["name", "key"],
                    "properties": {name: {"type": "string", "minLength": 1} for name in _SECRET},
                    "additionalProperties": False,
                },
                "format": {"enum": list(get_args(NotifyConfig.model_fields["format"].annotation))},
            },
            "additionalProperties": False,
        },
    },
    "Ports": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": 1, "maximum": 65535},
    },
    "Environment": {
        "type": "object",
        **_NAMES,
        "additionalProperties": {"anyOf": [*_SCALARS, {"type": "object"}]},
    },
    "PlainEnvironment": {"type": "object", **_NAMES, "additionalProperties": {"anyOf": _SCALARS}},
}


def values_schema(root: Path, chart: str) -> dict[str, Any]:
    """The JSON schema of a chart's values; unknown keys are refused at every level."""
    text = (root / "charts" / chart / "values.yaml").read_text("utf-8")
    schema = _node(yaml.compose(text), text.splitlines())
    properties = schema["properties"]
    properties["global"] = {"type": "object", "description": "Helm's own; not used"}
    if chart == "stage":
        properties["stage"]["enum"] = ["", *(stage.name for stage in STAGES)]
    definitions = _DEFINITIONS
    if "config" in properties:
        properties["config"] = {"$ref": "#/$defs/RunConfig"}
        definitions = {**_DEFINITIONS, **_partial(_clean(RunConfig.model_json_schema()))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "$defs": dict(sorted(definitions.items())),
    }


def schema_path(root: Path, chart: str) -> Path:
    """Where a chart's schema lies."""
    return root / "charts" / chart / "values.schema.json"


def schema_text(root: Path, chart: str) -> str:
    """The file's content."""
    return json.dumps(values_schema(root, chart), indent=2, ensure_ascii=False) + "\n"


def _node(node: Any, lines: list[str]) -> dict[str, Any]:
    """The schema of a YAML node: objects are closed, an empty one takes anything."""
    if not isinstance(node, yaml.MappingNode):
        return {"type": _TYPES[type(yaml.safe_load(yaml.serialize(node))).__name__]}
    if not node.value:
        return {"type": "object"}
    properties = {}
    for key, child in node.value:
        narrowed = _mark(key, lines)
        replaced = "type" in narrowed or "$ref" in narrowed
        properties[key.value] = narrowed if replaced else {**_node(child, lines), **narrowed}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _mark(key: Any, lines: list[str]) -> dict[str, Any]:
    """The `# @schema` above a key, as a schema; keys within `{...}` have none."""
    number = key.start_mark.line
    if not lines[number].lstrip().startswith(f"{key.value}:"):
        return {}
    while number and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        comment = lines[number].strip()
        if comment.startswith(_MARK):
            mark = yaml.safe_load(comment.removeprefix(_MARK))
            return {"$ref": f"#/$defs/{mark}"} if isinstance(mark, str) else dict(mark)
    return {}


def _partial(config: dict[str, Any]) -> dict[str, Any]:
    """Definitions of the run configuration in which nothing is required: values are overrides.

    Members of lists stay whole, because Helm and the controller replace lists and never merge them.
    """
    definitions: dict[str, Any] = config.pop("$defs")
    definitions["RunConfig"] = config
    members = {
        definition.get("items", {}).get("$ref", "").removeprefix("#/$defs/")
        for whole in definitions.values()
        for definition in whole.get("properties", {}).values()
    }
    for name, definition in definitions.items():
        if name not in members:
            definition.pop("required", None)
    return definitions


def _clean(value: Any, *, names: bool = False) -> Any:
    """Without keywords that mean nothing to a validator.

    Args:
        names: the keys of `value` are names of properties, not keywords.
    """
    if isinstance(value, dict):
        return {
            key: _clean(child, names=not names and key in ("properties", "$defs"))
            for key, child in value.items()
            if names or key not in ("title", "identity")
        }
    return [_clean(child) for child in value] if isinstance(value, list) else value
