"""Where models are on this machine: the base model's directory, or a verified copy of an artifact.

Copies are kept in the cache directory under their digest, so stages of one machine share them.
"""

from __future__ import annotations

from pathlib import Path

from selfalign.config import BaseModelConfig, EngineConfig, JudgeConfig, RunConfig
from selfalign.engines.base import Engine
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError
from selfalign.inputs import cache_directory, fetch, is_stored
from selfalign.store.artifact import download_files
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import promoted_manifest, read_pointer

WEIGHTS = (".safetensors",)  # ends of names that an engine behind a server has no use for


def merged_model(store: Store, manifest: Manifest, without: tuple[str, ...] = ()) -> Path:
    """The merged model of an engraved or final model artifact, on local disk, verified."""
    directory = cache_directory() / "models" / manifest.digest[:32]
    return download_files(store, manifest, "merged", directory, without)


def current_model(store: Store) -> Manifest:
    """The manifest of the promoted model. Raises ConfigurationError where there is none yet."""
    current = read_pointer(store)
    if current is None:
        raise ConfigurationError(
            f"{store.url}: no model is promoted yet",
            remedy="name another one: chat --model final, engraved or base; export KEY",
        )
    return promoted_manifest(store, current.pointer.model)


def model_location(
    store: Store, model: BaseModelConfig, without: tuple[str, ...] = ()
) -> tuple[str, str | None]:
    """Where a model from elsewhere is loaded from, and the hub revision where it is a hub id."""
    if is_stored(model.path):
        return str(fetch(store, model.path, without)), None
    return model.path, None if Path(model.path).is_dir() else model.revision


def base_engine(store: Store, config: RunConfig, engine: EngineConfig | None) -> Engine:
    """The base model in the engine configured for a stage."""
    chosen = engine or config.engine
    path, revision = model_location(store, config.base_model, WEIGHTS if chosen.server else ())
    return open_engine(chosen, path, revision=revision)


def judge_engine(store: Store, judge: JudgeConfig, engine: EngineConfig) -> Engine:
    """The judge in an engine of its own, or in one as `engine` without the base model's name."""
    chosen = judge.engine or engine.model_copy(update={"served_model": None})
    path, revision = model_location(store, judge.model, WEIGHTS if chosen.server else ())
    return open_engine(chosen, path, revision=revision)


def artifact_engine(
    store: Store, manifest: Manifest, config: RunConfig, engine: EngineConfig | None
) -> Engine:
    """A model artifact in the engine configured for a stage.

    A server must serve it under its digest, which the last part of the path is: served_model is
    what the base model is called.
    """
    chosen = (engine or config.engine).model_copy(update={"served_model": None})
    directory = merged_model(store, manifest, WEIGHTS if chosen.server else ())
    return open_engine(chosen, directory)
