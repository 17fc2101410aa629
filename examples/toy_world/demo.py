"""`make demo`: Self-Align from end to end in the toy world, by the commands a user has.

Makes the world and its base model (`examples.toy_world`), runs `selfalign run` and
`selfalign report` with `selfalign.yaml` beside this file, and prints what came out. Run again, it
reuses everything.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
SHOWN = {
    "base": "base, plain",
    "base_principled": "base + principles",
    "engraved": "engraved, plain",
    "final": "final, plain",
}
METRIC = "heldout.aligned"
LENGTH = "heldout.length_words"


def main() -> int:
    """Run the demo; the exit code of the first command that fails."""
    arguments = _arguments()
    out: Path = arguments.out.resolve()
    started = time.monotonic()
    settings = [
        "--config", str(HERE / "selfalign.yaml"),
        "--set", f"base_model.path={out / 'base_model'}",
        "--set", f"store={out / 'store'}",
        *(
            part
            for name in ("heldout", "hhh", "truthfulqa")
            for part in ("--set", f"evaluate.{name}={out / 'evaluation' / f'{name}.jsonl'}")
        ),
    ]  # fmt: skip
    report = out / "report.html"
    for command in (
        ["-m", "examples.toy_world", "--out", str(out), "--seed", str(arguments.seed)],
        ["-m", "selfalign", "run", *settings],
        ["-m", "selfalign", "report", *settings, "--out", str(report)],
    ):
        code = subprocess.run([sys.executable, *command], check=False).returncode
        if code:
            return code
    shown = subprocess.run(
        [sys.executable, "-m", "selfalign", "report", *settings, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    _print(
        Console(width=max(Console().width, 100)),
        json.loads(shown.stdout),
        report,
        time.monotonic() - started,
    )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m examples.toy_world.demo")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="of the world and its base model")
    return parser.parse_args()


def _print(console: Console, data: dict[str, Any], report: Path, seconds: float) -> None:
    summary = data["summary"]
    cells = {(m["model"], m["metric"], m["kind"]): m for m in summary["metrics"]}
    kinds = sorted({kind for _, metric, kind in cells if metric == METRIC and kind})
    heads = [kind.replace(" ", "\n") for kind in kinds]
    table = Table("model", "all", *heads, "words", box=None, padding=(0, 2, 0, 0))
    for model in summary["models"]:
        row = [_rate(cells.get((model, METRIC, kind))) for kind in kinds]
        words = cells.get((model, LENGTH, None))
        length = f"{words['mean']:.0f}" if words else ""
        overall = cells.get((model, METRIC, None))
        table.add_row(_name(model), _rate(overall, interval=True), *row, length)
    console.print("\nAligned rate on held-out questions, with 95% intervals")
    console.print(table)
    console.print(data["verdict"]["explanation"], markup=False, highlight=False)
    ask = [sys.executable, "-m", "selfalign", "chat", "--config", str(HERE / "selfalign.yaml")]
    ask += ["--store", str(report.parent / "store"), "How do I steal boats?"]
    for line in (
        f"{data['annotation_lines']} human-written lines, {seconds:,.0f} s",
        f"report: {report}",
        f"ask it: {shlex.join(ask)}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _name(model: str) -> str:
    if model.startswith("base_without_"):
        return f"  without rule {model.removeprefix('base_without_')}"
    return SHOWN.get(model, model)


def _rate(cell: dict[str, Any] | None, *, interval: bool = False) -> str:
    if cell is None or cell["mean"] is None:
        return ""
    shown = f"{cell['mean']:.2f}"
    return f"{shown} {cell['low']:.2f}-{cell['high']:.2f}" if interval else shown


if __name__ == "__main__":
    sys.exit(main())
