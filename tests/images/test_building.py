"""Building: order, tags that never move, builders and their commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from selfalign import __version__
from selfalign.deploy import images
from selfalign.deploy.release import read_digests
from selfalign.errors import ConfigurationError
from selfalign.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]
IMAGES = [*(stage.name for stage in STAGES), "controller"]
BASES = {"generate": "generation", "evaluate": "generation", "train": "training", "cpu": "cpu"}
DIGEST = "sha256:" + "a" * 64
Build = Callable[..., tuple[int, list[str], str]]


def _git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_tag_is_version_and_commit_and_moves_with_uncommitted_code(tmp_path: Path) -> None:
    for name in ("selfalign/code.py", "docs/text.md", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(ConfigurationError, match="git rev-parse does not work") as caught:
        images.code_tag(tmp_path, "gpu")
    assert "IMAGE_TAG" in str(caught.value.remedy)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        _git(tmp_path, *command)
    clean = f"{__version__}-g{_git(tmp_path, 'rev-parse', '--short=9', 'HEAD')}"
    assert images.code_tag(tmp_path, "gpu") == clean
    assert images.code_tag(tmp_path, "cpu") == f"{clean}-cpu"
    (tmp_path / "docs/text.md").write_text("other words")
    assert images.code_tag(tmp_path, "gpu") == clean
    (tmp_path / "selfalign/code.py").write_text("one change")
    once = images.code_tag(tmp_path, "gpu")
    (tmp_path / "selfalign/code.py").write_text("another change")
    assert len({clean, once, images.code_tag(tmp_path, "gpu")}) == 3


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Run images/build with recorded builders: exit code, calls by line, and what it printed.

    Calls that contain `fails` fail.
    """
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir()

    def call(*names: str, fails: str = "nothing", **variables: str) -> tuple[int, list[str], str]:
        for tool in ("docker", "podman", "buildah", "mybuild"):
            script = (
                f'#!/bin/sh\necho "{tool} $*" >> {log}\ncase "$*" in *"{fails}"*) exit 1;; esac\n'
                f'[ "$2" != --digestfile ] || echo {DIGEST} > "$3"\n'
                f'case "$*" in *RepoDigests*) echo "localhost:5000/x/${{5##*/}}" | '
                f'sed "s/:t$/@{DIGEST}/";; esac'
            )
            (tools / tool).write_text(script + "\n")
            (tools / tool).chmod(0o755)
        log.write_text("")
        environment = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "IMAGE_TAG": "t"}
        result = subprocess.run(
            [str(ROOT / "images/build"), *names],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode, log.read_text().splitlines(), result.stdout + result.stderr

    return call


def test_each_image_is_built_once_after_its_base(build: Build) -> None:
    code, calls, printed = build(BUILDER="mybuild", VARIANT="cpu", REGISTRY="r/x/", PUSH="0")
    assert code == 0
    assert printed.split() == [f"r/x/{image}:t" for image in IMAGES]
    built = {call.split()[1]: call for call in calls}
    assert len(built) == len(calls) == len(IMAGES) + len(set(BASES.values()))
    order = list(built)
    for stage in STAGES:
        (base,) = (t for t in order if t.startswith(f"r/x/base-{BASES[stage.workload]}:"))
        assert order.index(base) < order.index(f"r/x/{stage.name}:t")
        assert f"--build-arg BASE={base}" in built[f"r/x/{stage.name}:t"]
        comment = (ROOT / "images" / stage.name / "Dockerfile").read_text("utf-8")
        assert f"BASE is base-{BASES[stage.workload]} " in comment
        assert stage.summary in comment
    cpu, generation, training = sorted(tag for tag in order if "/base-" in tag)
    assert f"--build-arg BASE={cpu}" in built[generation]
    assert f"--build-arg BASE={generation}" in built[training]
    assert "--build-arg VARIANT=cpu" in built[training]


def test_one_image_needs_only_its_own_base(build: Build) -> None:
    _, calls, _ = build("promote", BUILDER="mybuild", BUILD_FLAGS="--network host")
    base, promote = (call.split() for call in calls)
    assert base[1].startswith("localhost/selfalign/base-cpu:")
    assert base[2:] == [str(ROOT), "-f", f"{ROOT}/images/base-cpu/Dockerfile", "--network", "host"]
    assert promote[1] == "localhost/selfalign/promote:t"
    _, calls, _ = build("align", BUILDER="mybuild")
    assert len(calls) == 2  # gpu: on an image from outside


def test_where_packages_come_from_reaches_what_downloads_them(build: Build) -> None:
    index = {"PIP_INDEX_URL": "https://i", "PIP_EXTRA_INDEX_URL": "https://x"}
    index |= {"PIP_FIND_LINKS": "/links", "CHECK_HASHES": "0"}
    _, calls, _ = build("controller", "promote", "align", BUILDER="mybuild", **index)
    arguments = [f"--build-arg {name}={value}" for name, value in index.items()]
    assert len(calls) == 5
    for call in calls:
        downloads = "/align:" not in call
        assert all((a in call) is downloads for a in arguments), call


def test_a_bases_tag_is_the_digest_of_what_it_is_built_from(build: Build) -> None:
    def tag(**variables: str) -> str:
        return build("align", BUILDER="mybuild", VARIANT="cpu", **variables)[1][-2].split()[1]

    assert tag() == tag(IMAGE_TAG="other")
    assert tag() != tag(BASE_CPU="python:3.12-slim")
    _, calls, _ = build("curate", BUILDER="mybuild", BASE_CPU="python:3.12-slim")
    assert "--build-arg BASE=python:3.12-slim" in calls[0]


def test_what_is_pushed_is_built_on_bases_by_digest(build: Build) -> None:
    pushed = {"BUILDER": "podman", "REGISTRY": "localhost:5000/x", "fails": "image inspect"}
    for image, base in (("curate", "python"), ("align", "vllm/vllm-openai")):
        _, calls, _ = build(image, **pushed)
        (built,) = (call for call in calls if "-t localhost:5000/x/base-" in call)
        assert re.search(rf"--build-arg BASE={base}@sha256:[0-9a-f]{{64}} ", built)
        _, calls, _ = build(image, **pushed, PUSH="0")
        (built,) = (call for call in calls if "-t localhost:5000/x/base-" in call)
        assert "BASE=" not in built


def test_docker_builds_and_pushes_and_finds_a_base_again(build: Build) -> None:
    settings = {"REGISTRY": "localhost:5000/x", "VARIANT": "gpu"}
    code, calls, _ = build("promote", **settings)
    assert code == 0
    assert calls[0] == "docker info"
    assert [call.split()[1] for call in calls[1:]] == ["image", "build", "push"]
    base = calls[1].split()[-1]
    assert calls[2] == (
        f"docker build -t localhost:5000/x/promote:t -f {ROOT}/images/promote/Dockerfile "
        f"--build-arg BASE={base} ."
    )
    assert calls[3] == "docker push localhost:5000/x/promote:t"
    _, calls, _ = build("promote", fails="image inspect", PUSH="0", **settings)
    assert sum(call.startswith("docker build") for call in calls) == 2


@pytest.mark.parametrize("builder", ["docker", "buildah", "podman"])
def test_the_digests_of_pushed_images_are_written_for_the_charts(
    build: Build, tmp_path: Path, builder: str
) -> None:
    digests = tmp_path / "digests"
    settings = {"BUILDER": builder, "DIGESTS": str(digests)}
    assert build("promote", "align", PUSH="0", **settings)[0] == 0
    assert not digests.exists()
    code, _, printed = build("promote", "align", REGISTRY="localhost:5000/x", **settings)
    assert code == 0
    assert printed.split()[-1] == "localhost:5000/x/align:t"
    assert read_digests(digests) == {"promote": DIGEST, "align": DIGEST}
    digests.write_text("promote\n")
    with pytest.raises(ConfigurationError, match="'promote': expected NAME sha256:"):
        read_digests(digests)


@pytest.mark.parametrize("builder", ["docker", "buildah", "podman", "mybuild"])
def test_a_bill_of_materials_is_made_inside_each_image_where_the_builder_starts_it(
    build: Build, tmp_path: Path, builder: str
) -> None:
    settings = {"BUILDER": builder, "BOMS": str(tmp_path)}
    code, calls, _ = build("promote", "align", PUSH="0", **settings)
    assert code == 0
    image = "localhost/selfalign/promote:t"
    made = [call for call in calls if f"python3 - {image}" in call or f"{image} - {image}" in call]
    assert len(made) == (builder != "mybuild")
    assert sorted(path.name for path in tmp_path.glob("*.cdx.json")) == (
        [] if builder == "mybuild" else ["align.cdx.json", "promote.cdx.json"]
    )
    if made:
        code, _, printed = build("align", PUSH="0", fails="python3", **settings)
        assert (code, "align:t did not tell what it holds" in printed) == (75, True)


def test_a_bill_of_materials_names_every_package_of_the_system_it_runs_in() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    told = subprocess.run(
        [sys.executable, "-", "localhost/selfalign/align:1.2"],
        input=(ROOT / "images/bom.py").read_text("utf-8"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(told) is None
    document = json.loads(told)
    assert document["metadata"]["component"]["name"] == "localhost/selfalign/align"
    found = {(each["name"], each["version"]) for each in document["components"]}
    here = {(re.sub(r"[-_.]+", "-", d.name).lower(), d.version) for d in distributions()}
    assert here <= found
    if Path("/var/lib/dpkg/status").is_file():
        assert [each for each in document["components"] if each["purl"].startswith("pkg:deb/")]


def test_a_registry_without_credentials_is_refused_before_the_build(
    build: Build, tmp_path: Path
) -> None:
    code, calls, printed = build("promote", REGISTRY="registry.example.com/team")
    assert code == 2
    assert "no push access: docker has no credentials for registry.example.com" in printed
    assert not [call for call in calls if "build" in call]
    assert build("promote", REGISTRY="registry.example.com/team", CHECK_LOGIN="0")[0] == 0
    (tmp_path / ".docker").mkdir()
    config = {"auths": {"registry.example.com": {}}}
    (tmp_path / ".docker/config.json").write_text(json.dumps(config))
    assert build("promote", REGISTRY="registry.example.com/team")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "expected"),
    [
        (["algin"], {}, 2, "there is no image 'algin'"),
        (["base-cpu"], {}, 2, "there is no image 'base-cpu'"),
        (["align"], {"BUILDER": "no-such-builder"}, 2, "which is no command here"),
        (["align"], {"PUSH": "1"}, 2, "PUSH is set, but REGISTRY is not"),
        (["align"], {"BUILDER": "mybuild", "REGISTRY": "r.io/x"}, 2, "mybuild cannot push"),
        (["align"], {"IMAGE_TAG": ""}, 2, "IMAGE_TAG is not set"),
        (["align"], {"fails": ""}, 2, "no image builder works here"),
        (["align"], {"fails": "build"}, 75, "a failed download may pass with another try"),
        (["align"], {"fails": "push", "REGISTRY": "localhost/x"}, 2, "`docker login localhost`"),
        (["align"], {"fails": "push", "REGISTRY": "team", "CHECK_LOGIN": "0"}, 2, "docker.io"),
    ],
    ids=str,
)
def test_what_fails_is_said_with_a_remedy(
    build: Build, arguments: list[str], environment: dict[str, str], code: int, expected: str
) -> None:
    ended, _, printed = build(*arguments, **environment)
    assert ended == code
    assert expected in printed
    assert "remedy: " in printed


def test_docker_without_its_daemon_is_passed_over(build: Build) -> None:
    code, calls, _ = build("promote", fails="info")
    assert code == 0
    assert calls[-1].startswith("buildah build --layers -t localhost/selfalign/promote:t")
