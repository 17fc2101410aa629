"""Two replicas never act at once, whatever their clocks say and whatever fails."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.controller.lease import LEASE_SECONDS, RENEW_WITHIN_SECONDS, Fenced, Lease, LeaseLost
from selfalign.controller.memory import MemoryCluster

from .unreliable import Unreliable

NAME = "selfalign-controller"


class Replica:
    """A process with its own, possibly shifted, clock."""

    def __init__(self, world: Election, identity: str, shift: float = 0.0) -> None:
        self.cluster = Unreliable(world.cluster)
        self.lease = Lease(self.cluster, NAME, identity, clock=lambda: world.now + shift)


class Election:
    def __init__(self) -> None:
        self.now = 0.0
        self.cluster = MemoryCluster()
        self.a = Replica(self, "a")
        self.b = Replica(self, "b", shift=1e6)

    def holders(self) -> list[str]:
        replicas = {"a": self.a, "b": self.b}
        return [name for name, replica in replicas.items() if replica.lease.held()]


@pytest.fixture
def election() -> Election:
    return Election()


def test_the_first_one_leads_and_the_second_waits(election: Election) -> None:
    assert election.a.lease.try_once()
    assert not election.b.lease.try_once()
    assert election.holders() == ["a"]


def test_a_leader_that_renews_stays_however_long_it_takes(election: Election) -> None:
    for _ in range(20):
        election.now += 5
        election.a.lease.try_once()
        election.b.lease.try_once()
        assert election.holders() == ["a"]


def test_a_dead_leader_is_followed_after_the_lease_s_duration(election: Election) -> None:
    election.a.lease.try_once()
    election.b.lease.try_once()
    election.now += LEASE_SECONDS - 1
    assert not election.b.lease.try_once()
    election.now += 1
    assert election.b.lease.try_once()
    assert election.holders() == ["b"]


def test_a_released_lease_is_taken_at_once(election: Election) -> None:
    election.a.lease.try_once()
    election.a.lease.release()
    assert election.holders() == []
    assert election.b.lease.try_once()


def test_release_does_not_touch_another_s_lease(election: Election) -> None:
    election.a.lease.try_once()
    election.b.lease.release()
    assert election.a.lease.try_once()


def test_a_leader_without_an_api_server_stops_before_anybody_else_may_start(
    election: Election,
) -> None:
    election.a.lease.try_once()
    election.b.lease.try_once()
    election.now += RENEW_WITHIN_SECONDS
    election.a.cluster.arm(0, "lost")
    assert not election.a.lease.try_once()
    assert not election.a.lease.lost
    assert not election.b.lease.try_once()
    assert election.holders() == []


def test_a_leader_goes_on_when_the_api_server_is_back_and_nobody_took_over(
    election: Election,
) -> None:
    election.a.lease.try_once()
    election.now += 300
    assert not election.a.lease.held()
    assert election.a.lease.try_once()
    assert not election.a.lease.lost


def test_a_leader_that_another_has_replaced_has_lost_for_good(election: Election) -> None:
    election.a.lease.try_once()
    election.b.lease.try_once()
    election.now += LEASE_SECONDS
    assert election.b.lease.try_once()
    assert not election.a.lease.try_once()
    assert election.a.lease.lost
    election.b.lease.release()
    assert not election.a.lease.try_once()


def test_a_restarted_process_with_the_same_identity_goes_on_at_once(election: Election) -> None:
    election.a.lease.try_once()
    again = Replica(election, "a")
    assert again.lease.try_once()


def test_an_answer_that_is_lost_neither_wins_nor_loses(election: Election) -> None:
    election.a.cluster.arm(1, "unheard")
    assert not election.a.lease.try_once()
    assert not election.a.lease.lost
    assert election.a.lease.try_once()


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.floats(0, 40),
            st.sampled_from(["", "lost", "unheard"]),
            st.integers(0, 1),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_never_do_two_hold_it(steps: list[tuple[str, float, str, int, bool]]) -> None:
    election = Election()
    for who, seconds, fault, call, release in steps:
        election.now += seconds
        assert len(election.holders()) <= 1
        replica = election.a if who == "a" else election.b
        if fault:
            replica.cluster.arm(call, fault)
        if release:
            replica.lease.release()
        else:
            replica.lease.try_once()
        replica.cluster.disarm()
        assert len(election.holders()) <= 1


def test_nothing_is_changed_without_the_lease() -> None:
    cluster = MemoryCluster()
    holding = True
    fenced = Fenced(cluster, lambda: holding)
    made = fenced.create("configmaps", {"metadata": {"name": "x"}})
    holding = False
    uid = made["metadata"]["uid"]
    for change in (
        lambda: fenced.create("configmaps", {"metadata": {"name": "y"}}),
        lambda: fenced.replace("configmaps", made),
        lambda: fenced.patch("configmaps", "x", {}),
        lambda: fenced.replace_status(made),
        lambda: fenced.delete("configmaps", "x", uid=uid),
    ):
        with pytest.raises(LeaseLost):
            change()
    assert fenced.list("configmaps") == [made]
    assert fenced.get("configmaps", "x") == made
