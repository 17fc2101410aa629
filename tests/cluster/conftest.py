"""A real node: KUBECONFIG names its cluster, and it has the images of `make images VARIANT=cpu`.

SELFALIGN_IMAGE_TAG: their tag; default: that of this checkout.
SELFALIGN_TEST_HOST: an address of this machine that pods reach; default: of the default route.
SELFALIGN_RESTART_API_SERVER: a command that does it, for the test that wants it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.deploy import cluster as preflight
from selfalign.deploy.images import LOCAL_REGISTRY, code_tag
from selfalign.errors import SelfAlignError
from selfalign.run.executors.kubernetes.api import connect
from tests.kill.test_kill import configuration

from .site import BUCKET, PROJECT, S3, Site, kubectl

NewSite = Callable[..., Site]


@pytest.fixture(scope="session")
def image_tag() -> str:
    """The tag of images that the node has; skips, saying why, where there is no such node."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: needs a cluster with a node")
    try:
        preflight.require_cluster()
    except SelfAlignError as error:
        pytest.skip(f"{error.message}; {error.remedy}")
    tag = os.environ.get("SELFALIGN_IMAGE_TAG") or code_tag(PROJECT, "cpu")
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    images = [
        name
        for node in nodes
        for image in node["status"].get("images") or []
        for name in image.get("names") or []
    ]
    if f"{LOCAL_REGISTRY}/controller:{tag}" not in images:
        pytest.skip(
            f"no node has {LOCAL_REGISTRY}/controller:{tag}: `make images VARIANT=cpu` on a node, "
            "or SELFALIGN_IMAGE_TAG"
        )
    return tag


@pytest.fixture(scope="session")
def s3(image_tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server that pods reach, with an empty bucket."""
    host = os.environ.get("SELFALIGN_TEST_HOST") or _own_address()
    with S3.serving(host, tmp_path_factory.mktemp("s3")) as server:
        server.client().create_bucket(Bucket=BUCKET)
        yield server


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the default route
        return str(probe.getsockname()[0])


@pytest.fixture(scope="session")
def local_config(image_tag: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small toy world, its configuration beside it; any model passes the gate."""
    directory = tmp_path_factory.mktemp("world")
    world = directory / "world"
    made = subprocess.run(
        [sys.executable, "-m", "tests.kill.world", str(world)],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    path = configuration(world, directory)
    config = yaml.safe_load(path.read_text())
    rule = {"metric": "heldout.aligned", "against": "base", "min_difference": -1.0}
    config["promote"] = {"rules": [rule], "guards": None}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def new_site(image_tag: str, s3: S3, local_config: Path, tmp_path: Path) -> Iterator[NewSite]:
    """Makes namespaces with the platform and all stages deployed, each with a store of its own."""
    made: list[str] = []

    def new(*, nightly: str | None = None, **stage_values: Any) -> Site:
        name = f"selfalign-test-{uuid.uuid4().hex[:8]}"
        directory = tmp_path / name
        directory.mkdir()
        preflight.ensure_namespace(name)
        made.append(name)
        cluster = connect(name, kubeconfig=os.environ["KUBECONFIG"])
        site = Site(cluster, s3, image_tag, {}, directory, stage_values)
        site.push_inputs(local_config)
        site.deploy(nightly=nightly)
        return site

    yield new
    for name in made:
        kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def site(new_site: NewSite) -> Site:
    return new_site()
