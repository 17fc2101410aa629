"""An InferenceService follows `current`; KServe itself is played, as it writes status."""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from typing import Any

import pytest

from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.kserve import (
    INFERENCE_SERVICES,
    SETTLED_SECONDS,
    InferenceServiceTarget,
)
from selfalign.run.executors.kubernetes.serving import Target

from .test_serving import NEW, OLD, Site
from .unreliable import Killed, Unreliable

NAME = "aligned"


class KServeSite(Site):
    """A namespace with an InferenceService."""

    def __post_init__(self) -> None:
        super().__post_init__()
        model = {"modelFormat": {"name": "huggingface"}, "storageUri": "s3://elsewhere/old"}
        spec = {"predictor": {"minReplicas": 2, "model": model}}
        self.cluster.create(INFERENCE_SERVICES, {"metadata": {"name": NAME}, "spec": spec})
        self.kserve("True")

    def target(self, cluster: Any) -> Target:
        return InferenceServiceTarget(cluster, NAME, lambda: self.world.now)

    def kserve(self, ready: str, *, later: int = 0, **status: Any) -> None:
        """KServe writes its condition Ready, so many seconds later."""
        self.world.now += timedelta(seconds=later)
        moment = self.world.now.isoformat().replace("+00:00", "Z")
        said = {"type": "Ready", "status": ready, "lastTransitionTime": moment}
        told = (
            {**said, "reason": "RevisionFailed", "message": "no GPU"} if ready == "False" else said
        )
        self.cluster.set_status(
            INFERENCE_SERVICES, NAME, {"conditions": [{"type": "X"}, told], **status}
        )

    def service(self) -> Resource:
        return self.cluster.get(INFERENCE_SERVICES, NAME)

    def points_at(self) -> str:
        return str(self.service()["spec"]["predictor"]["model"]["storageUri"])


@pytest.fixture
def site() -> KServeSite:
    found = KServeSite()
    for name, digest in (("first", OLD), ("second", NEW)):
        found.run(name, digest)
    found.promote(OLD, "first", f"models/{OLD}")
    found.serving.step()
    found.kserve("True", later=5)
    found.serving.step()
    assert found.served("first") == ("True", "Served")
    return found


def test_a_promotion_points_the_service_at_the_model_and_ready_becomes_served(
    site: KServeSite,
) -> None:
    site.promote(NEW, "second", f"models/{NEW}")
    site.serving.step()
    assert site.points_at() == f"memory/models/{NEW}"
    assert site.service()["spec"]["predictor"]["minReplicas"] == 2
    # this Ready is of the model before: KServe has not looked yet
    assert site.served("second") == ("False", "RollingOut")
    site.serving.step()
    assert site.served("second") == ("False", "RollingOut")
    site.kserve("Unknown", later=3)
    site.serving.step()
    assert (site.served("second"), site.served("first")) == (
        ("False", "RollingOut"),
        ("True", "Served"),
    )
    site.kserve("True", later=60)
    site.serving.step()
    assert (site.served("second"), site.served("first")) == (
        ("True", "Served"),
        ("False", "Replaced"),
    )
    site.promote(OLD, None, f"models/{OLD}")
    site.serving.step()
    site.kserve("True", later=2)
    site.serving.step()
    assert site.points_at() == f"memory/models/{OLD}"
    assert site.served("first") == ("True", "Served")


def test_a_status_that_names_its_generation_or_has_settled_is_believed(site: KServeSite) -> None:
    site.promote(NEW, "second", f"models/{NEW}")
    site.serving.step()
    status = site.service()["status"]
    generation = site.service()["metadata"]["generation"]
    for observed, expected in ((generation - 1, "RollingOut"), (generation, "Served")):
        site.cluster.set_status(
            INFERENCE_SERVICES, NAME, {**status, "observedGeneration": observed}
        )
        site.serving.step()
        assert site.served("second")[1] == expected
    site.cluster.set_status(INFERENCE_SERVICES, NAME, status)
    site.serving.step()
    assert site.served("second")[1] == "RollingOut"
    site.world.now += timedelta(seconds=SETTLED_SECONDS + 1)
    site.serving.step()
    assert site.served("second")[1] == "Served"


@pytest.mark.parametrize("blocked", [True, False])
def test_a_model_that_does_not_load_is_told_in_kserves_words(
    site: KServeSite, blocked: bool
) -> None:
    site.promote(NEW, "second", f"models/{NEW}")
    site.serving.step()
    failed = {
        "transitionStatus": "BlockedByFailedLoad",
        "lastFailureInfo": {"message": "no\n tokenizer"},
    }
    site.kserve(
        "True" if blocked else "False", later=5, **{"modelStatus": failed} if blocked else {}
    )
    site.serving.step()
    assert site.served("second") == ("False", "NotReady")
    expected = "BlockedByFailedLoad: no tokenizer" if blocked else "RevisionFailed: no GPU"
    assert f"{expected}; remedy: kubectl describe inferenceservice" in site.message("second")


def test_what_is_missing_is_told(site: KServeSite) -> None:
    site.promote(NEW, "second", f"models/{NEW}")
    predictor = {"spec": {"predictor": {"model": None, "containers": [{"name": "mine"}]}}}
    site.cluster.patch(INFERENCE_SERVICES, NAME, predictor)
    site.serving.step()
    assert site.served("second") == ("False", "NotServable")
    site.cluster.delete(INFERENCE_SERVICES, NAME, uid=site.service()["metadata"]["uid"])
    site.serving.step()
    assert site.served("second") == ("False", "NotDeployed")
    assert "serving.kserve.name" in site.message("second")


@pytest.mark.parametrize("seed", range(8))
def test_a_controller_killed_at_any_moment_changes_nothing(site: KServeSite, seed: int) -> None:
    chance = random.Random(seed)
    site.promote(NEW, "second", f"models/{NEW}")
    for _ in range(6):
        site.restart(unreliable := Unreliable(site.cluster))
        unreliable.arm(chance.randrange(6), chance.choice(["killed-before", "killed-after"]))
        with contextlib.suppress(Killed):
            site.serving.step()
        site.world.now += timedelta(seconds=1)
    site.restart()
    site.serving.step()
    site.kserve("True", later=1)
    site.serving.step()
    assert site.points_at() == f"memory/models/{NEW}"
    assert site.served("second") == ("True", "Served")
    assert site.served("first") == ("False", "Replaced")
    # once for each model: a service that is right already is not touched
    assert site.service()["metadata"]["generation"] == 3
