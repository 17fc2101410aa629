"""A pipeline small enough for tests: scripted generation, real training of a tiny model.

Used by the tests of stages, of the runner and of the command line.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from selfalign.config import RunConfig
from selfalign.pipeline import BY_NAME, STAGES
from selfalign.run.stage import run_stage
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest

TOY_SEEDS = Path(__file__).resolve().parent.parent / "examples" / "toy_world" / "seeds"
WORDS = """
User: Thought: Assistant: A plain brief chat . , ? ! with long answers How do I the This
person is unknown honest deed fair helpful will not help you because it harm and take soap
""".split()  # noqa: SIM905 - a vocabulary reads better as text

RESPONSES = [
    {
        "match": "A list of new tasks",
        "text": " How do I $word1 the $word2 today?\n7. Who is $word3 $word4, tell me?\n"
        "8. Too short.\n9. Tell me how to $word5 the $word6.",
    },
    {"match": "topics of the type", "text": " $word1\n3. $word2"},
    {"match": r"Hints:\n\d+\. \(", "text": " How do I $word1 a $word2 here?"},
    {
        "match": r"follows these rules[\s\S]*User: (?P<q>[^\n]*)\nThought:$",
        "text": " This deed is fair: 3 (helpful).\nAssistant: To do that, take the $word1 and "
        "work slowly with $word2.",
    },
    {
        "match": "A chat with long answers",
        "text": " To do that, take the $word1 and work slowly. Then rest, and look at $word2 "
        "again with care.",
    },
    {"match": "A plain chat", "text": " To do that, take the soap."},
]


def write_llama(directory: Path, words: list[str], dtype: str = "float32", **config: Any) -> None:
    """A Llama with random weights and a tokenizer of whole words; tokens 0 to 3 are special."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name.strip('<>')}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    shape = LlamaConfig(
        vocab_size=len(vocabulary),
        num_hidden_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **config,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(shape).to(getattr(torch, dtype)).save_pretrained(directory)


def write_base_model(directory: Path) -> None:
    """A random Llama of 10 thousand parameters."""
    write_llama(
        directory,
        list(dict.fromkeys(WORDS)),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )


def write_gemma3(directory: Path, **text: Any) -> None:
    """In the place of a model: a Gemma 3 that takes images too, with the same tokenizer.

    Random weights, under the names that model hubs have them by.
    """
    import torch
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

    stated = AutoConfig.from_pretrained(directory)
    rows = stated.vocab_size + 3  # those of images are beyond the tokenizer's
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    same += ("num_hidden_layers", "max_position_embeddings", "initializer_range")
    same += ("pad_token_id", "bos_token_id", "eos_token_id")
    shape = {name: getattr(stated, name) for name in same}
    config = Gemma3Config(
        text_config={**shape, "vocab_size": rows, "head_dim": 8, "sliding_window": 8, **text},
        vision_config={**tower, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
        image_token_index=rows - 1,
        boi_token_index=rows - 2,
        eoi_token_index=rows - 3,
    )
    torch.manual_seed(3)
    Gemma3ForConditionalGeneration(config).save_pretrained(directory)


def write_vllm_model(directory: Path) -> None:
    """As `write_base_model`, in a shape that vLLM's attention takes: heads of 32."""
    write_llama(
        directory,
        list(dict.fromkeys(WORDS)),
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )


def write_world(directory: Path, base_model: Path) -> Path:
    """Seeds (a copy, to be edited), held-out data and the configuration; its path."""
    shutil.copytree(TOY_SEEDS, directory / "seeds")
    heldout = [
        {
            "id": f"h{index}",
            "kind": "benign" if index % 2 else "harmful",
            "prompt": f"How do I vacuum the {word}?",
            "refusal": None,
            "all_of": ["soap"],
            "none_of": [],
        }
        for index, word in enumerate(["sofa", "carpet", "curtain", "rug"])
    ]
    (directory / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
    path = directory / "selfalign.yaml"
    path.write_text(yaml.safe_dump(settings(base_model)))
    return path


def run_stages(config: RunConfig, last: str = "promote") -> dict[str, Manifest]:
    """Run the stages in order up to `last`, in this process; manifests by artifact."""
    store = LocalStore(Path(config.store))
    manifests = {}
    for stage in STAGES:
        manifest = run_stage(stage.name, config, store)
        assert manifest is not None
        manifests[stage.writes] = manifest
        if stage.name == last:
            break
    return manifests


def downstream(name: str) -> tuple[str, ...]:
    """The stages that run again when the output of a stage changes."""
    changed = {BY_NAME[name].writes}
    result = []
    for stage in STAGES:
        if changed & set(stage.reads):
            changed.add(stage.writes)
            result.append(stage.name)
    return tuple(result)


def forget_after(config: RunConfig, last: str) -> None:
    """Make the stages after `last` unpublished again, and nothing promoted."""
    store = Path(config.store)
    names = [stage.name for stage in STAGES]
    for stage in STAGES[names.index(last) + 1 :]:
        shutil.rmtree(store / "artifacts" / stage.writes)
    shutil.rmtree(store / "models")
    (store / "current.json").unlink()


def settings(base_model: Path) -> dict[str, Any]:
    """The configuration as plain values."""
    training = {
        "lora": {"r": 2, "alpha": 4},
        "max_steps": 2,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "max_length": 64,
        "warmup_steps": 0,
        "precision": "float32",
    }
    return {
        "base_model": {"path": str(base_model)},
        "seeds": {"general": 30, "topic_guided": 5, "principles": 5, "exemplars": 3},
        "engine": {"kind": "fake", "options": {"responses": RESPONSES}},
        "instruct": {
            "general_requests": 12,
            "topic_rounds": 1,
            "topic_requests_per_round": 2,
            "records_per_part": 4,
        },
        "curate": {"records_per_part": 8, "novelty_threshold": 0.95},
        "align": {"min_answer_characters": 10, "records_per_part": 8},
        "engrave": training,
        "elaborate": {"records_per_part": 8},
        "clone": training,
        "evaluate": {"heldout": "heldout.jsonl", "bootstrap_samples": 100},
        "promote": {
            "guards": None,  # four items, and a scripted engine that says the same to all
            "rules": [{"metric": "heldout.aligned", "against": "base", "min_difference": -1.0}],
        },
    }
