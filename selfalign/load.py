"""Read a run's configuration: file, then `--set`, then validation that names what is wrong.

Relative paths are relative to the configuration file. The origin of each value is kept, so that
`selfalign config` can say where it came from.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError
from selfalign.pipeline import BY_NAME
from selfalign.store.files import write_whole
from selfalign.store.open import check_store_url

_PATHS = (
    ("seeds", "directory"),
    *(("evaluate", *field.split(".")) for field in BY_NAME["evaluate"].data),
)
_MODELS = (("base_model",), ("evaluate", "judge", "model"))


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration and where each value came from.

    Attributes:
        config: validated, with absolute paths.
        origins: dotted name -> "file" or "--set"; every other value is a default.
    """

    config: RunConfig
    origins: dict[str, str]


_MAX_YAML_CHARACTERS, _MAX_YAML_NODES = 1 << 20, 100_000


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *anchor`; what it brings may be overridden
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None,
                    f"expected a key, got {key!r} (a value that begins with {{ or [ needs quotes)",
                    key_node.start_mark,
                )  # fmt: skip
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load and validate. Raises ConfigurationError naming file, key, expectation and remedy."""
    raw = _read_yaml(path)
    origins = dict.fromkeys(flatten(raw), "file")
    for override in overrides:
        name, value = _parse_override(override)
        _set(raw, name, value)
        for leaf in flatten(value, name):
            origins[leaf] = "--set"
    _resolve_paths(raw, path.resolve().parent)
    _refuse_other_bytes(raw, path)
    return LoadedConfig(validate_config(raw, str(path)), origins)


def validate_config(raw: dict[str, Any], where: str) -> RunConfig:
    """Turn plain values into a RunConfig, or say everything that is wrong with them."""
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem, where) for problem in error.errors()]
        raise ConfigurationError(
            "\n".join(lines),
            remedy="see `selfalign config --schema` for every key, its meaning and its default",
        ) from error
    check_store_url(config.store)
    return config


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The nested values that `dotted.key=value` strings stand for, not validated yet."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _set(raw, *_parse_override(override))
    return raw


def write_resolved(config: RunConfig, path: Path) -> None:
    """Write the whole configuration: the one file that crosses a process boundary."""
    write_whole(path, dump_config(config).encode())


def deep_merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; mappings merge, everything else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = deep_merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:  # may be a pipe: --config <(...)
            text = file.read(_MAX_YAML_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file", remedy="give the path of a configuration file to --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error}", remedy="it must be a readable UTF-8 YAML file"
        ) from error
    try:
        raw = read_yaml(text)
    except (ValueError, RecursionError) as error:  # such as the date 2024-13-45
        raise ConfigurationError(
            f"{path}: a value cannot be read: {error}",
            remedy="correct it, or put it in quotes; an alias must not hold itself",
        ) from error
    except yaml.YAMLError as error:
        said, line = str(getattr(error, "problem", error)).partition("\n")[0], ""
        if mark := getattr(error, "problem_mark", None):
            line = f":{mark.line + 1}"
        elif isinstance(error, yaml.reader.ReaderError):  # a character that YAML does not have
            line = f":{text.count(chr(10), 0, error.position) + 1}"
        raise ConfigurationError(
            f"{path}{line}: not valid YAML: {said}",
            remedy="correct the line; indentation is two spaces, a key stands once",
        ) from error
    if not isinstance(raw, dict):
        raise ConfigurationError(
            f"{path}: expected a mapping of keys at the top, got {type(raw).__name__}",
            remedy="begin with `base_model:` and its `path:`",
        )
    return raw


def read_yaml(text: str) -> Any:
    """The value of a YAML text, in bounded time and memory.

    Raises yaml.YAMLError for what is no YAML, and ValueError or RecursionError for a text that is
    too long, nested too deep, or whose aliases hold themselves or expand to too much.
    """
    if len(text) > _MAX_YAML_CHARACTERS:
        raise ValueError(f"more than {_MAX_YAML_CHARACTERS} characters")
    loader = _UniqueKeyLoader(text)
    root = loader.get_single_node()
    count, nodes = 1, [root]
    while nodes:  # aliases are the same node again, so this counts what they expand to
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode):
            continue
        count += len(node.value) * (2 if isinstance(node, yaml.MappingNode) else 1)
        if count > _MAX_YAML_NODES:  # before they are listed: a wide node may hold itself
            raise ValueError(f"more than {_MAX_YAML_NODES} values, aliases expanded")
        if isinstance(node, yaml.MappingNode):
            nodes += [each for pair in node.value for each in pair]
        else:
            nodes += node.value
    value = None if root is None else loader.construct_document(root)
    json.dumps(value, default=str, skipkeys=True)  # ValueError where an alias holds itself
    return value


def _parse_override(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(
            f"--set {text!r}: expected key=value",
            remedy="for example --set align.sampling.temperature=0.7",
        )
    try:
        return name, read_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"--set {text!r}: the value is not valid YAML", remedy="quote it"
        ) from error


def _set(raw: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigurationError(
                f"--set {name}: {parent} is {child!r}, not a section",
                remedy="see `selfalign config --schema` for the keys there are",
            )
        node = child
    node[last] = value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names; a list is one value, and so is an empty mapping."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for name, child in value.items():
        flat |= flatten(child, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _resolve_paths(raw: dict[str, Any], directory: Path) -> None:
    for *above, name in _PATHS:
        node = value_at(raw, above)
        if isinstance(node, dict) and _is_local(node.get(name)):
            if name == "heldout" and node[name] == "default":
                continue  # the set that comes with selfalign, not a file of this name
            node[name] = str(_absolute(directory, node[name], ".".join((*above, name))))
    seeds = {} if raw.get("seeds") is None else raw["seeds"]
    if isinstance(seeds, dict) and "directory" not in seeds:
        raw["seeds"] = {**seeds, "directory": str(directory / "seeds")}
    for names in _MODELS:
        model = value_at(raw, names)
        if isinstance(model, dict) and _is_local(model.get("path")):
            local = _absolute(directory, model["path"], ".".join((*names, "path")))
            # A hub id has a revision and no directory of its name; anything else is a directory.
            if local.exists() or model.get("revision") is None:
                model["path"] = str(local)
    store = raw.get("store", "store")
    if isinstance(store, str) and "://" not in store:
        raw["store"] = str(_absolute(directory, store, "store"))


def _refuse_other_bytes(raw: dict[str, Any], path: Path) -> None:
    """Refuse names of files whose bytes are no UTF-8, for the records of runs are JSON."""
    for name, value in flatten(raw).items():
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"{path}: {name}: {text[:200]!r}: expected a name in UTF-8",
                remedy="rename the directory or the file (mv), or move it: records of runs and "
                "tokenizers take no other names",
            ) from error


def value_at(raw: Any, names: Sequence[str]) -> Any:
    """What lies below these names; None where nothing does."""
    for name in names:
        raw = raw.get(name) if isinstance(raw, dict) else None
    return raw


def _absolute(directory: Path, path: str, name: str) -> Path:
    try:
        return directory / Path(path).expanduser()
    except RuntimeError as error:  # ~somebody, whom this machine does not know
        raise ConfigurationError(
            f"{name}: {path!r}: {error}", remedy="write the directory out, without ~"
        ) from error


def _is_local(value: Any) -> bool:
    # store:inputs/... names an object of the store (selfalign.inputs), s3://... one of a bucket
    return isinstance(value, str) and not value.startswith(("store:", "s3://"))


def _explain(problem: Any, where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location) or "the configuration"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        return f"{where}: {name}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{where}: {name}: required, but not given"
    if problem["type"] == "model_type":
        return f"{where}: {name}: expected keys and values below it, got {problem['input']!r}"
    value = problem.get("input")
    got = "" if isinstance(value, dict | BaseModel) else f", got {value!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {name}: {message[0].lower()}{message[1:]}{got}"


def _fields_at(location: Sequence[str]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        if part.isdigit():  # of a list, whose model is found already
            continue
        field = model.model_fields.get(part)
        model = None if field is None else _model_in(field.annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The model in a field's type, such as `list[GateRule] | None`; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
