"""Images: thin over shared bases, pinned, without root, secrets or weight they do not need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pydantic
import pytest

from selfalign.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]
BASES = ("base-cpu", "base-generation", "base-training")
IMAGES = (*(stage.name for stage in STAGES), "controller")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = (ROOT / "images/constraints-images.txt").read_text("utf-8").splitlines()


def _instructions(image: str) -> list[tuple[str, str]]:
    """Instruction and argument, comments and line continuations taken out."""
    text = (ROOT / "images" / image / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, argument.strip()) for name, _, argument in pairs]


def _arguments(image: str, instruction: str) -> list[str]:
    return [argument for name, argument in _instructions(image) if name == instruction]


@pytest.mark.parametrize("image", [*IMAGES, *BASES])
def test_images_are_unprivileged_pinned_and_hold_no_secret(image: str) -> None:
    first, second = _instructions(image)[:2]
    name, _, default = first[1].partition("=")
    assert (first[0], name, second) == ("ARG", "BASE", ("FROM", "${BASE}"))
    assert bool(re.fullmatch(r"\S+:(?!latest)\S+", default)) is (image in BASES)
    user, group = _arguments(image, "USER")[-1].split(":")
    for template in ("stage/templates/_pod.tpl", "selfalign/templates/_helpers.tpl"):
        text = (ROOT / "charts" / template).read_text("utf-8")
        assert f"runAsUser: {user}\n" in text
        assert f"runAsGroup: {group}\n" in text
    sources = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"}
    asked = {argument.partition("=")[0] for argument in _arguments(image, "ARG")}
    for install in re.findall(r"pip install [^&;]*", " ".join(_arguments(image, "RUN"))):
        assert "--no-deps" in install or ("-c pins.txt" in install and sources <= asked)
    names = " ".join(argument for name, argument in _instructions(image) if name in ("ARG", "ENV"))
    assert not re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", names, re.IGNORECASE)
    assert _arguments(image, "ADD") == []


@pytest.mark.parametrize("base", BASES)
def test_bases_make_that_user_and_load_no_code_from_where_it_writes(base: str) -> None:
    commands = " ".join(_arguments(base, "RUN"))
    assert "mkdir -p /cache /scratch && chown selfalign:selfalign /cache /scratch" in commands
    assert "groupadd --gid 10001" in commands
    assert "useradd --uid 10001 --gid 10001" in commands
    environment = " ".join(_arguments(base, "ENV"))
    assert "PYTHONNOUSERSITE=1" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment


@pytest.mark.parametrize("image", IMAGES)
def test_the_stage_is_process_one_and_its_image_adds_nothing_but_the_code(image: str) -> None:
    (entrypoint,) = _arguments(image, "ENTRYPOINT")
    assert json.loads(entrypoint) == ["selfalign", image]
    assert json.loads(_arguments(image, "CMD")[0]) == ["--help"]
    sources = [argument.split()[:-1] for argument in _arguments(image, "COPY")]
    assert sources[-2:] == [["pyproject.toml", "README.md", "LICENSE"], ["selfalign"]]
    assert "--no-deps" in _arguments(image, "RUN")[-1]
    assert len(_arguments(image, "RUN")) == 1 or image in ("controller", "promote")


def test_light_images_install_no_heavy_stack() -> None:
    for name in ("base-cpu", "controller", "curate", "promote"):
        extras = re.findall(r"requirements\.py ([a-z0-9 -]+)", " ".join(_arguments(name, "RUN")))
        assert set(" ".join(extras).split()) <= {
            *("s3", "cluster", "notify", "signing", "store-signing")
        }


def test_only_what_images_copy_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    copies = [
        argument.split()[:-1] for name in [*IMAGES, *BASES] for argument in _arguments(name, "COPY")
    ]
    copied = {source for sources in copies for source in sources}
    assert {line[1:] for line in patterns if line.startswith("!")} == copied


def _run_requirements(
    directory: Path, *extras: str, project: str | None = None
) -> tuple[set[str], dict[str, str]]:
    """Names that requirements.py asks for, and pins."""
    for path in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / path, directory)
    for path in ("requirements.py", "constraints-images.txt"):
        shutil.copy(ROOT / "images" / path, directory)
    if project:
        (directory / "pyproject.toml").write_text(project)
        (directory / "constraints.txt").write_text("pydantic==999.1\n")
    command = [sys.executable, str(directory / "requirements.py"), *extras]
    subprocess.run(command, check=True, cwd=directory)
    wanted = (directory / "requirements.txt").read_text("utf-8").splitlines()
    pins = (directory / "pins.txt").read_text("utf-8").splitlines()
    names = {re.split(r"[<>=\[]", line)[0] for line in wanted}
    return names, dict(pin.split("==") for pin in pins)


def test_requirements_are_the_projects_own_and_the_base_keeps_what_fits(tmp_path: Path) -> None:
    wanted, pins = _run_requirements(tmp_path, "s3", "cluster")
    assert {"pydantic", "boto3", "kubernetes", "setuptools"} <= wanted
    assert "torch" not in wanted
    assert pins["pydantic"] == pydantic.VERSION
    assert f"bitsandbytes=={pins['bitsandbytes']}" in PINS
    project = '[project]\ndependencies = ["pydantic>=999"]\noptional-dependencies = {}\n'
    build = "[build-system]\nrequires = []\n"
    assert _run_requirements(tmp_path, project=build + project)[1]["pydantic"] == "999.1"


@pytest.mark.parametrize("extra", ["deepspeed", "qlora", "vllm"])
def test_what_constraints_leave_out_is_pinned_for_images_within_the_extras_bounds(
    extra: str,
) -> None:
    from packaging.requirements import Requirement

    (asked,) = map(Requirement, PROJECT["optional-dependencies"][extra])
    pins = dict(line.split("==") for line in PINS if "==" in line)
    assert asked.specifier.contains(pins[asked.name])
    assert all(s.operator == "==" for s in asked.specifier) or extra == "vllm"
    if extra == "vllm":
        alone = (ROOT / "constraints-vllm.txt").read_text("utf-8")
        assert f"vllm=={pins['vllm']}\n" in alone
        assert f"ARG BASE=vllm/vllm-openai:v{pins['vllm']}\n" in (
            (ROOT / "images/base-generation/Dockerfile").read_text("utf-8")
        )


def test_constraints_name_no_build_that_one_index_alone_has() -> None:
    assert "+" not in (ROOT / "constraints.txt").read_text("utf-8")
