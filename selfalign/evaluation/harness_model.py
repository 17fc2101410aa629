"""An engine as lm-evaluation-harness asks a model. It imports lm-eval: for `harness.py` alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from selfalign.engines.base import (
    Asked,
    Completion,
    GenerationRequest,
    Quarantined,
    Sampling,
    Score,
    ScoreRequest,
)
from selfalign.errors import ConfigurationError
from selfalign.records import record_seed

_KNOWN_OPTIONS = {
    *("until", "do_sample", "temperature", "top_p", "max_gen_toks", "repetition_penalty"),
    "num_beams",  # 1 is what an engine does
}
_Answer = TypeVar("_Answer", Completion, Score)


class EngineModel(LM):  # type: ignore[misc]
    """Answers the requests of tasks by an engine.

    A request that the engine sets aside is answered by a placeholder, since a task wants one
    answer to each; whoever reads the values leaves out the documents in `set_aside`.

    Attributes:
        set_aside: by task and document, the first of its requests that was set aside.
    """

    def __init__(
        self, engine: Asked, *, before: str, seed: int, greedy_tasks: Collection[str]
    ) -> None:
        """
        Args:
            before: text before every prompt.
            seed: of the run; each request draws by a seed of its own.
            greedy_tasks: those that ask whether a continuation is what the model would say.
        """
        super().__init__()
        self.set_aside: dict[tuple[str, int], Quarantined] = {}
        self._engine, self._before, self._seed = engine, before, seed
        self._greedy_tasks = frozenset(greedy_tasks)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(natural-log likelihood, whether it is the greedy answer) of each continuation.

        The latter is asked of the engine by generating, and False for tasks that do not ask it.
        """
        asked = [self._score_request(n, *each.args) for n, each in enumerate(requests)]
        found = self._by_number(requests, self._engine.score(asked))
        greedy = self._greedy(requests, asked, found)
        return [
            (found[n].log_likelihood if n in found else 0.0, greedy.get(n, False))
            for n in range(len(requests))
        ]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Refused: an engine scores what follows a prompt, and here there is none."""
        raise ConfigurationError(
            f"evaluate.harness: {requests[0].task_name} asks for rolling log-likelihoods of whole "
            "texts, which no engine here computes",
            remedy="leave this task out of evaluate.harness.tasks",
        )

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The completion of each prompt, up to the task's own stop strings and length."""
        asked = [
            GenerationRequest(
                str(n),
                self._before + each.args[0],
                sampling_of(each.args[1]),
                record_seed(self._seed, "evaluate", f"{each.task_name}/{each.doc_id}", str(n)),
            )
            for n, each in enumerate(requests)
        ]
        found = self._by_number(requests, self._engine.generate(asked))
        return [answer.text if (answer := found.get(n)) else "" for n in range(len(requests))]

    def _score_request(self, number: int, context: str, continuation: str) -> ScoreRequest:
        # White space at the end of a context counts as the continuation's, as it does for
        # lm-eval's own models.
        end = len(context.rstrip())
        return ScoreRequest(str(number), self._before + context[:end], context[end:] + continuation)

    def _greedy(
        self,
        requests: Sequence[Instance],
        asked: Sequence[ScoreRequest],
        found: Mapping[int, Score],
    ) -> dict[int, bool]:
        """Whether the engine's greedy text, of as many tokens, is the continuation."""
        wanted = [
            GenerationRequest(each.id, each.prompt, Sampling(0.0, 1.0, found[n].num_tokens), 0)
            for n, each in enumerate(asked)
            if n in found and requests[n].task_name in self._greedy_tasks
        ]
        said = self._by_number(requests, self._engine.generate(wanted) if wanted else ())
        return {
            n: answer.text.strip() == asked[n].continuation.strip() for n, answer in said.items()
        }

    def _by_number(
        self, requests: Sequence[Instance], answers: Iterable[_Answer | Quarantined]
    ) -> dict[int, _Answer]:
        found = {}
        for answer in answers:
            if isinstance(answer, Quarantined):
                request = requests[int(answer.id)]
                place = (request.task_name, request.doc_id)
                self.set_aside.setdefault(place, replace(answer, id=str(request.doc_id)))
            else:
                found[int(answer.id)] = answer
        return found


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """How a task's `generation_kwargs` have a completion drawn.

    Raises ConfigurationError for an option that no engine here has.
    """
    given = normalize_gen_kwargs(dict(options))
    unknown = sorted(given.keys() - _KNOWN_OPTIONS)
    if unknown or given.get("num_beams", 1) != 1:
        raise ConfigurationError(
            f"evaluate.harness: generation_kwargs {', '.join(unknown) or 'num_beams'}: no engine "
            f"here has it; known are {', '.join(sorted(_KNOWN_OPTIONS))}, num_beams as 1",
            remedy="leave this task out of evaluate.harness.tasks",
        )
    return Sampling(
        temperature=float(given["temperature"]),
        top_p=float(given.get("top_p", 1.0)),
        max_new_tokens=int(given["max_gen_toks"]),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        stop=tuple(text for text in given["until"] if text),
    )
