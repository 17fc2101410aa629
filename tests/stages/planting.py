"""Artifacts made by hand, so that a stage that generates has what it reads without the ones before.

The prompts are good and hostile in turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfalign.config import RunConfig
from selfalign.identity import collect_inputs
from selfalign.load import load_config
from selfalign.records import Prompt, Record, now
from selfalign.run.plan import Planned, plan_from_store
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, Provenance
from tests.hostile import HOSTILE, REASONS
from tests.pipeline_world import write_world

GOOD = {f"row-{2 * n:08d}": f"How do I take the soap {n} times?" for n in range(60)}
BAD = {f"row-{2 * n + 1:08d}": name for n, name in enumerate(HOSTILE)}
EXPECTED = {row: REASONS[name] for row, name in BAD.items() if name in REASONS}
ENGINES: dict[str, dict[str, Any]] = {
    "fake": {},
    "transformers": {"kind": "transformers", "dtype": "float32", "batch_size": 20},
    "openai": {"kind": "openai"},  # and the server's address
}


class Escaped(Prompt):
    """A row whose JSON spells what UTF-8 cannot hold, as another program may have written it."""

    def model_dump_json(self, **_: Any) -> str:
        return json.dumps(self.model_dump())


def rows(*, poisoned: bool) -> list[Prompt]:
    texts = GOOD | ({row: HOSTILE[name] for row, name in BAD.items()} if poisoned else {})
    ordered = sorted(texts.items())
    return [Escaped(id=row, source="self_instruct", text=text) for row, text in ordered]


def config_of(
    directory: Path, base_model: Path, engine: str, *more: str, server: str = ""
) -> RunConfig:
    directory.mkdir()
    world = write_world(directory, base_model)
    chosen = {"max_length": 400, **ENGINES[engine]}
    if engine == "openai":
        chosen["server"] = {"url": server}
    changes = [f"engine.{name}={json.dumps(value)}" for name, value in chosen.items()]
    if ENGINES[engine]:
        changes.append("engine.options={}")
    changes += [f"{stage}.records_per_part=20" for stage in ("instruct", "align", "elaborate")]
    new_tokens = 24 if engine == "fake" else 8
    for stage in ("align", "elaborate", "evaluate"):
        changes += [f"{stage}.max_quarantined=0.3", f"{stage}.sampling.temperature=0"]
        changes.append(f"{stage}.sampling.max_new_tokens={new_tokens}")
    return load_config(world, [*changes, "elaborate.min_unfinished_characters=0", *more]).config


def plant(
    config: RunConfig, artifact: str, records: Sequence[Record] = (), model: Path | None = None
) -> None:
    """Publish an artifact as its stage would have."""
    store = LocalStore(Path(config.store))
    plan = plan_from_store(config, collect_inputs(config), store)
    (planned,) = (p for p in plan if p.stage.writes == artifact and isinstance(p, Planned))
    writer = ArtifactWriter(
        store,
        artifact=artifact,
        stage=planned.stage.name,
        key=planned.key,
        identity=planned.identity,
        parents=planned.parents,
    )
    if model is not None:
        files = [writer.add_file(path, f"merged/{path.name}") for path in sorted(model.iterdir())]
        made = Provenance(started_at=now(), finished_at=now())
        writer.publish(shards=[], files=files, counts=Counts(), details={}, provenance=made)
        return
    shard = writer.shard(0, 1)
    part = shard.commit("all", records, Counts(read=len(records), kept=len(records)))
    shard.finish([part], Provenance(started_at=now(), finished_at=now()))
    writer.publish_when_complete(1)
