"""What the transformers engine adds to the contract: batches, shared prefixes, exact sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from selfalign.config import EngineConfig
from selfalign.engines.base import Completion, Engine, GenerationRequest, ScoreRequest
from selfalign.engines.open import open_engine
from selfalign.engines.transformers.decoding import LIKELIEST, Row, Sampler
from selfalign.engines.transformers.engine import _translated
from selfalign.engines.transformers.forward import BLOCK, Forward
from selfalign.errors import ConfigurationError, EngineError, OutOfMemory
from tests.engines.conftest import SHAPE, Ask, llama_config
from tests.engines.reference import PROMPTS
from tests.engines.test_architectures import ARCHITECTURES


def opened(
    directory: Path, batch_size: int = 4, max_length: int | None = None, **options: Any
) -> Engine:
    config = EngineConfig(
        kind="transformers",
        dtype="float32",
        batch_size=batch_size,
        max_length=max_length,
        options={"device": "cpu"} | options,
    )
    return open_engine(config, directory)


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[Engine]:
    with opened(llama) as engine:
        yield engine


def by_id(completions: Iterator[Completion]) -> dict[str, Completion]:
    return {completion.id: completion for completion in completions}


def test_texts_and_scores_are_the_same_without_prefix_sharing(
    engine: Engine, llama: Path, ask: Ask
) -> None:
    assert engine.info.details["share_prefixes"] == "true"
    requests = [ask(n, prompt, seed=n, max_new_tokens=20) for n, prompt in enumerate(PROMPTS)]
    scores = [ScoreRequest(str(n), prompt, " the tower") for n, prompt in enumerate(PROMPTS)]
    with opened(llama, share_prefixes=False) as plain:
        assert plain.info.details["share_prefixes"] == "false"
        assert by_id(plain.generate(requests)) == by_id(engine.generate(requests))
        for one, other in zip(plain.score(scores), engine.score(scores), strict=True):
            assert one.num_tokens == other.num_tokens
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)


@pytest.fixture
def forwards(llama: Path) -> Callable[..., Forward]:
    from transformers import AutoModelForCausalLM

    def make(share: bool, dtype: torch.dtype = torch.float32) -> Forward:
        with torch.inference_mode():
            model = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype).eval()
            return Forward(model, share_prefixes=share)

    return make


def rows_with_prefix(length: int, *suffixes: int) -> list[list[int]]:
    prefix = [2 + 7 * place % 300 for place in range(length)]
    return [
        prefix + [(3 + 11 * place + row) % 320 for place in range(size)]
        for row, size in enumerate(suffixes)
    ]


def run_steps(forward: Forward, sequences: list[list[int]], steps: int) -> list[Any]:
    """Logits of the prompt's last place and of `steps` further tokens."""
    with torch.inference_mode():
        batch, kept = forward.start(sequences, keep=1)
        logits = [kept[:, 0]]
        for step in range(steps):
            tokens = torch.tensor([(5 + 13 * step + row) % 320 for row in range(len(sequences))])
            logits.append(forward.step(batch, tokens))
    return logits


@pytest.mark.parametrize(
    "sequences",
    [
        rows_with_prefix(100, 1, 20, 7),
        rows_with_prefix(BLOCK, 3, 3),
        rows_with_prefix(10, 4, 9, 1),
        rows_with_prefix(70, 5),
        rows_with_prefix(2 * BLOCK, 0, 5),
    ],
    ids=[
        "three blocks",
        "one block, no padding",
        "less than a block",
        "one row",
        "nothing but prefix",
    ],
)
def test_logits_with_a_shared_prefix_equal_the_plain_ones(
    forwards: Callable[..., Forward], sequences: list[list[int]]
) -> None:
    # How far apart float32 leaves sums taken in another order is the CPU's affair.
    shared, plain = forwards(True, torch.float64), forwards(False, torch.float64)
    assert shared.shares_prefixes
    assert not plain.shares_prefixes
    for one, other in zip(
        run_steps(shared, sequences, 70), run_steps(plain, sequences, 70), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "shares"), [("gemma-3", True), ("mistral", True), ("gemma-2", False)]
)
@pytest.mark.parametrize("prefix", [100, BLOCK, 5])
def test_a_sliding_window_holds_the_end_of_a_shared_prefix(
    make_model: Callable[..., Path], architecture: str, shares: bool, prefix: int
) -> None:
    import transformers

    name, changes = ARCHITECTURES[architecture]
    directory = make_model(getattr(transformers, name)(**(SHAPE | changes)))
    found = []
    for share in (True, False):
        with torch.inference_mode():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float64
            ).eval()
            forward = Forward(model, share_prefixes=share)
        assert forward.shares_prefixes == (share and shares)  # gemma-2 caps its attention
        found.append(run_steps(forward, rows_with_prefix(prefix, 1, 20, 7), 70))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_known_prefix_is_not_computed_again(forwards: Callable[..., Forward]) -> None:
    forward = forwards(True)
    computed: list[int] = []
    forward.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: computed.append(inputs[0].numel())
    )
    run_steps(forward, rows_with_prefix(100, 10, 10), 0)
    assert sum(computed) == 96 + 2 * 14
    computed.clear()
    run_steps(forward, rows_with_prefix(100, 5, 9, 8), 0)
    assert sum(computed) == 3 * (4 + 9)  # padded to the longest


