"""Topics for red-teaming, grown by the model over rounds (stage 1b).

Each round's topics are written once, if absent: every shard starts by growing the same topics,
the first to finish a round decides it, and all go on from what is stored. With an engine that is
deterministic they agree anyway.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from selfalign.engines.base import Completion, GenerationRequest, Quarantined, Sampling, unreadable
from selfalign.errors import DataError
from selfalign.filters.candidates import balance_topics, parse_topics
from selfalign.prompts import render_topics
from selfalign.stages.contract import EngineHandle, StageContext
from selfalign.store.artifact import artifact_prefix
from selfalign.store.base import PreconditionFailed
from selfalign.store.documents import StoredModel, read_document
from selfalign.telemetry import log

Topics = dict[str, list[str]]


class TopicRound(StoredModel):
    """The topics by question type after a round."""

    signed = True

    topics: Topics


def grow_topics(context: StageContext, engine: EngineHandle) -> Topics:
    """Topics by question type after all rounds, balanced to the type that has fewest."""
    config = context.config.instruct
    topics: Topics = {}
    for seed in context.seeds.topic_guided:
        topics.setdefault(seed.type, []).append(seed.topic)
    for number in range(config.topic_rounds):
        topics = _round(context, engine, topics, number)
        log.info(
            "topics.round",
            round=number + 1,
            rounds=config.topic_rounds,
            topics=sum(map(len, topics.values())),
            fewest=min(map(len, topics.values())),
        )
    return balance_topics(topics, config.topics_per_type, context.seed_for("balance"))


def _round(context: StageContext, engine: EngineHandle, topics: Topics, number: int) -> Topics:
    store = context.store
    prefix = artifact_prefix(context.stage.writes, context.key)
    name = f"{prefix}topics/round-{number:02d}.json"
    done = read_document(store, name, TopicRound)
    if done is None:
        done = TopicRound(topics=_grow(context, engine, topics, number))
        try:
            store.write(name, done.to_bytes(name), if_absent=True)
        except PreconditionFailed:
            done = read_document(store, name, TopicRound) or done
    if done.topics.keys() != topics.keys():
        raise DataError(
            f"{store.url}/{name}: its question types are not those of the seeds",
            remedy="it was edited: delete it; it is made again",
        )
    return done.topics


def _grow(context: StageContext, engine: EngineHandle, topics: Topics, number: int) -> Topics:
    shown: dict[str, tuple[str, list[str]]] = {}

    def requests() -> Iterator[GenerationRequest]:
        config = context.config.instruct
        sampling = Sampling(**config.topic_sampling.model_dump())
        for type_index, (question_type, known) in enumerate(topics.items()):
            for index in range(config.topic_requests_per_round):
                request_id = f"topics-{number:02d}-{type_index:03d}-{index:05d}"
                seed = context.seed_for(request_id)
                count = min(config.topics_in_context, len(known))
                examples = random.Random(seed).sample(known, count)
                shown[request_id] = (question_type, examples)
                prompt = render_topics(context.seeds, question_type, examples)
                yield GenerationRequest(request_id, prompt, sampling, seed)

    completions: dict[str, Completion] = {}
    for answer in engine.generate(requests()):
        if isinstance(answer, Completion):
            answer = unreadable(answer.id, answer.text) or answer
        if isinstance(answer, Quarantined):
            log.warning("topics.quarantined", request=answer.id, why=answer.explanation)
        else:
            completions[answer.id] = answer
    grown = {question_type: list(known) for question_type, known in topics.items()}
    for request_id in sorted(completions):
        question_type, examples = shown[request_id]
        completion = completions[request_id]
        known = grown[question_type]
        known += parse_topics(
            completion.text,
            next_number=len(examples) + 1,
            finish_reason=completion.finish_reason,
            known=known,
        )
    return grown
