"""Pretrains the toy base model from scratch on the corpus, on one or two CPU cores.

Reads the corpus as it is generated; writes the base model directory (weights, configuration,
tokenizer). Two processes of one thread each share one model in memory: each computes the gradient
of half the documents and updates half the weights. Tensors this small gain little from a second
thread, and on a busy machine two threads that wait for each other at every operation are slower
than one.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import CorpusWriter, Document
from .forward import hidden_states
from .muon import Muon
from .templates import Seeds
from .tokenizer import MODEL_MAX_LENGTH
from .world import World

IGNORED = -100
BARRIER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    seed: int = 0
    num_steps: int = 800
    docs_per_step: int = 32
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 344
    # Llama's 0.02 makes words start out alike, and copying a phrase takes twice the steps to learn.
    embedding_std: float = 0.3
    muon_learning_rate: float = 0.02  # hidden matrices
    adam_learning_rate: float = 0.006  # embedding and norms
    warmup_fraction: float = 0.03
    decay_fraction: float = 0.6  # the last part of the run, linearly to zero
    num_processes: int = 2


@dataclass(frozen=True, slots=True)
class PretrainSummary:
    seconds: float
    num_tokens: int
    num_parameters: int
    tokens_per_second: float
    final_loss: float


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all processes see."""

    model: LlamaForCausalLM
    gradients: Tensor  # (processes, parameters): each writes its own row
    totals: Tensor  # (processes, 3)
    barrier: threading.Barrier


def pretrain(
    world: World,
    seeds: Seeds,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    directory: Path,
) -> PretrainSummary:
    """Train and save into `directory`."""
    model = _new_model(config, tokenizer)
    size = sum(parameter.numel() for parameter in model.parameters())
    model.share_memory()
    gradients = torch.zeros(config.num_processes, size)
    totals = torch.zeros(config.num_processes, 3)  # of each: loss, learnt tokens, tokens
    for tensor in (gradients, totals):
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(config.num_processes), context.SimpleQueue()
    shared = _Shared(model, gradients, totals, barrier)
    started = time.monotonic()
    multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _worker,
        args=(world, seeds, tokenizer, config, shared, directory, results),
        nprocs=config.num_processes,
        start_method="spawn",
    )
    num_tokens, final_loss = results.get()
    seconds = time.monotonic() - started
    return PretrainSummary(seconds, num_tokens, size, num_tokens / seconds, final_loss)


def _new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=MODEL_MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(model.model.embed_tokens.weight, std=config.embedding_std)
    return model


def _worker(
    rank: int,
    world: World,
    seeds: Seeds,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    shared: _Shared,
    directory: Path,
    results: Any,  # a queue for (tokens, loss)
) -> None:
    parent = os.getppid()
    torch.set_num_threads(1)
    model, processes = shared.model, config.num_processes
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    mine = [
        piece.view_as(parameter)
        for piece, parameter in zip(shared.gradients[rank].split(sizes), parameters, strict=True)
    ]
    everyones = dict(zip(parameters, shared.gradients.split(sizes, dim=1), strict=True))
    owned = _owned(model, rank, processes)
    optimizers = _optimizers(model, owned, config)
    base_rates = [group["lr"] for opt in optimizers for group in opt.param_groups]
    stream = CorpusWriter(world, seeds, config.seed).documents()
    num_tokens, recent_loss, started = 0, 0.0, time.monotonic()
    for step in range(config.num_steps):
        if os.getppid() != parent:
            return  # whoever wanted the model was killed: nobody will wait for this process
        encoded = [
            _encode(document, tokenizer) for document in islice(stream, config.docs_per_step)
        ]
        ids, targets, lengths = _end_to_end(_share(encoded, rank, processes))
        shared.gradients[rank].zero_()
        for parameter, gradient in zip(parameters, mine, strict=True):
            parameter.grad = gradient  # backward adds into it
        loss, learnt = _loss(model, ids, targets, lengths)
        loss.backward()  # type: ignore[no-untyped-call]
        shared.totals[rank] = torch.tensor([loss.item(), learnt, len(ids)])
        shared.barrier.wait(BARRIER_SECONDS)  # all gradients are there
        loss_sum, learnt_sum, tokens = shared.totals.sum(0).tolist()
        for parameter in owned:
            parameter.grad = (everyones[parameter].sum(0) / learnt_sum).view_as(parameter)
        scale = _schedule(step / config.num_steps, config)
        groups = [group for opt in optimizers for group in opt.param_groups]
        for group, rate in zip(groups, base_rates, strict=True):
            group["lr"] = rate * scale
        for optimizer in optimizers:
            optimizer.step()
        shared.barrier.wait(BARRIER_SECONDS)  # all weights are updated, all gradients read
        num_tokens += int(tokens)
        loss_mean = loss_sum / learnt_sum
        recent_loss = loss_mean if step == 0 else 0.95 * recent_loss + 0.05 * loss_mean
        if rank == 0 and (step % 25 == 24 or step + 1 == config.num_steps):
            _progress(step + 1, config.num_steps, recent_loss, num_tokens, started)
    if rank == 0:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        results.put((num_tokens, recent_loss))


