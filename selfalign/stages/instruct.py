"""Stage `instruct`: the base model writes candidate prompts (stage 1a and 1b of the paper).

Reads seeds alone; writes candidates. Vanilla self-instruct shows a few seed tasks and asks for
more; topic-guided red-teaming grows topics of adversarial question types, then asks one question
per (type, topic). One request is one record of work: its id fixes its examples and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from selfalign.engines.base import Completion, GenerationRequest, Sampling
from selfalign.engines.open import SHARED_BY_STREAMS
from selfalign.filters.candidates import candidate_verdict, parse_numbered_list, parse_questions
from selfalign.prompts import render_questions, render_self_instruct
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
from selfalign.stages.topics import Topics, grow_topics
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress

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
            growing = beside.submit(grow_topics, context, engine)
        else:  # in this thread, so that a signal ends it
            growing.set_result(grow_topics(context, engine))
        work = _Work(context, growing)
        generate_shard(
            writer.shard(context.shard, context.num_shards),
            work.chunks(),
            engine,
            partial(_request, context),
            partial(_finish, context),
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
        self._general = context.config.instruct.general_requests
        self.limit = context.quarantine_limit(self._general)
        self.progress = Progress("requests", self._share_of(self._general))

    def hints(self) -> list[list[Hint]]:
        """The hints of each guided request; waits for the topics."""
        return _hint_groups(self._context, self._growing.result())

    def chunks(self) -> Iterator[Chunk[_Asked]]:
        """The requests, to be committed together."""
        context, size = self._context, self._context.config.instruct.records_per_part
        general = map(_Asked, context.mine(range(self._general)))
        yield from chunked(GENERAL, general, size)
        groups = self.hints()
        self.limit.rows = self._general + len(groups)
        self.progress.total = self._share_of(self._general) + self._share_of(len(groups))
        guided = (_Asked(index, hints) for index, hints in context.mine(enumerate(groups)))
        yield from chunked(GUIDED, guided, size)

    def _share_of(self, rows: int) -> int:
        return share_size(rows, self._context.shard, self._context.num_shards)


def _request(context: StageContext, asked: _Asked) -> GenerationRequest:
    config, seeds = context.config.instruct, context.seeds
    seed = context.seed_for(asked.id)
    chosen = random.Random(seed)
    shown = _num_shown(context, asked)
    if asked.hints is None:
        prompt = render_self_instruct(seeds, chosen.sample(seeds.general, shown))
        sampling = Sampling(**config.general_sampling.model_dump())
    else:
        prompt = render_questions(seeds, chosen.sample(seeds.topic_guided, shown), asked.hints)
        prompt += _given(context, asked.hints)
        # a base model goes on with hints of its own making
        stop = (f"\n{shown + len(asked.hints) + 1}.",) if config.name_first_hint else ()
        sampling = Sampling(**config.question_sampling.model_dump(), stop=stop)
    return GenerationRequest(asked.id, prompt, sampling, seed)


def _given(context: StageContext, hints: list[Hint]) -> str:
    """What the prompt says of the first line itself."""
    return f" ({hints[0].text})" if context.config.instruct.name_first_hint else ""


def _num_shown(context: StageContext, asked: _Asked) -> int:
    """How many examples the prompt shows before the ones that are asked for."""
    config, seeds = context.config.instruct, context.seeds
    if asked.hints is None:
        return min(config.general_in_context, len(seeds.general))
    return min(config.questions_in_context, len(seeds.topic_guided))


def _hint_groups(context: StageContext, topics: Topics) -> list[list[Hint]]:
    """Every (type, topic) once, except those a person asked about already, in groups of a prompt.

    Shuffled, so that a prompt's hints are of different types.
    """
    asked = {(seed.type, seed.topic.lower()) for seed in context.seeds.topic_guided}
    hints = [
        Hint(question_type, topic)
        for question_type, names in topics.items()
        for topic in names
        if (question_type, topic.lower()) not in asked
    ]
    random.Random(context.seed_for("hints")).shuffle(hints)
    size = context.config.instruct.questions_per_request
    return [hints[start : start + size] for start in range(0, len(hints), size)]


def _finish(
    context: StageContext, outcome: PartOutcome, asked: _Asked, completion: Completion
) -> None:
    next_number = _num_shown(context, asked) + 1
    text, reason = completion.text, completion.finish_reason
    if asked.hints is None:
        items = parse_numbered_list(text, next_number=next_number, finish_reason=reason)
        if not items:
            outcome.drop("unparsed", text[:_LONGEST_SAMPLE])
        for index, item in enumerate(items):
            _judge(context, outcome, item, request=asked.id, index=index)
        return
    text = _given(context, asked.hints) + text
    found = parse_questions(text, hints=asked.hints, next_number=next_number, finish_reason=reason)
    for index, hint in enumerate(asked.hints):
        question = found.get(index)
        if question is None:
            outcome.drop("hint_not_answered", f"({hint.text})")
        else:
            _judge(context, outcome, question, request=asked.id, index=index, hint=hint)


def _judge(
    context: StageContext,
    outcome: PartOutcome,
    text: str,
    *,
    request: str,
    index: int,
    hint: Hint | None = None,
) -> None:
    config = context.config.instruct
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
