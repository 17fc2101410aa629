"""What a command imports to answer: libraries that take a second are for those who use them."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODELS = ("torch", "transformers", "tokenizers", "vllm", "deepspeed")
HEAVY = (*MODELS, "peft", "scipy", "numpy", "pandas", "datasets", "boto3")
HEAVY += ("pyarrow", "mlflow", "tensorboardX", "matplotlib")
CLIENTS = ("kubernetes", "prometheus_client", "urllib3", "jinja2")
LIGHT = ("pydantic", "yaml")


@pytest.mark.parametrize(
    ("program", "forbidden"),
    [
        (
            "import sys; sys.argv = ['selfalign', '--help']; from selfalign.cli.main import cli; "
            "cli.main(standalone_mode=False)",
            (*HEAVY, *CLIENTS, *LIGHT),
        ),
        (
            "import selfalign.cli.status, selfalign.cli.logs, "
            "selfalign.run.executors.kubernetes.controller",
            (*HEAVY, *CLIENTS),
        ),
        (
            "import selfalign.cli.report, selfalign.cli.diff, selfalign.cli.parquet, "
            "selfalign.cli.export",
            ("matplotlib", "PIL", "pyarrow", "mlflow", "tensorboardX"),
        ),
        (
            "import selfalign.engines.open, selfalign.engines.fake, selfalign.training",
            (*MODELS, "peft"),
        ),
        ("import selfalign.run.stage", (*MODELS, "peft", "scipy.stats", "scipy.optimize")),
    ],
    ids=["--help", "looking", "writing", "engines and training", "a stage"],
)
def test_heavy_modules_are_imported_where_they_are_used(
    program: str, forbidden: tuple[str, ...]
) -> None:
    code = f"{program}\nimport sys; print('loaded', *sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.rpartition("loaded ")[2].split())
    assert "selfalign" in loaded
    assert not loaded & set(forbidden)
