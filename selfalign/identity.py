"""Identity: an artifact's key is the digest of everything that determines its bytes.

Stage, configuration (without what only says how work is executed), code version, the digests of
the seeds, data and base model that reach it, and the digests of its parents. Same inputs, same
key: finished work is found instead of done again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from selfalign._version import __version__
from selfalign.config import BaseModelConfig, EvaluateConfig, GenerationStageModel, RunConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.pipeline import BY_NAME, Stage
from selfalign.records import digest
from selfalign.seeds import file_digests
from selfalign.store.files import file_sha256

_AnyModel = TypeVar("_AnyModel", bound=BaseModel)
KEY_LENGTH = 20  # hex characters: 80 bits, short enough for labels and object names
DATA_FIELDS = BY_NAME["evaluate"].data  # fields of the evaluate section that name files
# The one release whose tasks are run: a task's version follows from it and the task's name.
LM_EVAL_VERSION = "0.4.13"
_DEFAULT_HELDOUT = Path(__file__).parent / "evaluation" / "heldout.jsonl"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Digests of what lies outside the store: seeds files, base model, evaluation data.

    Attributes:
        seeds: file name within the seeds directory -> SHA-256.
        base_model: revision or content digest.
        data: name of an evaluation file's configuration field -> SHA-256; absent when not set.
        judge: revision or content digest of the judge's model; None without a judge.

    Raises ConfigurationError where the judge is the base model.
    """

    seeds: Mapping[str, str]
    base_model: str
    data: Mapping[str, str]
    judge: str | None = None

    def __post_init__(self) -> None:
        if self.judge is not None and self.judge == self.base_model:
            raise ConfigurationError(
                f"evaluate.judge.model: it is the base model ({self.judge[:24]}), whose answers "
                "are judged",
                remedy="name another model, or make evaluate.judge null",
            )


def is_default(field: str, path: Path) -> bool:
    """Whether an evaluation field names the set that comes with selfalign: `heldout: default`."""
    return field == "heldout" and path == Path("default")


def data_of(config: EvaluateConfig, field: str) -> Path | None:
    """The path in one of DATA_FIELDS; `judge.template` is below `judge`, which may be None."""
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, Path) else None


def replaced(model: _AnyModel, values: Mapping[str, Any]) -> _AnyModel:
    """The model with other values at dotted names; a section that is None stays so."""
    for name, value in values.items():
        first, _, rest = name.partition(".")
        below = getattr(model, first)
        if rest:
            value = None if below is None else replaced(below, {rest: value})
        model = model.model_copy(update={first: value})
    return model


def data_path(field: str, path: Path) -> Path:
    """Where the file lies that an evaluation field names."""
    return _DEFAULT_HELDOUT if is_default(field, path) else path


@cache
def default_sha256() -> str:
    """SHA-256 of the held-out set that comes with this package."""
    return file_sha256(_DEFAULT_HELDOUT)


def path_sha256(path: Path) -> str:
    """SHA-256 of a file, or of a directory's visible files with their relative names."""
    if path.is_file():
        return file_sha256(path)
    files = visible_files(path)
    return names_sha256((str(p.relative_to(path)), file_sha256(p)) for p in files)


def names_sha256(files: Iterable[tuple[str, str]]) -> str:
    """The digest of a directory, from the relative name and SHA-256 of each of its files."""
    return digest([[name, sha] for name, sha in files])


def visible_files(directory: Path) -> list[Path]:
    """The files below a directory, sorted, without hidden ones.

    Raises OSError where a directory cannot be listed, and DataError for a link that leads nowhere,
    or to a directory: what is left out silently would make two different models the same.
    """
    walked = os.walk(directory, onerror=_raise)
    found = sorted(Path(top, name) for top, below, names in walked for name in (*below, *names))
    visible = [
        p for p in found if not any(n.startswith(".") for n in p.relative_to(directory).parts)
    ]
    for path in visible:
        if path.is_symlink() and (path.is_dir() or not path.exists()):
            why = "a directory" if path.is_dir() else "which does not exist"
            raise DataError(
                f"{path}: a link to {path.readlink()}, {why}",
                remedy="copy what it should lead to here, or remove the link",
            )
    return [path for path in visible if path.is_file()]


def _raise(error: OSError) -> None:
    raise error


