"""Stage `instruct`: the base model writes candidate prompts (stage 1a and 1b of the paper).

Reads seeds alone; writes candidates. Vanilla self-instruct shows a few seed tasks and asks for
more; topic-guided red-teaming grows topics of adversarial question types over rounds, then asks one
question per (type, topic). One request is one record of work: its id fixes its examples and its
seed. Each round's topics are written once, if absent: every shard starts by growing the same
topics, the first to finish a round decides it, and all go on from what is stored. With an engine
that is deterministic they agree anyway.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from selfalign.engines.base import Completion, GenerationRequest, Quarantined, Sampling, unreadable
from selfalign.engines.open import SHARED_BY_STREAMS
from selfalign.errors import DataError
from selfalign.filters.candidates import (
    balance_topics,
    candidate_verdict,
    parse_numbered_list,
    parse_questions,
    parse_topics,
)
from selfalign.prompts import render_questions, render_self_instruct, render_topics
from selfalign.records import Candidate
from selfalign.seeds import Hint
from selfalign.stages.contract import (
    Chunk,
    EngineHandle,
    PartOutcome,
    StageContext,
    chunked,
    generate_shard,
    share_size,
)
from selfalign.stages.models import base_engine
from selfalign.store.artifact import artifact_prefix
from selfalign.store.documents import StoredModel, read_document, write_once
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress, log

Topics = dict[str, list[str]]

GENERAL, GUIDED = "general", "guided"  # what ids of requests and names of parts begin with
_LONGEST_SAMPLE = 300  # characters of a completion that are kept for a person to see


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: its place in its kind's order, and its hints if it is topic-guided."""

    index: int
    hints: list[Hint] | None = None

    @property
    def id(self) -> str:
        return f"{GENERAL if self.hints is None else GUIDED}-{self.index:08d}"


def instruct(context: StageContext) -> Manifest | None:
    """Generate this shard's candidates; publish when all shards are done."""
    config = context.config.instruct
    engine_config = config.engine or context.config.engine
    writer = context.writer()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="topics") as beside,
        EngineHandle(lambda: base_engine(context.store, context.config, config.engine)) as engine,
    ):
        growing: Future[Topics] = Future()
        if engine_config.kind in SHARED_BY_STREAMS:
            growing = beside.submit(_grow_topics, context, engine)
        else:  # in this thread, so that a signal ends it
            growing.set_result(_grow_topics(context, engine))
        work = _Work(context, growing)
        generate_shard(
            writer.shard(context.shard, context.num_shards),
            work.chunks(),
            engine,
            work.request,
            work.finish,
            work.progress,
            work.limit,
        )
    rows = config.general_requests + len(work.hints())
    check = context.quarantine_limit(rows).add_all
    return writer.publish_when_complete(context.num_shards, check=check)


class _Work:
    """What this shard asks: general tasks first, while topics grow, then (type, topic) hints.

    Growing topics takes rounds of few requests, which alone would leave an engine idle.
    """

    def __init__(self, context: StageContext, growing: Future[Topics]) -> None:
        self._context, self._growing = context, growing
        self._config, self._seeds = context.config.instruct, context.seeds
        self.limit = context.quarantine_limit(self._config.general_requests)
        self.progress = Progress("requests", self._share_of(self._config.general_requests))

    def hints(self) -> list[list[Hint]]:
        """Every (type, topic) once, except those a person asked about already, in groups of a
        prompt; waits for the topics. Shuffled, so that a prompt's hints are of different types."""
        asked = {(seed.type, seed.topic.lower()) for seed in self._seeds.topic_guided}
        hints = [
            Hint(question_type, topic)
            for question_type, names in self._growing.result().items()
            for topic in names
            if (question_type, topic.lower()) not in asked
        ]
        random.Random(self._context.seed_for("hints")).shuffle(hints)
        size = self._config.questions_per_request
        return [hints[start : start + size] for start in range(0, len(hints), size)]

    def chunks(self) -> Iterator[Chunk[_Asked]]:
        """The requests, to be committed together."""
        context, size = self._context, self._config.records_per_part
        rows = self._config.general_requests
        yield from chunked(GENERAL, map(_Asked, context.mine(range(rows))), size)
        groups = self.hints()
        self.limit.rows = rows + len(groups)
        self.progress.total = self._share_of(rows) + self._share_of(len(groups))
        guided = (_Asked(index, hints) for index, hints in context.mine(enumerate(groups)))
        yield from chunked(GUIDED, guided, size)

    def request(self, asked: _Asked) -> GenerationRequest:
        """What the engine is asked."""
        config, seeds = self._config, self._seeds
        seed = self._context.seed_for(asked.id)
        chosen = random.Random(seed)
        shown = self._num_shown(asked)
        if asked.hints is None:
            prompt = render_self_instruct(seeds, chosen.sample(seeds.general, shown))
            sampling = Sampling(**config.general_sampling.model_dump())
        else:
            prompt = render_questions(seeds, chosen.sample(seeds.topic_guided, shown), asked.hints)
            prompt += self._given(asked.hints)
            # a base model goes on with hints of its own making
            stop = (f"\n{shown + len(asked.hints) + 1}.",) if config.name_first_hint else ()
            sampling = Sampling(**config.question_sampling.model_dump(), stop=stop)
        return GenerationRequest(asked.id, prompt, sampling, seed)

    def finish(self, outcome: PartOutcome, asked: _Asked, completion: Completion) -> None:
        """Enter what a completion asks into the outcome of its part."""
        next_number = self._num_shown(asked) + 1
        text, reason = completion.text, completion.finish_reason
        if asked.hints is None:
            items = parse_numbered_list(text, next_number=next_number, finish_reason=reason)
            if not items:
                outcome.drop("unparsed", text[:_LONGEST_SAMPLE])
            for index, item in enumerate(items):
                self._judge(outcome, item, asked.id, index)
            return
        text = self._given(asked.hints) + text
        found = parse_questions(
            text, hints=asked.hints, next_number=next_number, finish_reason=reason
        )
        for index, hint in enumerate(asked.hints):
            question = found.get(index)
            if question is None:
                outcome.drop("hint_not_answered", f"({hint.text})")
            else:
                self._judge(outcome, question, asked.id, index, hint)

    def _share_of(self, rows: int) -> int:
        return share_size(rows, self._context.shard, self._context.num_shards)

    def _given(self, hints: list[Hint]) -> str:
        """What the prompt says of the first line itself."""
        return f" ({hints[0].text})" if self._config.name_first_hint else ""

    def _num_shown(self, asked: _Asked) -> int:
        """How many examples the prompt shows before the ones that are asked for."""
        if asked.hints is None:
            return min(self._config.general_in_context, len(self._seeds.general))
        return min(self._config.questions_in_context, len(self._seeds.topic_guided))

    def _judge(
        self, outcome: PartOutcome, text: str, request: str, index: int, hint: Hint | None = None
    ) -> None:
        config = self._config
        reason = candidate_verdict(text, min_words=config.min_words, max_words=config.max_words)
        if reason is not None:
            outcome.drop(reason, text)
            return
        outcome.keep(
            Candidate(
                id=f"{request}-{index:02d}",
                source="self_instruct" if hint is None else "topic_guided",
                text=text,
                type=None if hint is None else hint.type,
                topic=None if hint is None else hint.topic,
                request=request,
            )
        )


class TopicRound(StoredModel):
    """The topics by question type after a round."""

    signed = True

    topics: Topics


def _grow_topics(context: StageContext, engine: EngineHandle) -> Topics:
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
        grown = TopicRound(topics=_grow(context, engine, topics, number))
        done = write_once(store, name, grown)
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
