"""`make real`: a real base model with the real seeds through all eight stages, at a small size.

    python -m examples.real_model [--base DIR] [--engine vllm] [--out DIR]

Runs `selfalign run` and `selfalign report` with `real.yaml` beside this file, and prints how many
texts each stage read and kept, and what its filters dropped. Run again, it reuses everything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.real_model.gemma import make

HERE = Path(__file__).parent
# A GPU generates in seconds what takes a CPU minutes, so it is asked for more. vLLM compiles for
# half a minute and more, which so little work never earns back.
ON_A_GPU = (
    "engine={kind: vllm, dtype: bfloat16, max_length: 4096, options: {enforce_eager: true}}",
    "instruct.general_requests=256",
    "instruct.topic_rounds=2",
    "instruct.topics_per_type=12",
    "curate.max_prompts=1024",
    "engrave.precision=bfloat16",
    "engrave.global_batch_size=32",
    "engrave.micro_batch_size=16",
    "clone.precision=bfloat16",
    "clone.global_batch_size=32",
    "clone.micro_batch_size=16",
)


def main() -> int:
    """Run everything; the exit code of the first command that fails."""
    arguments = _arguments()
    out: Path = arguments.out.resolve()
    started = time.monotonic()
    base = arguments.base or out / "gemma-3-270m"
    if arguments.base is None and (code := make(base)):
        return code
    settings = ["--config", str(HERE / "real.yaml")]
    for setting in (
        f"base_model.path={json.dumps(str(base.resolve()))}",
        f"store={json.dumps(str(out / 'store'))}",
        *(ON_A_GPU if arguments.engine == "vllm" else ()),
        *arguments.set,
    ):
        settings += ["--set", setting]
    report = out / "report.html"
    selfalign = [sys.executable, "-m", "selfalign"]
    for command in (["run", *settings], ["report", *settings, "--out", str(report)]):
        code = subprocess.run([*selfalign, *command], check=False).returncode
        if code:
            return code
    shown = subprocess.run(
        [*selfalign, "report", *settings, "--json"], check=True, capture_output=True, text=True
    )
    _print(json.loads(shown.stdout), report, time.monotonic() - started)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m examples.real_model")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where everything goes")
    parser.add_argument(
        "--base", type=Path, help="a base model's directory; without it, Gemma 3 270M is made"
    )
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers",
        help="vllm: on a GPU, at a larger size",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to selfalign"
    )
    return parser.parse_args()


def _print(data: dict[str, Any], report: Path, seconds: float) -> None:
    console = Console(width=max(Console().width, 100))
    table = Table("stage", "read", "kept", "dropped", box=None, padding=(0, 2, 0, 0))
    for row in data["funnel"]:
        reasons = ", ".join(f"{name} {count}" for name, count, _ in row["dropped"])
        table.add_row(row["stage"], str(row["read"]), str(row["kept"]), reasons)
    console.print("\nWhat the stages made of each other's texts", highlight=False)
    console.print(table)
    losses = ", ".join(
        f"{stage} {curve[0]['loss']:.2f} to {curve[-1]['loss']:.2f}"
        for stage, curve in data["loss"].items()
        if curve
    )
    for line in (
        f"loss: {losses}",
        data["verdict"]["explanation"],
        *(
            f"  {rule['explanation']}"
            for rule in data["verdict"]["reasons"]
            if rule["outcome"] == "failed"
        ),
        f"{data['annotation_lines']} human-written lines, {seconds:,.0f} s",
        f"report: {report}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
