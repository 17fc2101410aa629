"""The toy world on a real node: each stage a pod, artifacts in S3, promoted, nothing done twice."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from selfalign.pipeline import STAGES
from selfalign.run.executors.kubernetes.cluster import annotations_of, labels_of, name_of
from tests.pipeline_world import downstream

from .site import BUCKET, Site, kubectl, until

pytestmark = pytest.mark.cluster
NAMES = [stage.name for stage in STAGES]


def test_a_run_is_promoted_repeated_by_reuse_and_redone_from_an_edited_principle_on(
    site: Site, local_config: Path, tmp_path: Path
) -> None:
    site.create_run("toy")
    status = site.ended("toy")
    assert (status["verdict"], status["progress"]) == ("Promoted", "8/8"), status["message"]
    assert set(site.phases("toy").values()) == {"Done"}
    pods = site.pods("toy")
    assert {labels_of(pod)["selfalign.io/stage"] for pod in pods} == set(NAMES)
    assert all(p["status"]["phase"] == "Succeeded" for p in pods)
    told = kubectl("-n", site.namespace, "get", "alignmentruns")
    assert "toy" in told
    assert "8/8" in told
    assert "Promoted" in told
    assert set(site.s3.publications(site.namespace).values()) == {1}

    started = time.monotonic()
    site.create_run("again")
    assert site.ended("again")["verdict"] == "Promoted"
    assert time.monotonic() - started < 30
    assert set(site.phases("again").values()) == {"Reused"}
    assert site.pods("again") == []
    assert site.artifacts("again") == site.artifacts("toy")

    edited = _with_an_edited_principle(local_config, tmp_path)
    submitted = site.cli("submit", "--config", str(edited), "--set",
                         f"store=s3://{BUCKET}/{site.namespace}", "--name", "edited",
                         "-n", site.namespace)  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    assert site.ended("edited")["verdict"] is not None
    redone = {"align", *downstream("align")}
    phases = site.phases("edited")
    assert {name for name, phase in phases.items() if phase == "Reused"} == set(NAMES) - redone
    assert {name for name, phase in phases.items() if phase == "Done"} == redone
    _seen_from_a_laptop(site)


def _with_an_edited_principle(config_path: Path, directory: Path) -> Path:
    config = yaml.safe_load(config_path.read_text())
    seeds = directory / "seeds"
    shutil.copytree(config["seeds"]["directory"], seeds)
    principles = seeds / "principles.txt"
    lines = principles.read_text().splitlines()
    lines[0] = lines[0].rstrip(".") + ", always."
    principles.write_text("\n".join(lines) + "\n")
    config["seeds"]["directory"] = str(seeds)
    path = directory / "edited.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _seen_from_a_laptop(site: Site) -> None:
    """status, logs, report and rollback by kubeconfig and bucket alone."""
    store = f"s3://{BUCKET}/{site.namespace}"
    status = site.cli("status", "toy", "-n", site.namespace)
    assert "Succeeded" in status.stdout, status.stderr
    logs = site.cli("logs", "align", "--run", "toy", "-n", site.namespace)
    assert '"artifact.published"' in logs.stdout, logs.stderr
    report = site.directory / "report.html"
    written = site.cli("report", "toy", "--store", store, "--out", str(report))
    assert "Promoted" in report.read_text() or "promoted" in report.read_text(), written.stderr
    promoted = site.status("edited")["verdict"] == "Promoted"
    rolled = site.cli("rollback", "--store", store)
    if promoted:
        assert site.artifacts("toy")["clone"][0] in rolled.stdout, rolled.stderr
    else:
        assert "first ever promoted" in rolled.stderr


def test_the_nightly_cronjob_fires_and_an_overlapping_one_is_refused(
    new_site: Callable[..., Site],
) -> None:
    site = new_site(nightly="* * * * *")
    nightly = "selfalign.io/nightly=true"
    found = until(lambda: site.cluster.list("alignmentruns", nightly), "a nightly run", 150)
    first = name_of(found[0])
    refused = until(
        lambda: [e for e in site.cluster.list("events") if e["reason"] == "NightlyRefused"],
        "the next night to be refused", 150,
    )  # fmt: skip
    assert refused[0]["involvedObject"]["name"] == first
    assert site.ended(first)["verdict"] == "Promoted"


def test_a_run_waits_for_a_person_and_is_annotated_with_who_approved_it(site: Site) -> None:
    site.config["promote"] = {**site.config["promote"], "approval": "manual"}
    site.deploy()
    site.create_run("toy")
    waits = "AwaitingApproval"
    until(lambda: waits in kubectl("-n", site.namespace, "get", "alignmentruns"), waits)
    assert not site.cluster.list("jobs", "selfalign.io/run=toy,selfalign.io/attempt=2")
    approved = site.cli("approve", "toy", "--as", "anna", "-n", site.namespace)
    assert approved.returncode == 0, approved.stderr
    assert site.ended("toy")["verdict"] == "Promoted"
    told = annotations_of(site.cluster.get("alignmentruns", "toy"))
    assert told["selfalign.io/decision"] == "approved"
    assert told["selfalign.io/decided-by"] == "anna"
    assert told["selfalign.io/decided-at"] in site.status("toy")["conditions"][-1]["message"]


def test_deploy_stage_with_a_run_starts_and_follows_it(site: Site) -> None:
    site.create_run("toy", suspend=True)
    until(lambda: site.status("toy").get("stages"), "the run to be planned", 60)
    told = site.make("deploy-stage", STAGE="instruct", RUN="toy",
                     VALUES=str(site.directory / "stages.yaml"))  # fmt: skip
    assert '"artifact.published"' in told
    until(lambda: site.phases("toy")["instruct"] == "Done", "instruct to be done", 60)
    failed = subprocess.run(
        ["make", "deploy-stage", "STAGE=engrave", "RUN=toy", "SKIP_BUILD=1", "VARIANT=cpu",
         f"NAMESPACE={site.namespace}", f"IMAGE_TAG={site.tag}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "what it reads is not published yet" in failed.stderr


def test_deleting_a_run_cleans_up_its_jobs_and_keeps_its_artifacts(site: Site) -> None:
    site.create_run("toy")
    until(lambda: site.phases("toy").get("curate") == "Running", "curate to run")
    kubectl("-n", site.namespace, "delete", "alignmentrun", "toy", "--wait=true")
    until(lambda: not site.cluster.list("jobs", "selfalign.io/run=toy"), "its Jobs to go", 60)
    until(lambda: not site.pods("toy"), "its pods to go", 90)
    assert site.s3.publications(site.namespace)


ZERO_2 = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}


def test_two_pods_train_together_with_deepspeed_and_without(site: Site) -> None:
    shared = yaml.safe_load((site.directory / "stages.yaml").read_text())
    deepspeed = {"env": {"DS_ACCELERATOR": "cpu"}, "config": {"engrave": {"deepspeed": ZERO_2}}}
    for stage, own in (("engrave", deepspeed), ("clone", {})):
        values = site.directory / f"{stage}.yaml"
        values.write_text(yaml.safe_dump({**shared, "nodes": 2, **own}))
        site.make("deploy-stage", STAGE=stage, VALUES=str(values))
    site.create_run("toy")
    status = site.ended("toy")
    assert status.get("verdict") == "Promoted", status["message"]
    for stage in ("engrave", "clone"):
        pods = [p for p in site.pods("toy") if labels_of(p)["selfalign.io/stage"] == stage]
        assert [p["status"]["phase"] for p in pods] == ["Succeeded", "Succeeded"]
        assert len({p["spec"]["hostname"] for p in pods}) == 2
    assert set(site.s3.publications(site.namespace).values()) == {1}
