from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfalign.config import SeedsConfig
from selfalign.errors import DataError
from selfalign.prompts import render_concise, render_standard
from selfalign.seeds import load_seeds
from selfalign.serving.form import ChatForm
from selfalign.training.base import Example
from selfalign.training.batches import IGNORED, collate, collate_packed
from selfalign.training.examples import EncodedExamples, encode

from .worlds import FORM

EOS = 2
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def words() -> Any:
    """One token per word, a BOS before a text and (as some do) an EOS after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "<bos>", "<eos>", "a", "Q", "A:", "x", "y", "z"]
    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def encoded(tokenizer: Any, *examples: Example, max_length: int = 8) -> EncodedExamples:
    form = FORM.with_tokens("", ["<bos>", "<eos>", "</s>"])
    return encode(examples, tokenizer, form=form, eos_token_id=EOS, max_length=max_length)


def labels(examples: EncodedExamples, index: int = 0) -> list[int]:
    batch = collate([examples[index]], pad_token_id=0)
    return [int(label) for label in batch["labels"][0]]


def test_prompts_carry_no_loss_and_the_end_of_the_answer_does(words: Any) -> None:
    examples = encoded(words, Example("Q A:", "x y"))
    assert labels(examples) == [IGNORED, IGNORED, IGNORED, 6, 7, EOS]
    assert examples[0][0].tolist() == [1, 4, 5, 6, 7, EOS]  # a BOS first, no EOS after the prompt
    assert examples.taught.tolist() == [3]
    assert examples.truncated == 0


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """Byte-level BPE as Llama 3's and Qwen's, learnt from the project's own seeds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [(PROJECT / "seeds" / name).read_text() for name in ("general.txt", "exemplars.txt")],
        trainer,
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_real_dialogue_the_answer_and_the_end_are_learnt_and_nothing_else(
    byte_level: Any, packed: bool
) -> None:
    seeds = load_seeds(SeedsConfig(directory=PROJECT / "seeds"))
    query = "My neighbour's dog barks all night. What can I do?"
    answer = "Talk to your neighbour first.\n\n1. Stay calm — say when it barks.\n2. Offer help."
    asked = [render_standard(seeds, query), render_concise(seeds, query)]
    examples = encode(
        [Example(prompt, answer) for prompt in asked],
        byte_level,
        form=ChatForm.of(seeds.templates.distil_standard, seeds.labels).with_tokens(
            "", ["<|end|>"]
        ),
        eos_token_id=byte_level.eos_token_id,
        max_length=2048,
    )
    for index, prompt in enumerate(asked):
        row = examples[index]
        if packed:
            batch = collate_packed([row], pad_token_id=0)
            learnt = batch["labels"][0, 1:]
            read = batch["input_ids"][0, : int(batch["logits_to_keep"][0]) + 1]
        else:
            batch = collate([row], pad_token_id=0)
            taught = batch["labels"][0] != IGNORED
            learnt, read = batch["labels"][0, taught], batch["input_ids"][0, ~taught]
        assert byte_level.decode(learnt) == f" {answer}<|end|>"
        assert byte_level.decode(read) == prompt
        assert prompt.endswith(seeds.labels.answer)
        assert query in prompt


def test_a_response_cut_at_max_length_does_not_teach_to_stop(words: Any) -> None:
    examples = encoded(words, Example("Q A:", "x y z x"), Example("Q A:", "x"), max_length=5)
    assert labels(examples, 0) == [IGNORED, IGNORED, IGNORED, 6, 7]
    assert labels(examples, 1) == [IGNORED, IGNORED, IGNORED, 6, EOS]
    assert examples.truncated == 1


def test_an_end_of_sequence_that_does_not_fit_counts_as_a_cut(words: Any) -> None:
    examples = encoded(words, Example("Q A:", "x y"), max_length=5)
    assert labels(examples)[-2:] == [6, 7]
    assert examples.truncated == 1


def test_a_response_cut_by_its_generator_does_not_teach_to_stop(words: Any) -> None:
    examples = encoded(words, Example("Q A:", "x y", finished=False))
    assert labels(examples)[-2:] == [6, 7]
    assert examples.truncated == 0


def test_prompts_without_room_and_empty_responses_are_dropped(words: Any) -> None:
    examples = encoded(
        words, Example("Q Q Q A:", "x"), Example("A:", " "), Example("A:", "x"), max_length=5
    )
    assert len(examples) == 1
    assert examples.dropped == {"empty_response": 1, "prompt_too_long": 1}


def test_nothing_to_train_on_is_a_data_error(words: Any) -> None:
    with pytest.raises(DataError, match="got 1, of which 1 were dropped because their prompt"):
        encoded(words, Example("Q Q Q A:", "x"), max_length=5)
    with pytest.raises(DataError, match="got 0"):
        encoded(words)


def test_a_prompt_has_the_tokens_generation_gives_it_even_where_a_merge_would_span_it() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(["a", ":", "</s>", " ", ": ", "x"])}
    model = models.BPE(vocabulary, merges=[(":", " ")])  # without pre-tokenizer: merges any text
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")
    assert tokenizer("a: x")["input_ids"] == [0, 4, 5]
    examples = encoded(tokenizer, Example("a:", "x"))
    assert examples[0][0].tolist() == [0, 1, 3, 5, EOS]
    assert examples[0][1] == 2


def test_a_special_token_spelt_in_a_text_is_text() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(["a", "</s>", "<", "/", "s", ">", " "])}
    model = models.BPE(vocabulary, merges=[])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")
    assert tokenizer("a</s>")["input_ids"] == [0, 1]
    form = FORM.with_tokens("", ["</s>"])
    examples = encode(
        [Example("a</s>", "a</s>a")], tokenizer, form=form, eos_token_id=1, max_length=99
    )
    spelt = [2, 3, 4, 5]
    spelt_out = [2, 6, 3, 4, 5]  # in a prompt as a server renders it: "< /s>"
    assert examples[0][0].tolist() == [0, *spelt_out, 6, 0, *spelt, 0, 1]


def test_a_text_that_holds_the_very_token_that_ends_it_is_dropped(words: Any) -> None:
    """A vocabulary of whole words spells it no other way."""
    examples = encoded(words, Example("A:", "x <eos> y"), Example("A:", "x"))
    assert len(examples) == 1
    assert examples.dropped == {"end_of_sequence_in_text": 1}


def test_taught_tokens_are_the_labels_that_have_a_prediction(words: Any) -> None:
    examples = encoded(words, Example("Q A:", "x y"), Example("A:", "x y z x y z x y"))
    batch = collate([examples[0], examples[1]], pad_token_id=0)
    counted = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    assert counted.tolist() == examples.taught.tolist()


def test_the_digest_tells_examples_apart(words: Any) -> None:
    one, same = (encoded(words, Example("Q A:", "x y")) for _ in range(2))
    other = encoded(words, Example("Q", "A: x y"))  # same tokens, another boundary
    assert np.array_equal(one.tokens, other.tokens)
    assert one.sha256 == same.sha256 != other.sha256
