"""Run one stage, or one shard of it: plan, check, do, publish.

This is what `selfalign <stage> --config FILE` does, in a subprocess here and in a pod there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError, DataError, SelfAlignError, TemporaryError
from selfalign.identity import Inputs, collect_inputs
from selfalign.inputs import localise
from selfalign.pipeline import PRODUCER
from selfalign.run.plan import Blocked, Planned, plan_from_store
from selfalign.seeds import load_seeds
from selfalign.stages.contract import StageContext
from selfalign.stages.preflight import check_shard
from selfalign.store.base import Store
from selfalign.store.claims import claim
from selfalign.store.files import explain_os_error
from selfalign.store.manifest import Manifest
from selfalign.telemetry import bind, log

StageFunction = Callable[[StageContext], Manifest | None]

# Imported when run: training needs torch, generation does not need peft, promote needs neither.
_IMPLEMENTATIONS = {
    "instruct": "selfalign.stages.instruct:instruct",
    "curate": "selfalign.stages.curate:curate",
    "align": "selfalign.stages.answers:align",
    "engrave": "selfalign.stages.train:engrave",
    "elaborate": "selfalign.stages.answers:elaborate",
    "clone": "selfalign.stages.train:clone",
    "evaluate": "selfalign.stages.evaluate:evaluate",
    "promote": "selfalign.stages.promote:promote",
}


def run_stage(
    name: str,
    config: RunConfig,
    store: Store,
    *,
    shard: int = 0,
    num_shards: int | None = None,
    expect_key: str | None = None,
    run: str | None = None,
) -> Manifest | None:
    """Do a stage's work, or find it done.

    Args:
        shard: which shard to do, of `num_shards` (None: the stage's own configuration).
        expect_key: refuse to work when the key planned here is another: then configuration or
            code version differ between whoever scheduled this and this process.

    Returns:
        The manifest, or None when other shards have to finish first.
    """
    shards = num_shards or getattr(config, name).num_shards
    check_shard(name, shard, shards)
    bind(stage=name, shard=shard, run=run)
    config = localise(config, store)
    planned = claimed(name, config, collect_inputs(config), store, expect_key)
    if planned.manifest is not None:
        log.info("artifact.reused", artifact=planned.stage.writes, key=planned.key)
        return planned.manifest
    seeds = load_seeds(config.seeds)
    log.info("stage.started", artifact=planned.stage.writes, key=planned.key, num_shards=shards)
    with _work_directory(name, planned) as work:
        context = StageContext(
            config=config,
            store=store,
            stage=planned.stage,
            key=planned.key,
            identity=planned.identity,
            parents=planned.parents,
            seeds=seeds,
            shard=shard,
            num_shards=shards,
            work=work,
            promoted=planned.promoted,
            anchor=planned.anchor,
            run=run,
        )
        manifest = _call(name, context)
    if manifest is not None:
        log.info(
            "artifact.published",
            artifact=manifest.artifact,
            key=manifest.key,
            kept=manifest.counts.kept,
            dropped=manifest.counts.dropped,
            quarantined=manifest.counts.quarantined,
        )
    return manifest


@contextlib.contextmanager
def _work_directory(name: str, planned: Planned) -> Iterator[Path]:
    """Scratch space, removed at the end. The processes of one training share theirs."""
    if "LOCAL_RANK" not in os.environ:
        with tempfile.TemporaryDirectory(prefix=f"selfalign-{name}-") as work:
            yield Path(work)
        return
    shared = Path(tempfile.gettempdir()) / f"selfalign-{name}-{planned.key}"
    shared.mkdir(exist_ok=True)
    try:
        yield shared
    finally:
        if os.environ["LOCAL_RANK"] == "0":
            shutil.rmtree(shared, ignore_errors=True)


def _call(name: str, context: StageContext) -> Manifest | None:
    module, _, function = _IMPLEMENTATIONS[name].partition(":")
    implementation: StageFunction = getattr(import_module(module), function)
    try:
        return implementation(context)
    except OSError as error:
        raise explain_os_error(error, name) from error


def claimed(
    name: str,
    config: RunConfig,
    inputs: Inputs,
    store: Store,
    expect_key: str | None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Planned:
    """The plan of a stage, whose artifact and parents gc keeps from here on.

    Parents have to be read after this (`StageContext.parent`), not before.
    """
    plan = plan_from_store(config, inputs, store)
    planned = next(found for found in plan if found.stage.name == name)
    if isinstance(planned, Blocked):
        raise _blocked(name, planned, store, expect_key)
    if expect_key is not None and planned.key != expect_key:
        raise ConfigurationError(
            f"{name}: this process plans artifact {planned.key}, but {expect_key} was asked for",
            remedy="the scheduler and this process differ in configuration, seeds, base model or "
            "code version; deploy the same version of both",
        )
    if planned.manifest is None:
        parents = {artifact: parent.key for artifact, parent in planned.parents.items()}
        claim(store, planned.unit, parents, clock)
    return planned


def _blocked(name: str, blocked: Blocked, store: Store, expect_key: str | None) -> SelfAlignError:
    reads = f"{name} reads {', '.join(blocked.missing)}, which {store.url} does not hold"
    if expect_key is not None:
        return TemporaryError(
            f"{reads} any more: deleted since {expect_key} was planned",
            remedy="the next attempt plans anew and makes what is missing",
        )
    first = PRODUCER[blocked.missing[0]].name
    return DataError(
        f"{reads} for this configuration",
        remedy=f"run `selfalign {first}` with the same configuration first, or let "
        "`selfalign run` do all stages",
    )
