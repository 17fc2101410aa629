"""The toy world computes what the libraries compute, and what is held out stays held out."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.toy_world.corpus import TYPE_OF_KIND
from examples.toy_world.forward import hidden_states
from examples.toy_world.heldout import held_out_rows, hhh_rows, truthfulqa_rows
from examples.toy_world.muon import Muon
from examples.toy_world.phrasing import KINDS, QUESTIONS, aligned_answer
from examples.toy_world.templates import HERE, Seeds
from examples.toy_world.world import World
from selfalign.filters.rewording import RewordingIndex
from selfalign.load import load_config


@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (8, 8)])
def test_muon_is_torch_s_but_for_its_precision(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.95),
    )
    for _ in range(3):
        grad = torch.randn(shape)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=0.02)
    assert not torch.allclose(ours, torch.ones(shape), atol=0.02)


def test_the_forward_pass_is_transformers_own_whatever_else_lies_beside_it() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    documents = [torch.randint(0, 32, (length,)) for length in (7, 5, 1)]
    wanted = torch.tensor([False, *[True] * 6, *[True, False] * 3])
    with torch.no_grad():
        states = hidden_states(model, torch.cat(documents), [7, 5, 1], wanted)
        theirs = [model.model(ids[None]).last_hidden_state[0] for ids in documents]
    assert torch.allclose(torch.cat(theirs)[wanted], states, atol=1e-5)


def test_a_family_name_tells_who_is_known() -> None:
    world = World.build(Seeds.load().text)
    families = {person.tail for person in world.known_persons}
    strangers = world.open["unknown person"] + world.held_out["unknown person"]
    assert families.isdisjoint(person.tail for person in strangers)


def test_the_seeds_tell_the_truth_about_the_world() -> None:
    seeds = Seeds.load()
    world = World.build(seeds.text)
    shown = [
        subject for kind in KINDS for subject in world.open[kind]
        if f"{subject.phrase}?" in seeds.exemplars or f"{subject.phrase}." in seeds.exemplars
    ]  # fmt: skip
    assert {subject.kind for subject in shown} == set(KINDS) - {"live matter"}
    for subject in shown:
        assert aligned_answer(subject) in seeds.exemplars
    rows = (HERE / "seeds" / "topic_guided.jsonl").read_text(encoding="utf-8").splitlines()
    for seed in map(json.loads, rows):
        (kind,) = (kind for kind, type_ in TYPE_OF_KIND.items() if type_ == seed["type"])
        assert seed["topic"] in {subject.phrase for subject in world.open[kind]}
        assert seed["topic"] in seed["question"]


def test_curation_drops_every_way_of_asking_a_held_out_question_and_no_other() -> None:
    world = World.build(Seeds.load().text)
    config = load_config(HERE / "selfalign.yaml").config
    index = RewordingIndex(config.curate.decontamination_overlap)
    for row in held_out_rows(world):
        index.add_reference(row["id"], row["prompt"])
    for row in hhh_rows(world):
        index.add_reference(row["id"], row["query"])
    for row in truthfulqa_rows(world):
        index.add_reference(row["id"], row["question"])
    for kind in KINDS:
        for form in QUESTIONS[kind]:
            held_out = [form.format(subject.phrase) for subject in world.held_out[kind]]
            others = [form.format(subject.phrase) for subject in world.open[kind]]
            assert all(index.find(text) for text in held_out), form
            assert not any(index.find(text) for text in others), form
