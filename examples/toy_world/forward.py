"""A Llama forward pass for training on a CPU, on the weights of a `LlamaForCausalLM`.

Reads and writes nothing. It computes what transformers computes, with less work: documents lie
end to end, so nothing is padded; each attends within itself, so no score between two documents is
computed; one matmul serves q, k and v, and one gate and up; and what follows the last attention is
computed only where a token is predicted. In float32: a CPU without bfloat16 instructions takes 25
times as long for a matmul in bfloat16, and a base model should be the same one wherever it is made.
"""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM


def hidden_states(
    model: LlamaForCausalLM, ids: Tensor, lengths: list[int], wanted: Tensor
) -> Tensor:
    """Final hidden states at the wanted positions: (tokens,) -> (number wanted, hidden).

    `ids` (tokens,) holds documents of these `lengths` one after another; `wanted` (tokens,) is a
    boolean mask. Attention stays inside a document, and positions begin anew in each.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.head_dim
    cos, sin = _rotary_tables(lengths, size, config.rope_parameters["rope_theta"])

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (config.hidden_size,), weight, config.rms_norm_eps)

    x = functional.embedding(ids, model.model.embed_tokens.weight)  # (tokens, hidden)
    last = model.model.layers[-1]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = functional.linear(
            norm(x, layer.input_layernorm.weight),
            torch.cat([projection.weight for projection in projections]),
        ).view(len(ids), heads + 2 * kv_heads, size)
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)  # (tokens, heads, size)
        q, k = _rotate(qk, cos, sin).split([heads, kv_heads], dim=1)
        mixed = _attention(q, k, v, lengths)
        if layer is last:
            x, mixed = x[wanted], mixed[wanted]
        x = x + functional.linear(mixed, attention.o_proj.weight)
        gate_up = functional.linear(
            norm(x, layer.post_attention_layernorm.weight),
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        )
        gate, up = gate_up.chunk(2, dim=-1)
        x = x + functional.linear(functional.silu(gate) * up, mlp.down_proj.weight)
    return norm(x, model.model.norm.weight)


def _attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention within each document: (tokens, heads, size) -> (tokens, heads * size)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    mixed = [
        functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in document), is_causal=True
        )[0].transpose(0, 1)
        for document in documents
    ]
    return torch.cat(mixed).flatten(1)


def _rotary_tables(lengths: list[int], size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token and all heads, each (tokens, 1, size)."""
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    positions = torch.cat([torch.arange(length) for length in lengths])
    angles = torch.outer(positions.float(), frequencies).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin
