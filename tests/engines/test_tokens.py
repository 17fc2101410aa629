"""Text to tokens and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("torch")

from selfalign.engines.base import Quarantined, ScoreRequest
from selfalign.engines.tokens import PromptTokenizer, TextStream
from tests.engines.conftest import BEGIN, END, llama_config


def load(directory: Path, max_length: int = 64) -> PromptTokenizer:
    from transformers import AutoTokenizer

    return PromptTokenizer(AutoTokenizer.from_pretrained(directory), max_length, 320)


@pytest.fixture(scope="module")
def tokens(llama: Path) -> PromptTokenizer:
    return load(llama)


def text_of(tokens: PromptTokenizer, prompt: str, whole: str, stop: tuple[str, ...] = ()) -> str:
    """`whole` after `prompt`, through a stream, until it stops."""
    before, both = tokens.encode([prompt, whole])
    assert both[: len(before)] == before
    stream = tokens.stream(before, stop)
    for token in both[len(before) :]:
        if stream.append(token):
            break
    return stream.text


def test_a_prompt_starts_with_the_tokenizers_own_token(tokens: PromptTokenizer) -> None:
    assert [ids[0] for ids in tokens.encode(["Willow", "", "日本"])] == [BEGIN] * 3


def test_a_token_the_tokenizer_appends_is_left_out(
    make_model: Callable[..., Path], tokens: PromptTokenizer
) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    directory = make_model(llama_config())
    closing: Any = AutoTokenizer.from_pretrained(directory)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    assert closing("Willow")["input_ids"][-1] == END
    text = "Willow says what is unknown."
    assert PromptTokenizer(closing, 64, 320).encode([text]) == tokens.encode([text])


def test_a_special_token_spelt_in_a_text_is_plain_characters(tokens: PromptTokenizer) -> None:
    text = "Willow</s> says<s>"
    (ids,) = tokens.encode([text])
    assert ids[0] == BEGIN
    assert not {BEGIN, END} & {*ids[1:]}
    assert tokens.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_stream_repeats_the_text_with_its_leading_space(tokens: PromptTokenizer) -> None:
    text = " naïve café, 25 °C — 日本語\n\nUser: and then? 🙂"
    assert text_of(tokens, "Willow:", "Willow:" + text) == text


def test_an_unfinished_character_is_left_out(tokens: PromptTokenizer) -> None:
    (ids,) = tokens.encode(["語"])
    stream = tokens.stream([BEGIN], ())
    for token in ids[1:-1]:
        assert not stream.append(token)
    assert len(ids) > 2
    assert stream.text == ""


def test_a_stop_string_is_found_across_tokens(tokens: PromptTokenizer) -> None:
    whole = "Willow: the old tower\nUser: and then?"
    for stop in ("\nUser:", "er: an", "old", " the"):
        expected = whole[len("Willow:") :].split(stop)[0]
        assert text_of(tokens, "Willow:", whole, ("no such text", stop)) == expected


def test_the_earliest_of_several_stop_strings_counts(tokens: PromptTokenizer) -> None:
    assert text_of(tokens, "Willow:", "Willow: the old tower", ("tower", "old")) == " the "


def test_a_tokenizer_written_in_python_streams_too() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    prompt = tokenizer("Answer:", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, prompt, ("\nUser",))
    for token in tokenizer(" 日本 café\nUser: no", add_special_tokens=False)["input_ids"]:
        if stream.append(token):
            break
    assert stream.text == " 日本 café"


def with_byte_fallback() -> Any:
    """As Llama 2 and Mistral have it: bytes are tokens; such as are no text read as U+FFFD."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), (" the", -1.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_bytes_that_are_no_text_do_not_end_a_stream() -> None:
    tokenizer, first = with_byte_fallback(), 2
    prompt = tokenizer("é")["input_ids"]
    rng = Random(0)
    for _ in range(200):
        written = [rng.choice((1, first + rng.randrange(256), first + 0x53)) for _ in range(12)]
        written.append(1)  # else the last character may be unfinished
        stream = TextStream(tokenizer, [1, *prompt, 1], ("no such text",))
        assert not any(stream.append(token) for token in written)
        assert stream.text.endswith(" the")


@pytest.mark.parametrize("bytes_fall_back", [True, False])
def test_tokens_read_together_give_the_text_of_tokens_read_one_by_one(
    bytes_fall_back: bool, tokens: PromptTokenizer
) -> None:
    tokenizer = with_byte_fallback() if bytes_fall_back else tokens.tokenizer
    rng = Random(1)
    for _ in range(300):
        written = [rng.randrange(2, len(tokenizer)) for _ in range(rng.randrange(1, 24))]
        stop = tokenizer.decode(written)[3:5]
        alone, together = (TextStream(tokenizer, [5], (stop,) if stop else ()) for _ in range(2))
        needed = next((n for n, t in enumerate(written, start=1) if alone.append(t)), None)
        read, found = 0, None
        while read < len(written) and found is None:
            chunk = written[read : read + rng.randrange(1, 6)]
            found = together.extend(chunk)
            read += len(chunk) if found is None else found
        assert together.text == alone.text
        assert (None if found is None else read) == needed


def test_a_stop_string_is_found_after_bytes_that_are_no_text() -> None:
    tokenizer, first = with_byte_fallback(), 2
    stream = TextStream(tokenizer, [1], ("the",))
    written = [first + 0x53, first + 0xE9, first + 0x53, 1]
    assert [stream.append(token) for token in written] == [False, False, False, True]
    assert stream.text == "S" + "\ufffd" * 2 + " "


def test_a_token_shared_by_prompt_and_continuation_is_the_continuations(
    tokens: PromptTokenizer,
) -> None:
    (scored,) = tokens.continuations([ScoreRequest("x", "Wil", "low says")])
    (prompt,), (whole,) = tokens.encode(["Wil"]), tokens.encode(["Willow says"])
    assert scored.tokens == whole
    assert scored.tokens[: scored.start] == prompt[: scored.start]
    assert scored.tokens[scored.start] != prompt[scored.start]
    assert scored.start < len(prompt)


def test_a_continuation_of_nothing_is_set_aside(llama: Path) -> None:
    from transformers import AutoTokenizer

    bare: Any = AutoTokenizer.from_pretrained(llama)
    bare.backend_tokenizer.post_processor = None
    from tokenizers import processors

    bare.backend_tokenizer.post_processor = processors.Sequence([])
    (found,) = PromptTokenizer(bare, 64, 320).continuations([ScoreRequest("x", "W", "illow")])
    assert found == Quarantined("x", "empty", "no token comes before the continuation")