def test_logits_do_not_depend_on_what_ran_before_to_the_bit(
    forwards: Callable[..., Forward],
) -> None:
    sequences = rows_with_prefix(100, 9, 4, 6)
    fresh = run_steps(forwards(True), sequences, 3)
    used = forwards(True)
    for other in (rows_with_prefix(130, 2, 2), rows_with_prefix(40, 3, 30), [[9, 8, 7]]):
        run_steps(used, other, 2)
    for one, other_logits in zip(fresh, run_steps(used, sequences, 3), strict=True):
        assert torch.equal(one, other_logits)


def test_dropping_finished_rows_keeps_the_others(forwards: Callable[..., Forward]) -> None:
    forward = forwards(True, torch.float64)
    sequences = rows_with_prefix(40, 3, 9, 5, 7)
    kept = [3, 1]
    with torch.inference_mode():
        batch, _ = forward.start(sequences, keep=1)
        forward.step(batch, torch.tensor([10, 11, 12, 13]))
        batch.select(torch.tensor(kept))
        dropped = forward.step(batch, torch.tensor([23, 21]))
        batch, _ = forward.start([sequences[row] for row in kept], keep=1)
        forward.step(batch, torch.tensor([13, 11]))
        alone = forward.step(batch, torch.tensor([23, 21]))
    torch.testing.assert_close(dropped, alone, rtol=0, atol=1e-5)


def test_a_resumed_run_repeats_the_rest_of_an_uninterrupted_one(
    llama: Path, engine: Engine, ask: Ask
) -> None:
    requests = [
        ask(n, PROMPTS[n % len(PROMPTS)], seed=n, top_p=0.9, max_new_tokens=8 + n)
        for n in range(11)
    ]
    whole = by_id(engine.generate(requests))
    for start in (4, 8):
        with opened(llama) as fresh:
            rest = by_id(fresh.generate(requests[start:]))
        assert rest == {request.id: whole[request.id] for request in requests[start:]}


def test_at_most_one_batch_is_drawn_ahead(engine: Engine, ask: Ask) -> None:
    drawn: list[int] = []

    def requests() -> Iterator[GenerationRequest]:
        for number in range(12):
            drawn.append(number)
            yield ask(number, seed=number, max_new_tokens=2)

    for count, _ in enumerate(engine.generate(requests()), start=1):
        assert len(drawn) <= (count + 3) // 4 * 4
    assert len(drawn) == 12


def test_a_batch_may_mix_greedy_and_sampled_requests(engine: Engine, ask: Ask) -> None:
    requests = [
        ask("greedy", temperature=0),
        ask("sampled", seed=4),
        ask("penalised", temperature=0, repetition_penalty=1.5),
        ask("narrow", seed=9, temperature=0.7, top_p=0.5),
    ]
    mixed = by_id(engine.generate(requests))
    for request in requests:
        assert by_id(engine.generate([request]))[request.id] == mixed[request.id]


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_a_rope_that_depends_on_the_batchs_length_ends_at_the_original_one(
    make_model: Callable[..., Path], rope: str
) -> None:
    parameters: dict[str, Any] = {
        "rope_type": rope,
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 128,
    }
    if rope == "longrope":
        parameters |= {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 2.0}
    else:
        parameters["factor"] = 2.0
    directory = make_model(llama_config(rope_parameters=parameters))
    with opened(directory) as engine:
        assert engine.max_length == 128
    with pytest.raises(ConfigurationError, match="takes 128"):
        opened(directory, max_length=200)


