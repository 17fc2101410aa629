"""The plan is cheap to ask for again, and never stale where it matters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from selfalign.controller.planner import REMEMBER_SECONDS, Planner, open_shared_store
from selfalign.errors import ConfigurationError, DataError
from selfalign.inputs import push_inputs
from selfalign.load import validate_config
from selfalign.run.plan import plan_from_store

from .worlds import DictStore, World, platform_values


class CountingStore(DictStore):
    """Counts reads by what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def read(self, key: str) -> bytes:
        self.reads[key.rsplit("/", 1)[-1] if key.startswith("artifacts/") else key] += 1
        return super().read(key)


@pytest.fixture
def world() -> World:
    world = World(store=CountingStore())
    world.submit()
    return world


def store_of(world: World) -> CountingStore:
    assert isinstance(world.store, CountingStore)
    return world.store


def test_it_plans_what_a_stage_s_own_process_plans(world: World) -> None:
    config = validate_config(platform_values(), "test")
    from selfalign.identity import collect_inputs

    for stage in ("instruct", "curate", "align"):
        expected = plan_from_store(config, collect_inputs(config), world.store)
        found = world.planner.plan(config)
        assert [p.key for p in found] == [p.key for p in expected]
        assert [p.published for p in found] == [p.published for p in expected]
        world.step(after=1)
        world.finish(f"toy-{stage}-1")


def test_a_published_manifest_is_read_once(world: World) -> None:
    world.to_the_end()
    config = validate_config(platform_values(), "test")
    world.planner.plan(config)
    before = Counter(store_of(world).reads)
    for _ in range(10):
        assert all(planned.published for planned in world.planner.plan(config))
    assert store_of(world).reads - before == Counter({"current.json": 10})


def test_an_absent_manifest_is_asked_for_each_time(world: World) -> None:
    config = validate_config(platform_values(), "test")
    for _ in range(3):
        world.planner.plan(config)
    assert store_of(world).reads == Counter({"manifest.json": 3})


def test_the_pointer_is_not_read_before_anything_depends_on_it(world: World) -> None:
    world.step()
    world.finish("toy-instruct-1")
    store_of(world).reads.clear()
    world.step()
    assert "current.json" not in store_of(world).reads


def test_an_artifact_deleted_on_purpose_is_noticed_after_a_while() -> None:
    now = 0.0
    store = DictStore()
    world = World(store=store)
    world.submit()
    world.to_the_end()
    planner = Planner(lambda _url: store, clock=lambda: now)
    config = validate_config(platform_values(), "test")
    assert planner.plan(config)[0].published
    for key in [key for key in store.objects if key.startswith("artifacts/candidates/")]:
        store.delete(key)
    assert planner.plan(config)[0].published
    now = REMEMBER_SECONDS
    assert not planner.plan(config)[0].published


def test_manifests_are_remembered_without_what_makes_them_large(world: World) -> None:
    world.to_the_end()
    config = validate_config(platform_values(), "test")
    for planned in world.planner.plan(config):
        assert planned.manifest is not None
        assert planned.manifest.files == []
        assert planned.manifest.digest
    assert world.planner.plan(config)[-1].manifest.details["promoted"] is True  # type: ignore[union-attr]


def test_inputs_in_the_store_give_the_keys_of_the_files_they_were(world: World) -> None:
    local = validate_config(platform_values(), "test")
    stored = push_inputs(local, world.store)
    assert str(stored.seeds.directory).startswith("store:")
    assert [p.key for p in world.planner.plan(stored)] == [p.key for p in world.planner.plan(local)]


def test_a_missing_input_is_the_run_s_fault_and_named(world: World) -> None:
    missing = platform_values(seeds={"directory": "store:inputs/seeds/0123"})
    with pytest.raises(DataError, match="store:inputs/seeds/0123"):
        world.planner.plan(validate_config(missing, "test"))


def test_stores_are_opened_once(tmp_path: Path) -> None:
    opened: list[str] = []
    store = DictStore()

    def opener(url: str) -> DictStore:
        opened.append(url)
        return store

    planner = Planner(opener)
    for seed in range(3):
        planner.plan(validate_config(platform_values(seed=seed), "test"))
    assert opened == ["memory"]


def test_annotation_lines_are_counted_from_the_run_s_seeds(world: World) -> None:
    config = validate_config(platform_values(), "test")
    assert 0 < world.planner.annotation_lines(config) < 300


def test_a_directory_is_no_store_for_pods() -> None:
    with pytest.raises(ConfigurationError, match="pods share no directory"):
        open_shared_store("/scratch/store")
