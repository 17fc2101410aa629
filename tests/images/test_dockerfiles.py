"""Images: thin over shared bases, pinned, without root, secrets or weight they do not need."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pydantic
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    if image in BASES:  # the same tag by digest, for images that are pushed
        bases = (ROOT / "images/bases.txt").read_text("utf-8")
        assert re.search(rf"^{image} {re.escape(default)} sha256:[0-9a-f]{{64}}$", bases, re.M)
    user, group = _arguments(image, "USER")[-1].split(":")
    for template in ("stage/templates/_pod.tpl", "selfalign/templates/_helpers.tpl"):
        text = (ROOT / "charts" / template).read_text("utf-8")
        assert f"runAsUser: {user}\n" in text
        assert f"runAsGroup: {group}\n" in text
    sources = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "CHECK_HASHES"}
    asked = {argument.partition("=")[0] for argument in _arguments(image, "ARG")}
    commands = " ".join(_arguments(image, "RUN"))
    assert all("--no-deps" in install for install in re.findall(r"pip install [^&;]*", commands))
    assert "install.py" not in commands or sources <= asked
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
        extras = re.findall(r"install\.py ([a-z0-9 -]+)", "; ".join(_arguments(name, "RUN")))
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


@pytest.fixture
def install(tmp_path: Path) -> ModuleType:
    """images/install.py beside copies of what it reads."""
    for path in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / path, tmp_path)
    for name in ("constraints-images.txt", "hashes.txt", "install.py"):
        shutil.copy(ROOT / "images" / name, tmp_path)
    specification = importlib.util.spec_from_file_location("install", tmp_path / "install.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_requirements_are_the_projects_own_and_the_base_keeps_what_fits(
    install: ModuleType, tmp_path: Path
) -> None:
    wanted = install.requirements(["s3", "cluster"])
    assert {"pydantic", "boto3", "kubernetes", "setuptools"} <= {r.name for r in wanted}
    assert "torch" not in {r.name for r in wanted}
    pins = install.pins(wanted)
    assert pins["pydantic"] == pydantic.VERSION
    assert f"bitsandbytes=={pins['bitsandbytes']}" in PINS
    (tmp_path / "constraints.txt").write_text("pydantic==999.1\n")
    assert install.pins([Requirement("pydantic>=999")])["pydantic"] == "999.1"


def test_all_that_images_may_install_has_hashes_at_the_version_of_the_constraints(
    install: ModuleType,
) -> None:
    versions = {}
    for path in ("constraints.txt", "images/constraints-images.txt"):
        lines = (ROOT / path).read_text("utf-8").splitlines()
        pinned = (line.split("==") for line in lines if "==" in line)
        versions |= {canonicalize_name(name): version for name, version in pinned}
    hashed = dict(install.hashes())
    assert all(versions.get(name, version) == version for name, version in hashed)
    assert all(option.startswith("--hash=sha256:") for o in hashed.values() for option in o)
    asked = {
        name
        for image in (*BASES, "controller", "promote")
        for extras in re.findall(r"install\.py ([a-z0-9 -]+)", "; ".join(_arguments(image, "RUN")))
        for name in (canonicalize_name(r.name) for r in install.requirements(extras.split()))
    }
    assert asked - {name for name, _ in hashed} == {"vllm"}  # its image brings it
    cpu = "torch==2.13.0+cpu"
    (line,) = install.locked({"install": [{"metadata": {"name": "torch", "version": cpu[7:]}}]})
    assert line.startswith(f"{cpu} --hash=")
    unknown = [{"name": "torch", "version": "1.0"}, {"name": "other", "version": "2"}]
    with pytest.raises(SystemExit, match=r"no hashes of other==2, torch==1\.0"):
        install.locked({"install": [{"metadata": metadata} for metadata in unknown]})


@pytest.mark.usefixtures("install")  # beside it
def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    wheel, site = tmp_path / "tiny-1.0-py3-none-any.whl", tmp_path / "site"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Name: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\n[project]\ndependencies = ["tiny"]\n'
        "[project.optional-dependencies]\n"
    )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_TARGET": str(site)}
    for known, installed in ((digest[::-1], False), (digest, True)):
        (tmp_path / "hashes.txt").write_text(f"tiny==1.0 \\\n    --hash=sha256:{known}\n")
        command = [sys.executable, str(tmp_path / "install.py")]
        done = subprocess.run(command, env={**os.environ, **pip}, capture_output=True, text=True)
        assert (done.returncode == 0, (site / "tiny.py").exists()) == (installed, installed), done
        assert ("DO NOT MATCH" in done.stderr) is not installed


@pytest.mark.parametrize("extra", ["deepspeed", "qlora", "vllm"])
def test_what_constraints_leave_out_is_pinned_for_images_within_the_extras_bounds(
    extra: str,
) -> None:
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