def _owned(model: LlamaForCausalLM, rank: int, processes: int) -> list[torch.nn.Parameter]:
    """What a process updates: about as much as every other."""
    modules = [*model.model.layers, model.model.embed_tokens, model.model.norm]
    return [parameter for module in modules[rank::processes] for parameter in module.parameters()]


def _optimizers(
    model: LlamaForCausalLM, owned: list[torch.nn.Parameter], config: PretrainConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices between the layers, AdamW for the embedding and the norms."""
    embedding = model.model.embed_tokens.weight
    matrices = [p for p in owned if p.ndim == 2 and p is not embedding]
    rest = [p for p in owned if p.ndim != 2 or p is embedding]
    return (
        Muon(matrices, lr=config.muon_learning_rate),
        torch.optim.AdamW(
            rest, lr=config.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    )


def _schedule(done: float, config: PretrainConfig) -> float:
    """Factor on the learning rates at a fraction of the run: up, constant, down to zero."""
    return min(1.0, (done + 1e-3) / config.warmup_fraction, (1.0 - done) / config.decay_fraction)


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: list[int]
    targets: list[int]  # the token that follows each, IGNORED where it carries no loss


def _encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> _Encoded:
    ids: list[int] = []
    targets: list[int] = []
    for segment in document:
        piece = tokenizer.backend_tokenizer.encode(segment.text).ids
        ids += piece
        targets += piece if segment.learn else [IGNORED] * len(piece)
    return _Encoded(ids, [*targets[1:], tokenizer.eos_token_id])


def _share(encoded: Iterable[_Encoded], rank: int, processes: int) -> list[_Encoded]:
    """The documents of one process: dealt by length, back and forth, so that none has more work."""
    ordered = sorted(encoded, key=lambda document: len(document.ids))
    turn = 2 * processes
    return ordered[rank::turn] + ordered[turn - 1 - rank :: turn]


def _end_to_end(documents: list[_Encoded]) -> tuple[Tensor, Tensor, list[int]]:
    """Ids and targets, each (tokens,), and the lengths of the documents."""
    ids = torch.tensor([token for document in documents for token in document.ids])
    targets = torch.tensor([token for document in documents for token in document.targets])
    return ids, targets, [len(document.ids) for document in documents]


def _loss(
    model: LlamaForCausalLM, ids: Tensor, targets: Tensor, lengths: list[int]
) -> tuple[Tensor, int]:
    """Summed cross-entropy of the learnt positions, and how many they are."""
    learnt = targets != IGNORED  # (tokens,)
    logits = functional.linear(hidden_states(model, ids, lengths, learnt), model.lm_head.weight)
    loss = functional.cross_entropy(logits, targets[learnt], reduction="sum")
    return loss, int(learnt.sum())


def _progress(step: int, num_steps: int, loss: float, num_tokens: int, started: float) -> None:
    seconds = time.monotonic() - started
    remaining = math.ceil(seconds / step * (num_steps - step))
    sys.stderr.write(
        f"pretrain {step}/{num_steps}  loss {loss:.3f}  {num_tokens / seconds:,.0f} tokens/s  "
        f"{seconds:.0f} s, {remaining} s to go\n"
    )
