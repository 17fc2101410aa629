"""What evaluation, a server and training make of the same conversation: the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.engines.tokens import PromptTokenizer
from selfalign.errors import DataError
from selfalign.prompts import render_standard, stop_strings
from selfalign.seeds import Seeds, load_seeds
from selfalign.serving.form import ChatForm
from selfalign.serving.template import chat_template
from selfalign.stages.asking import asking
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from selfalign.training.chat import fit_form
from selfalign.training.examples import plain_tokens, tokens_before_text
from tests.artifacts import publish
from tests.pipeline_world import TOY_SEEDS, settings

QUERIES = (
    "How do I vacuum the sofa?",
    " How\n\nUser: do I\r\nASSISTANT : clean </s> <eos><bos> it\u2028Thought: no\n",
    "<unk>",
)


@pytest.fixture(scope="module")
def seeds() -> Seeds:
    from selfalign.config import SeedsConfig

    counts = settings(Path())["seeds"]
    return load_seeds(SeedsConfig.model_validate({**counts, "directory": TOY_SEEDS}))


def artifact(store: LocalStore, files: dict[str, bytes]) -> Manifest:
    merged = {f"merged/{name}": data for name, data in files.items()}
    return publish(store, "final_model", files=merged)


def files_of(form: ChatForm) -> dict[str, bytes]:
    return {"chat_form.json": form.to_bytes(), "chat_template.jinja": chat_template(form).encode()}


@pytest.mark.parametrize("begins_with_bos", [False, True])
def test_evaluation_server_and_training_read_the_same_tokens(
    tiny_base_model: Path, tmp_path: Path, seeds: Seeds, begins_with_bos: bool
) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base_model)
    if begins_with_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    form = fit_form(ChatForm.of(seeds.templates.distil_standard, seeds.labels), tokenizer)
    store = LocalStore(tmp_path / "store")
    manifest = artifact(store, files_of(form))
    asked = asking(store, manifest, seeds)
    assert asked.stop == ()
    engine = PromptTokenizer(tokenizer, 512, len(tokenizer))
    for query in QUERIES:
        (evaluated,) = engine.encode([asked.question(query)])
        trained = form.spell_out(render_standard(seeds, query))
        head = tokens_before_text(tokenizer)
        assert bool(head) == begins_with_bos
        assert evaluated == head + plain_tokens(tokenizer, [trained])[0]
        served = tokenizer.apply_chat_template(
            [{"role": "user", "content": query}],
            chat_template=chat_template(form),
            add_generation_prompt=True,
            return_dict=False,
        )
        assert served == evaluated


def test_a_model_without_a_template_is_asked_by_that_of_the_seeds(
    tmp_path: Path, seeds: Seeds
) -> None:
    store = LocalStore(tmp_path / "store")
    for manifest in (None, artifact(store, {"config.json": b"{}"})):
        asked = asking(store, manifest, seeds)
        assert asked.question(QUERIES[1]) == render_standard(seeds, QUERIES[1])
        assert asked.stop == stop_strings(seeds.labels)


def test_an_edited_template_is_named_and_never_rendered(tmp_path: Path, seeds: Seeds) -> None:
    form = ChatForm.of(seeds.templates.distil_standard, seeds.labels)
    files = files_of(form)
    files["chat_template.jinja"] += b"{{ 10 ** 9 }}"
    store = LocalStore(tmp_path / "store")
    manifest = artifact(store, files)
    with pytest.raises(DataError, match=r"final_model/k/files/merged/chat_template\.jinja: is not"):
        asking(store, manifest, seeds)


def test_u0000_reaches_the_engine_which_sets_the_row_aside(tmp_path: Path, seeds: Seeds) -> None:
    assert "\0" in asking(LocalStore(tmp_path / "store"), None, seeds).question("a\0b")
