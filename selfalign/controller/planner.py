"""What the store says about a configuration: the plan, and how far a stage under way has come.

Manifests are immutable, so one that was found is remembered; what was not found is asked for
again each time. The pointer is read anew whenever the plan depends on it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError
from selfalign.identity import DATA_FIELDS, Inputs, collect_inputs
from selfalign.inputs import localise
from selfalign.pipeline import BY_NAME, STAGES, downstream
from selfalign.records import digest
from selfalign.run.plan import ManifestLookup, StagePlan, plan_run
from selfalign.seeds import annotation_budget, load_seeds
from selfalign.store.artifact import artifact_prefix, read_manifest
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest
from selfalign.store.open import open_store
from selfalign.store.pointer import read_pointer

# After this long a manifest is asked for again, so that an artifact deleted on purpose is noticed.
REMEMBER_SECONDS = 3600.0
COUNT_PARTS_SECONDS = 15.0  # parts of one artifact are counted at most this often
_MANIFESTS, _CONFIGS, _STORES = 10_000, 2_000, 50  # entries kept
_JUDGING = [stage.name for stage in STAGES if stage.reads_promoted]
_NEEDS_POINTER = {
    BY_NAME[name].writes for judge in _JUDGING for name in (judge, *downstream(judge))
}
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Digests of what a configuration names, and how many lines of it people wrote."""

    digests: Inputs
    annotation_lines: int


class _Memory(Generic[_Value]):
    """The most recently used values, by key; safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[object, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> _Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: object, value: _Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def drop(self, key: object) -> None:
        with self._lock:
            self._values.pop(key, None)


def open_shared_store(url: str) -> Store:
    """The store at `url`. Raises ConfigurationError for a directory, which pods do not share."""
    if not url.startswith("s3://"):
        raise ConfigurationError(
            f"store {url!r}: pods share no directory, so what one stage writes no other would find",
            remedy="set store: s3://bucket/prefix in the run's configuration or the platform's",
        )
    return open_store(url)


class Planner:
    """Plans configurations against their stores. Safe to use from several threads.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        opener: Callable[[str], Store] = open_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener = opener
        self._clock = clock
        self._stores: _Memory[Store] = _Memory(_STORES)
        self._inputs: _Memory[_Inputs] = _Memory(_CONFIGS)
        self._manifests: _Memory[tuple[float, Manifest]] = _Memory(_MANIFESTS)
        self._parts: _Memory[tuple[float, int]] = _Memory(_CONFIGS)

    def store(self, config: RunConfig) -> Store:
        """The configuration's store, opened once per URL."""
        store = self._stores.get(config.store)
        if store is None:
            store = self._opener(config.store)
            self._stores.put(config.store, store)
        return store

    def plan(self, config: RunConfig) -> list[StagePlan]:
        """Plan every stage as the store stands now. Manifests come without their entries.

        Raises:
            ConfigurationError, DataError: seeds, evaluation files or base model are wrong.
            StoreDenied, StoreUnavailable: the store does not answer.
        """
        store = self.store(config)
        inputs = self._inputs_of(config).digests
        lookup = self._lookup(store)
        first = plan_run(config, inputs, _without_the_pointer(lookup), None)
        # Reading the pointer costs a request, and nothing depends on it before a final model.
        if all(
            getattr(planned, "key", None) is None
            for planned in first
            if planned.stage.reads_promoted
        ):
            return first
        current = read_pointer(store)
        pointer = None if current is None else current.pointer
        return plan_run(config, inputs, lookup, pointer)

    def committed_parts(self, config: RunConfig, planned: StagePlan) -> int:
        """How many parts of an artifact under way are committed, as of some seconds ago."""
        assert getattr(planned, "key", None) is not None
        store = self.store(config)
        prefix = artifact_prefix(planned.stage.writes, getattr(planned, "key", None)) + "parts/"
        known = self._parts.get((store.url, prefix))
        if known is None or self._clock() - known[0] >= COUNT_PARTS_SECONDS:
            count = sum(key.endswith(".json") for key in store.list(prefix))
            known = (self._clock(), count)
            self._parts.put((store.url, prefix), known)
        return known[1]

    def annotation_lines(self, config: RunConfig) -> int:
        """Lines of human supervision in the configuration's seeds."""
        return self._inputs_of(config).annotation_lines

    def _inputs_of(self, config: RunConfig) -> _Inputs:
        """Hashed once for all configurations that name the same; content never changes under a
        `store:` name."""
        data = config.evaluate.model_dump(mode="json", include=set(DATA_FIELDS))
        named = config.model_dump(mode="json", include={"store", "seeds", "base_model"})
        key = digest({**named, "data": data})
        known = self._inputs.get(key)
        if known is None:
            local = localise(config, self.store(config))
            load_seeds(local.seeds)
            lines = annotation_budget(local.seeds.directory).total
            known = _Inputs(collect_inputs(local), lines)
            self._inputs.put(key, known)
        return known

    def _lookup(self, store: Store) -> ManifestLookup:
        def look(artifact: str, key: str) -> Manifest | None:
            name = (store.url, artifact, key)
            known = self._manifests.get(name)
            if known is not None and self._clock() - known[0] < REMEMBER_SECONDS:
                return known[1]
            found = read_manifest(store, artifact, key)
            if found is None:
                self._manifests.drop(name)
                return None
            # shards name every part: kept for thousands of artifacts they would fill the memory
            slim = found.model_copy(update={"shards": [], "files": [], "identity": {}})
            self._manifests.put(name, (self._clock(), slim))
            return slim

        return look


def _without_the_pointer(lookup: ManifestLookup) -> ManifestLookup:
    """A lookup that leaves out what the promoted model is part of the identity of."""

    def look(artifact: str, key: str) -> Manifest | None:
        return None if artifact in _NEEDS_POINTER else lookup(artifact, key)

    return look
