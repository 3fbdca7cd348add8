"""Closed-form FLOPs of the decoder, from its configuration.

Convention: a multiply and an add are 2 FLOPs. A forward pass costs 2 FLOPs per token and matrix
weight that it multiplies (with experts: the router and the experts that the token is routed to),
plus 4 Q H per layer (Q query heads of size H) for every key that a query attends to: q k^T and the
weighted sum of v. The head is counted once per token sampled or trained on, not over the prompt.
Training costs 3 forward passes (recomputation by `remat` is not counted), a reference or a teacher
costs one; a critic is a head with one output. Padding is not counted. The sampler runs a group's
prompt once, learner and reference once for each of `optim.group_slices`. Left out (below 2 % at
d_model = 64, less above): norms, RoPE, softmax, activations, embedding look-up, AdamW.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from rlx.config import ModelConfig


def matrix_weights(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Matrix weights that one token is multiplied with, by group; without the embedding.

    Of a layer with experts: the router, the shared expert and `experts_per_token` others.
    """
    c, sparse = config, len(config.sparse_layers)
    heads = (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    widths = sparse * (c.experts_per_token * c.d_ff_expert + c.d_ff_shared)
    widths += (c.n_layers - sparse) * c.d_ff
    return {
        "attention": c.n_layers * c.d_model * heads,
        "mlp": 3 * c.d_model * widths + sparse * c.d_model * c.n_experts,
        "head": config.d_model * vocab_size,
    }


def attended_keys(config: ModelConfig, tokens) -> np.ndarray:
    """(query, key) pairs that causal attention over `tokens` tokens computes, all layers together.

    n (n + 1) / 2 per layer; with a window of w, n w - w (w - 1) / 2 once n >= w; with chunks, the
    sum over chunks.
    """
    n, local = np.asarray(tokens, np.float64), len(config.local_layers)
    if config.attention_chunk:
        whole, rest = np.divmod(n, config.attention_chunk)
        near = whole * config.attention_chunk * (config.attention_chunk + 1) / 2
        near += rest * (rest + 1) / 2
    elif config.sliding_window:
        within = np.minimum(n, config.sliding_window)
        near = n * within - within * (within - 1) / 2
    else:
        near = n * (n + 1) / 2
    return (config.n_layers - local) * n * (n + 1) / 2 + local * near


def body_flops(config: ModelConfig, tokens, attended) -> np.ndarray:
    """Forward FLOPs of the blocks over `tokens` tokens with `attended` (query, key) pairs."""
    weights = matrix_weights(config, 0)
    per_key = 4 * config.n_heads * config.head_dim
    return 2.0 * (weights["attention"] + weights["mlp"]) * tokens + 1.0 * per_key * attended


def head_flops(config: ModelConfig, vocab_size: int, tokens) -> np.ndarray:
    return 2.0 * matrix_weights(config, vocab_size)["head"] * tokens


def prefill_flops(config: ModelConfig, vocab_size: int, prompt_length) -> np.ndarray:
    """Forward FLOPs of one prompt, up to the logits of the first completion token."""
    n = np.asarray(prompt_length, np.float64)
    return body_flops(config, n, attended_keys(config, n)) + head_flops(config, vocab_size, 1)


def decode_flops(config: ModelConfig, vocab_size: int, prompt_length, drawn) -> np.ndarray:
    """Sampling tokens 2 to `drawn` of one sequence (the first comes from the prefill)."""
    fed = np.maximum(np.asarray(drawn, np.float64) - 1, 0)
    attended = attended_keys(config, prompt_length + fed) - attended_keys(config, prompt_length)
    return body_flops(config, fed, attended) + head_flops(config, vocab_size, fed)


def train_flops(config: ModelConfig, vocab_size: int, prompt_length, length_G) -> float:
    """Forward and backward FLOPs of one group in one update, its prompt once."""
    lengths = tuple(np.asarray(length_G).tolist())
    return _train_flops(config, vocab_size, float(prompt_length), lengths)


@functools.lru_cache(maxsize=4096)  # a warm start makes 40,000 calls with 100 distinct arguments
def _train_flops(config: ModelConfig, vocab_size: int, prompt_length: float, length_G) -> float:
    forward = prefill_flops(config, vocab_size, prompt_length)
    forward += np.sum(decode_flops(config, vocab_size, prompt_length, length_G))
    extra_heads = head_flops(config, vocab_size, len(length_G) - 1)  # token 0 of every sample
    return float(3 * (forward + extra_heads))


def reference_flops(config: ModelConfig, vocab_size: int, prompt_length, length_G) -> float:
    """Log-probabilities of one group under the reference: one forward pass."""
    return train_flops(config, vocab_size, prompt_length, length_G) / 3


def critic_flops(config: ModelConfig, length_G) -> float:
    """Values of one group: 1 pass when sampled, 3 when trained on."""
    return float(4 * head_flops(config, 1, np.sum(length_G)))


def reward_flops(config: ModelConfig, prompt_length, length_B) -> float:
    """A reward model's forward pass over a prompt and its completions."""
    n, length_B = np.float64(prompt_length), np.asarray(length_B, np.float64)
    prompt = body_flops(config, n, attended_keys(config, n))
    attended_B = attended_keys(config, n + length_B) - attended_keys(config, n)
    completions = np.sum(body_flops(config, length_B, attended_B))
    return float(prompt + completions + head_flops(config, 1, len(length_B)))


@dataclass
class Ledger:
    """FLOPs and tokens spent so far. `discarded_flops` are included in the others."""

    train_flops: float = 0.0
    prefill_flops: float = 0.0
    decode_flops: float = 0.0
    critic_flops: float = 0.0
    reference_flops: float = 0.0
    reward_flops: float = 0.0
    eval_flops: float = 0.0
    discarded_flops: float = 0.0
    tokens_generated: int = 0
    tokens_put_in: int = 0  # injected by environments: read by the policy, not sampled
    tokens_trained: int = 0
    samples: int = 0

    @property
    def compute(self) -> float:
        """C: generation, training, critic, reference, reward model; no evaluation or warm start."""
        policy = self.train_flops + self.prefill_flops + self.decode_flops
        return policy + self.critic_flops + self.reference_flops + self.reward_flops

    def discard(self, config: ModelConfig, vocab_size: int, prompt_length, length_G) -> None:
        """Count the generation of a group that is filtered out as discarded."""
        drawn = decode_flops(config, vocab_size, prompt_length, length_G)
        prefill = prefill_flops(config, vocab_size, prompt_length)
        self.discarded_flops += float(prefill + np.sum(drawn))

    def row(self) -> dict:
        """The ledger's part of an evaluation row; parts that a run does not have are 0."""
        return {
            "tokens_generated": self.tokens_generated,
            "tokens_put_in": self.tokens_put_in,
            "tokens_trained": self.tokens_trained,
            "samples": self.samples,
            "train_flops": self.train_flops,
            "generate_flops": {"prefill": self.prefill_flops, "decode": self.decode_flops},
            "critic_flops": self.critic_flops,
            "reference_flops": self.reference_flops,
            "reward_flops": self.reward_flops,
            "eval_flops": self.eval_flops,
            "discarded_flops": self.discarded_flops,
            "compute": self.compute,
        }
