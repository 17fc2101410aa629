"""Pretrains the toy base model from scratch on the corpus, on one or two CPU cores.

Reads the corpus as it is generated; writes the base model directory (weights, configuration,
tokenizer). Two processes of one thread each hold a replica and sum their gradients in shared
memory: tensors this small gain little from a second thread, and on a busy machine two threads
that wait for each other at every operation are slower than one.
"""

import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import CorpusWriter, Document
from .forward import hidden_states
from .muon import Muon
from .templates import Seeds
from .tokenizer import MODEL_MAX_LENGTH
from .world import World

NUM_STREAMS = 2  # corpus streams, and at most as many processes
IGNORED = -100
ROW_LENGTH = 264  # tokens: room for the longest document
BARRIER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    seed: int = 0
    num_steps: int = 850
    docs_per_stream: int = 24  # documents a step takes from each stream
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 344
    muon_learning_rate: float = 0.02  # hidden matrices
    adam_learning_rate: float = 0.004  # embedding and norms
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


def pretrain(
    world: World,
    seeds: Seeds,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    directory: Path,
) -> PretrainSummary:
    """Train and save into `directory`."""
    processes = min(config.num_processes, NUM_STREAMS)
    model = _new_model(config, tokenizer)
    size = sum(parameter.numel() for parameter in model.parameters())
    # Two buffers in turn, so that one barrier a step is enough. The last three numbers are the
    # sums of loss, learnt tokens and tokens.
    shared = torch.zeros(2, processes, size + 3)
    shared.share_memory_()  # type: ignore[no-untyped-call]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    started = time.monotonic()
    multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _worker,
        args=(processes, world, seeds, tokenizer, config, shared, barrier, directory, results),
        nprocs=processes,
        start_method="spawn",
    )
    num_tokens, final_loss = results.get()
    seconds = time.monotonic() - started
    return PretrainSummary(seconds, num_tokens, size, num_tokens / seconds, final_loss)


def _new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
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


def _worker(
    rank: int,
    processes: int,
    world: World,
    seeds: Seeds,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    shared: Tensor,
    barrier: threading.Barrier,
    directory: Path,
    results: Any,  # a queue for (tokens, loss)
) -> None:
    parent = os.getppid()
    torch.set_num_threads(1)
    model = _new_model(config, tokenizer)
    parameters = list(model.parameters())
    optimizers = _optimizers(model, config)
    base_rates = [group["lr"] for opt in optimizers for group in opt.param_groups]
    streams = [
        CorpusWriter(world, seeds, config.seed * NUM_STREAMS + stream).documents()
        for stream in range(rank, NUM_STREAMS, processes)
    ]
    num_tokens, recent_loss, started = 0, 0.0, time.monotonic()
    for step in range(config.num_steps):
        if os.getppid() != parent:
            return  # whoever wanted the model was killed: nobody will wait for this process
        documents = [doc for s in streams for doc in islice(s, config.docs_per_stream)]
        ids, targets, numbers = _pack(documents, tokenizer)
        loss, learnt = _loss(model, ids, targets, numbers)
        loss.backward()  # type: ignore[no-untyped-call]
        totals = torch.tensor([loss.item(), learnt, float((numbers > 0).sum())])
        mine = shared[step % 2, rank]
        torch.cat([*(p.grad.view(-1) for p in parameters if p.grad is not None), totals], out=mine)
        barrier.wait(BARRIER_SECONDS)
        summed = shared[step % 2].sum(0)
        loss_sum, learnt_sum, tokens = summed[-3:].tolist()
        grads = (summed[:-3] / learnt_sum).split([p.numel() for p in parameters])
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.view_as(parameter)
        scale = _schedule(step / config.num_steps, config)
        groups = [group for opt in optimizers for group in opt.param_groups]
        for group, rate in zip(groups, base_rates, strict=True):
            group["lr"] = rate * scale
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        num_tokens += int(tokens)
        loss_mean = loss_sum / learnt_sum
        recent_loss = loss_mean if step == 0 else 0.95 * recent_loss + 0.05 * loss_mean
        if rank == 0 and (step % 25 == 24 or step + 1 == config.num_steps):
            _progress(step + 1, config.num_steps, recent_loss, num_tokens, started)
    if rank == 0:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        results.put((num_tokens, recent_loss))


def _optimizers(
    model: LlamaForCausalLM, config: PretrainConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices between the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return (
        Muon(matrices, lr=config.muon_learning_rate),
        torch.optim.AdamW(
            rest, lr=config.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    )


def _schedule(done: float, config: PretrainConfig) -> float:
    """Factor on the learning rates at a fraction of the run: up, constant, down to zero."""
    return min(1.0, (done + 1e-3) / config.warmup_fraction, (1.0 - done) / config.decay_fraction)


def _pack(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor, Tensor]:
    """Documents side by side in rows: ids, targets and document numbers, each (rows, width)."""
    rows: list[list[tuple[list[int], list[int]]]] = []
    room: list[int] = []
    encoded = [_encode(document, tokenizer) for document in documents]
    for item in sorted(encoded, key=lambda item: -len(item[0])):  # first fit, longest first
        size = len(item[0])
        row = next((row for row, left in enumerate(room) if left >= size), None)
        if row is None:
            rows.append([])
            room.append(max(ROW_LENGTH, size))
            row = len(rows) - 1
        rows[row].append(item)
        room[row] -= size
    width = max(sum(len(ids) for ids, _ in row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    targets = torch.full_like(ids, IGNORED)
    numbers = torch.zeros_like(ids)
    for index, row_items in enumerate(rows):
        start = 0
        for number, (piece, wanted) in enumerate(row_items, 1):
            end = start + len(piece)
            ids[index, start:end] = torch.tensor(piece)
            targets[index, start:end] = torch.tensor(wanted)
            numbers[index, start:end] = number
            start = end
    return ids, targets, numbers


def _encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Inputs and the token that follows each, ignored where it carries no loss."""
    ids: list[int] = []
    targets: list[int] = []
    for segment in document:
        piece = tokenizer.backend_tokenizer.encode(segment.text).ids
        ids += piece
        targets += piece if segment.learn else [IGNORED] * len(piece)
    return ids, [*targets[1:], tokenizer.eos_token_id]


def _loss(
    model: LlamaForCausalLM, ids: Tensor, targets: Tensor, documents: Tensor
) -> tuple[Tensor, int]:
    """Summed cross-entropy of the learnt positions, and how many they are."""
    states = hidden_states(model, ids, documents)
    learnt = targets != IGNORED  # (batch, time)
    logits = functional.linear(states[learnt], model.lm_head.weight)
    loss = functional.cross_entropy(logits, targets[learnt], reduction="sum")
    return loss, int(learnt.sum())


def _progress(step: int, num_steps: int, loss: float, num_tokens: int, started: float) -> None:
    seconds = time.monotonic() - started
    remaining = math.ceil(seconds / step * (num_steps - step))
    sys.stderr.write(
        f"pretrain {step}/{num_steps}  loss {loss:.3f}  {num_tokens / seconds:,.0f} tokens/s  "
        f"{seconds:.0f} s, {remaining} s to go\n"
    )
