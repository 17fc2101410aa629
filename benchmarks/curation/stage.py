"""`selfalign curate` on synthetic candidates: seconds and memory by number, and how they grow.

    python benchmarks/curation/stage.py [--sizes 50000 100000 ...] [--json FILE] [--scratch DIR]

Writes candidates (`corpus`) and 2,000 held-out items into a local store, then runs the real command
in a process of its own. Processor time is user and
system time of all its processes; memory is what they hold together, looked at five times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from corpus import synthetic_prompts

from selfalign.config import RunConfig
from selfalign.identity import collect_inputs
from selfalign.load import load_config
from selfalign.records import Candidate
from selfalign.run.plan import Planned, plan_from_store
from selfalign.stages.contract import PartOutcome, chunked, provenance
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore

SIZES = (50_000, 100_000, 200_000, 1_000_000)
NUM_HELDOUT = 2_000
PROJECT = Path(__file__).parents[2]
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Row:
    """One run of the stage."""

    candidates: int
    kept: int
    dropped: dict[str, int]
    wall_seconds: float
    processor_seconds: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--scratch", type=Path, help="where the store is made and removed again")
    arguments = parser.parse_args()
    print("candidates       kept   wall s   cpu s   us each   peak MiB   dropped")
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            rows.append(measure(size, Path(scratch)))
        print(line(rows[-1]), flush=True)
    if arguments.json:
        machine = {"processor": platform.processor(), "cpus": os.cpu_count()}
        result = {"machine": machine, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(size: int, scratch: Path) -> Row:
    path = scratch / "selfalign.yaml"
    path.write_text(yaml.safe_dump(settings(scratch)), encoding="utf-8")
    write_candidates(load_config(path).config, size)
    command = [sys.executable, "-m", "selfalign", "curate", "--config", str(path), "--json"]
    started = time.monotonic()
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=PROJECT)
    peak = Peak(process.pid)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if status != 0:
        sys.exit((scratch / "log").read_text()[-3000:])
    manifest = json.loads(output)
    counts = manifest["counts"]
    return Row(
        candidates=size,
        kept=counts["kept"],
        dropped=counts["dropped"],
        wall_seconds=wall,
        processor_seconds=used.ru_utime + used.ru_stime,
        peak_mib=peak.bytes / 2**20,
    )


def settings(scratch: Path) -> dict[str, object]:
    base_model = scratch / "base_model"
    base_model.mkdir()
    (base_model / "config.json").write_text("{}", encoding="utf-8")
    heldout = scratch / "heldout.jsonl"
    with heldout.open("w", encoding="utf-8") as file:
        for number, text in enumerate(synthetic_prompts(NUM_HELDOUT, seed=1)):
            item = {"id": f"h{number}", "kind": "benign", "prompt": text, "refusal": None}
            file.write(json.dumps(item | {"all_of": ["x"], "none_of": []}) + "\n")
    return {
        "base_model": {"path": str(base_model)},
        "seeds": {"directory": str(PROJECT / "seeds")},
        "store": str(scratch / "store"),
        "evaluate": {"heldout": str(heldout)},
    }


def write_candidates(config: RunConfig, size: int) -> None:
    """Publish candidates under the key that `instruct` would give them."""
    store = LocalStore(Path(config.store))
    planned = plan_from_store(config, collect_inputs(config), store)[0]
    assert isinstance(planned, Planned)
    writer = ArtifactWriter(
        store,
        artifact="candidates",
        stage="instruct",
        key=planned.key,
        identity=planned.identity,
        parents={},
    )
    shard = writer.shard(0, 1)
    names = []
    records = (
        Candidate(
            id=f"general-{number:08d}-0",
            source="self_instruct",
            text=text,
            request=f"general-{number:08d}",
        )
        for number, text in enumerate(synthetic_prompts(size))
    )
    for chunk in chunked("general", records, 4096):
        outcome = PartOutcome()
        for record in chunk.items:
            outcome.keep(record)
        shard.commit(chunk.name, outcome.records, outcome.counts())
        names.append(chunk.name)
    shard.finish(names, provenance("2026-01-01T00:00:00+00:00"))
    writer.publish_when_complete(1)


class Peak(threading.Thread):
    """The most memory that a process and its children held together: their resident sets' sum."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._pid = pid
        self.start()

    def run(self) -> None:
        while True:
            try:
                self.bytes = max(self.bytes, resident(self._pid))
            except OSError:
                return
            time.sleep(LOOK_SECONDS)


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    total = pages * os.sysconf("SC_PAGE_SIZE")
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has just ended
            total += resident(int(child))
    return total


def line(row: Row) -> str:
    each = row.processor_seconds / row.candidates * 1e6
    return (
        f"{row.candidates:10,} {row.kept:10,} {row.wall_seconds:8.1f} {row.processor_seconds:7.1f}"
        f" {each:9.0f} {row.peak_mib:10.0f}   "
        + ", ".join(f"{name} {count:,}" for name, count in sorted(row.dropped.items()))
    )


if __name__ == "__main__":
    main()