def collect_inputs(config: RunConfig) -> Inputs:
    """Hash the seeds, the models and the evaluation files that the configuration names."""
    judge = config.evaluate.judge
    return Inputs(
        seeds=file_digests(config.seeds.directory),
        base_model=model_revision(config.base_model, "base_model"),
        data={name: path_sha256(path) for name, path in data_files(config.evaluate).items()},
        judge=model_revision(judge.model, "evaluate.judge.model") if judge else None,
    )


def model_revision(model: BaseModelConfig, name: str) -> str:
    """A model's identity: its revision where given, else the digest of its directory.

    Args:
        name: of the model's section, for messages.
    """
    if model.revision is not None:
        return model.revision
    path = Path(model.path)
    if not path.is_dir():
        raise ConfigurationError(
            f"{name}.path: {model.path!r} is not a directory",
            remedy="give a local Hugging Face model directory; for a hub id also set "
            f"{name}.revision to a commit",
        )
    if not (path / "config.json").is_file():
        raise DataError(
            f"{path}: no config.json, so this is not a Hugging Face model directory",
            remedy=f"point {name}.path at the directory that save_pretrained wrote",
        )
    return f"sha256:{path_sha256(path)}"


def data_files(config: EvaluateConfig) -> dict[str, Path]:
    """The evaluation files that are configured, by field.

    Raises ConfigurationError where one does not exist or is no file.
    """
    files = {}
    for name in DATA_FIELDS:
        path = data_of(config, name)
        if path is None:
            continue
        path = data_path(name, path)
        if not path.exists():
            raise ConfigurationError(
                f"evaluate.{name}: {str(path)!r} does not exist",
                remedy="correct the path, or remove the line to leave this evaluation out",
            )
        if not (path.is_file() or path.is_dir()):
            raise ConfigurationError(
                f"evaluate.{name}: {str(path)!r} is a pipe or a device, not a file",
                remedy="name a file: it is read more than once",
            )
        files[name] = path
    return files


def stage_identity(
    stage: Stage,
    config: RunConfig,
    inputs: Inputs,
    parents: Mapping[str, str],
    promoted: str | None,
    anchor: str | None = None,
) -> dict[str, Any]:
    """Everything that determines the stage's output, as one JSON object.

    Args:
        parents: artifact name -> content digest, for each name in `stage.reads`.
        promoted: content digest of the model the final one will be judged against.
        anchor: content digest of the anchor, where it is another model than the promoted one.
    """
    section = getattr(config, stage.name)
    identity: dict[str, Any] = {
        "stage": stage.name,
        "code_version": __version__,
        "seed": config.seed,
        "config": _identity_view(section, drop=set(stage.data) | {"engine", "judge", "harness"}),
        "seeds": {name: inputs.seeds[name] for name in stage.seeds if name in inputs.seeds},
        "data": {name: inputs.data[name] for name in stage.data if name in inputs.data},
        "parents": dict(parents),
    }
    if isinstance(section, GenerationStageModel | EvaluateConfig):
        identity["engine"] = _identity_view(section.engine or config.engine, drop=set())
    if isinstance(section, EvaluateConfig) and section.judge is not None:
        engine = section.judge.engine or section.engine or config.engine
        identity["judge"] = {
            "model": inputs.judge,
            "engine": _identity_view(engine, drop=set()),
            "refusals": section.judge.refusals,
        }
    if isinstance(section, EvaluateConfig) and section.harness is not None:
        harness = section.harness.model_dump(include={"tasks", "limit"})
        identity["harness"] = {"lm_eval": LM_EVAL_VERSION, **harness}
    if stage.uses_base_model:
        identity["base_model"] = inputs.base_model
    if stage.reads_promoted:
        identity["promoted"] = promoted
        identity["anchor"] = anchor
    return identity


def identity_key(identity: Mapping[str, Any]) -> str:
    """The artifact's key in the store."""
    return digest(identity)[:KEY_LENGTH]


def _identity_view(model: BaseModel, drop: set[str]) -> dict[str, Any]:
    view: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra
        if name in drop or (isinstance(extra, dict) and extra.get("identity") is False):
            continue
        value = getattr(model, name)
        view[name] = (
            _identity_view(value, drop=set())
            if isinstance(value, BaseModel)
            else model.model_dump(mode="json", include={name})[name]
        )
    return view