def test_a_model_whose_batches_would_be_wrong_is_refused(make_model: Callable[..., Path]) -> None:
    from transformers import MambaConfig

    recurrent = MambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2)
    with pytest.raises(ConfigurationError, match="MambaForCausalLM gives other results"):
        opened(make_model(recurrent), max_length=200)


def sampled(logits: list[float], ask: Ask, count: int = 5_000, **sampling: Any) -> list[float]:
    """Shares of each token among `count` rows of different seeds, drawn from the same logits."""
    rows = [
        Row(ask(seed, seed=seed, **sampling), [0], 1, stream=None)  # type: ignore[arg-type]
        for seed in range(count)
    ]
    sampler = Sampler(rows, len(logits), torch.device("cpu"))
    tokens = sampler.draw(torch.tensor([logits]).expand(count, -1))
    return [float(share) for share in torch.bincount(tokens, minlength=len(logits)) / count]


def test_tokens_are_drawn_as_often_as_they_are_likely(ask: Ask) -> None:
    logits = [0.0, 1.0, -1.0, 2.0, -30.0]
    for temperature in (0.5, 1.0, 2.0):
        expected = (torch.tensor(logits) / temperature).softmax(-1).tolist()
        shares = sampled(logits, ask, temperature=temperature)
        assert shares == pytest.approx(expected, abs=0.03)  # four standard deviations


def test_nothing_outside_the_nucleus_is_drawn(ask: Ask) -> None:
    probabilities = torch.tensor([0.2, 0.4, 0.05, 0.25, 0.1])
    shares = sampled(probabilities.log().tolist(), ask, top_p=0.8)
    inside = {0: 0.2, 1: 0.4, 3: 0.25}  # the fewest likeliest tokens that hold 0.8
    for token, share in enumerate(shares):
        assert share == pytest.approx(inside.get(token, 0) / 0.85, abs=0.03)
        assert (share > 0) == (token in inside)
    assert sampled(probabilities.log().tolist(), ask, top_p=1e-6)[1] == 1


def test_a_nucleus_wider_than_what_is_sorted_first_is_whole(ask: Ask) -> None:
    probabilities = torch.arange(3000, 0, -1, dtype=torch.float64) / (3000 * 3001 / 2)
    widths = {}
    for top_p in (0.3, 0.8):
        before = probabilities.cumsum(0) - probabilities
        widths[top_p] = int((before < top_p).sum())
    assert widths[0.3] < LIKELIEST < widths[0.8]
    top_ps = [(0.3, 0.8)[seed % 2] for seed in range(600)]
    rows = [
        Row(ask(n, seed=n, top_p=top_p), [0], 1, stream=None)  # type: ignore[arg-type]
        for n, top_p in enumerate(top_ps)
    ]
    sampler = Sampler(rows, 3000, torch.device("cpu"))
    tokens = sampler.draw(probabilities.log().float().expand(600, -1)).tolist()
    for top_p, width in widths.items():
        drawn = [token for token, of_row in zip(tokens, top_ps, strict=True) if of_row == top_p]
        assert 0.95 * width < max(drawn) < width


def test_each_token_of_a_row_is_drawn_anew(ask: Ask) -> None:
    rows = [Row(ask(7, seed=7), [0], 400, stream=None)]  # type: ignore[arg-type]
    sampler = Sampler(rows, 2, torch.device("cpu"))
    drawn = [int(sampler.draw(torch.zeros(1, 2))) for _ in range(400)]
    assert 160 < sum(drawn) < 240  # four standard deviations around one half
    changes = sum(one != other for one, other in pairwise(drawn))
    assert 160 < changes < 240


def test_nothing_touches_the_global_random_state(engine: Engine, ask: Ask) -> None:
    before = torch.random.get_rng_state()
    list(engine.generate([ask("x", seed=3)]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_failed_allocation_is_out_of_memory_and_any_other_failure_an_engine_error() -> None:
    with pytest.raises(OutOfMemory, match="generating a") as full, _translated("generating a"):
        torch.empty(2**60)
    assert "batch_size" in str(full.value.remedy)
    with pytest.raises(OutOfMemory), _translated("generating"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    with pytest.raises(EngineError, match="scoring") as other, _translated("scoring"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert isinstance(other.value.__cause__, RuntimeError)
