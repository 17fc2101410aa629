"""What charts and runs may hold, generated: values.schema.json, spec.config of AlignmentRuns.

The type of a value is that of its default. `# @schema` above a key narrows it: the name of a
definition below, or keywords of JSON schema, which replace the default's type where they give one.
Reads charts/<chart>/values.yaml and the configuration models; writes
charts/<chart>/values.schema.json and a part of charts/selfalign/files/*.yaml.
"""

from __future__ import annotations

import itertools
import json
import textwrap
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
_GENERATED = "# `make chart-schema` writes these from the configuration models."
# An API server drops null in silence where it is not allowed; the controller says what is wrong.
_NULLABLE = {"nullable": True}
_ANYTHING = {**_NULLABLE, "x-kubernetes-preserve-unknown-fields": True}
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
                "link": {"type": "string", "pattern": r"^https?://[!-~]*\{run\}[!-~]*$"},
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


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


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


def generated(root: Path) -> dict[Path, str]:
    """Every file that is generated, and its content."""
    schemas = {
        root / "charts" / chart / "values.schema.json": json.dumps(
            values_schema(root, chart), indent=2, ensure_ascii=False
        )
        + "\n"
        for chart in CHARTS
    }
    resource = root / "charts/selfalign/files/alignmentruns.selfalign.io.yaml"
    return {**schemas, resource: resource_text(resource.read_text("utf-8"))}


def resource_text(resource: str) -> str:
    """The AlignmentRun resource with the mapping that follows the mark written anew."""
    before, mark, after = resource.partition(_GENERATED)
    margin = before.rpartition("\n")[2]
    _, _key, *lines = after.splitlines(keepends=True)
    rest = itertools.dropwhile(lambda line: line.startswith(margin + " "), lines)
    config = RunConfig.model_json_schema()
    properties = _structural(config, config["$defs"])["properties"]
    style: dict[str, Any] = {
        "sort_keys": False,
        "default_flow_style": None,
        "width": 100 - len(margin),
    }
    text = yaml.dump({"properties": properties}, Dumper=_NoAliases, **style)
    return before + mark + "\n" + textwrap.indent(text, margin) + "".join(rest)


def _structural(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What an API server checks of a field: the keys of objects and the bounds of numbers. The rest
    is the controller's to check, which says more of what is wrong."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    kind = kinds[0] if len(kinds) == 1 else {}
    kind = definitions[kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
    if kind.get("type") in ("integer", "number"):
        return {"type": kind["type"], **_NULLABLE, **_bounds(kind)}
    if "properties" not in kind:
        return _ANYTHING
    inner = {name: _structural(child, definitions) for name, child in kind["properties"].items()}
    return {"type": "object", **_ANYTHING, "properties": inner}


def _bounds(number: dict[str, Any]) -> dict[str, Any]:
    """A number's bounds as OpenAPI 3.0 has them, where exclusive ones are marked by a boolean."""
    bounds = {}
    for name in ("minimum", "maximum"):
        exclusive = f"exclusive{name.capitalize()}"
        if exclusive in number and number["type"] == "integer":
            bounds[name] = number[exclusive] + (1 if name == "minimum" else -1)
        elif exclusive in number:
            bounds |= {name: number[exclusive], exclusive: True}
        elif name in number:
            bounds[name] = number[name]
    return bounds


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
