"""tunix's GRPOLearner as a worker that another program times in turns with rlx.

Run with the Python of an environment that holds google-tunix (jax, flax and optax come with it):

    python experiments/rivals/tunix_driver.py

One JSON line on stdin sets it up (see protocol.py), one on stdout answers that it is ready.
Then `{"cmd": "sampler" | "learner" | "step", "repeats": n}` does that work n times and answers
`{"seconds": [...], "tokens": [...], "what": ...}`, one entry per repeat; `{"cmd": "quit"}` ends.
Whatever libraries print goes to stderr. An error ends the process with a traceback there.

`learner.train(batches)` runs for the life of the process, and commands are read where it asks for
the next batch of prompts, so a "step" is a step of tunix's own loop. "sampler" is
`RLCluster.generate` (vanilla rollout, `tunix.generate.sampler.Sampler`) on P*G prompts. "learner"
is `RLCluster.update_actor` on the batch of the last step. All three are warm (compiled) when the
worker says that it is ready. Every command continues from the weights that the last one left.

Settings, each tunix's best on a CPU for this model size:
  kv_cache_size = U + T        the default of 1024 slots is attended to in full at every token
  max_prompt_length = U        a shorter limit makes it pad prompts to a power of two
  top_p = 1, top_k = None      the only setting that samples without a sort
  no rematerialization         the default of its models
  actor and rollout on a mesh  shares the weights, so that none are copied after an update
  no checkpoints or logs       rlx is timed without them too; metrics it buffers remain, and its
                               progress bar is silent unless stderr is a terminal

Equal to rlx: architecture, initial weights, float32, prompts, group size, temperature, AdamW,
clipping at norm 1. The model is tunix's Llama3, which ignores its own `rope_theta` and turns with
1e6; the driver passes the right one, and logits then agree with rlx.
Not equal: the loss is GRPO (clipped ratio, advantages scaled by the deviation of the group, mean
over samples), as tunix has no CISPO; with one update per batch the ratio is 1 in both, so the
arithmetic differs little. The stop token is cut before learning, so "tokens" of "learner" and
"step" count neither it nor sampled padding (masked), while those of "sampler" count every token
drawn, stop included. Each prompt is prefilled G times; generation ends when every row has stopped;
the learner runs on U + T positions, heads included; groups of equal reward stay in the batch.
Texts are decoded and rewards computed on the host inside "step". The random key of the sampler is
the same at every call, so completions change only as weights do.
"""

import functools
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from protocol import REWARDED_ID, Setup, connect
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster as cluster_lib
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

apply_rope = llama.apply_rope  # as tunix calls it: rope_theta is 1e6 whatever the configuration


class Tokenizer:
    """The text of a token is its id."""

    def __init__(self, setup: Setup):
        self.setup = setup

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return self.setup.stop_id

    def pad_id(self) -> int:
        return self.setup.pad_id


def load_model(setup: Setup) -> llama.Llama3:
    m = setup.model
    llama.apply_rope = functools.partial(apply_rope, rope_theta=m["rope_theta"])
    config = llama.ModelConfig(
        num_layers=m["n_layers"],
        vocab_size=m["vocab_size"],
        embed_dim=m["d_model"],
        hidden_dim=m["d_ff"],
        num_heads=m["n_heads"],
        head_dim=m["head_dim"],
        num_kv_heads=m["n_kv_heads"],
        rope_theta=m["rope_theta"],
        norm_eps=m["norm_eps"],
        weight_tying=m["tie_embeddings"],
    )
    model = llama.Llama3(config, rngs=nnx.Rngs(setup.seed))
    slots = {
        "embed": model.embedder.input_embedding,
        "final_norm": model.final_norm.w,
    }
    if not m["tie_embeddings"]:
        slots["head"] = model.lm_head.w
    for i, layer in enumerate(model.layers):
        slots |= {
            f"layers.{i}.attn_norm": layer.input_layernorm.w,
            f"layers.{i}.mlp_norm": layer.post_attention_layernorm.w,
            **{f"layers.{i}.{k}": getattr(layer.attn, f"{k}_proj").w for k in "qkvo"},
            **{
                f"layers.{i}.{k}": getattr(layer.mlp, f"{k}_proj").kernel
                for k in ("gate", "up", "down")
            },
        }
    with np.load(setup.weights) as arrays:
        if set(slots) != set(arrays):
            raise ValueError(f"weights do not fit: {set(slots) ^ set(arrays)}")
        for key, slot in slots.items():
            slot[...] = jnp.asarray(arrays[key], jnp.float32).reshape(slot.shape)
    return model


def reward(prompts, completions, **_) -> list[float]:
    return [float(str(REWARDED_ID) in text.split()) for text in completions]


class Worker:
    """Reads and does commands between two steps of `GRPOLearner.train`."""

    def __init__(self, setup: Setup, reply):
        self.setup = setup
        self.reply = reply
        self.learner = make_learner(setup)
        self.texts = [" ".join(map(str, prompt)) for prompt in setup.prompts]
        self.examples = []  # the batch that the trainer got last
        update = self.learner.rl_cluster.update_actor

        def keep_then_update(examples, *args):
            self.examples = examples
            update(examples, *args)

        self.update = update
        self.learner.rl_cluster.update_actor = keep_then_update

    def sample(self) -> int:
        texts = [text for text in self.texts for _ in range(self.setup.group_size)]
        tokens = self.learner.rl_cluster.generate(texts).tokens
        return sum(min(len(ids) + 1, self.setup.max_new_tokens) for ids in tokens)

    def learn(self) -> None:
        self.update(self.examples, None)
        jax.block_until_ready(nnx.state(self.learner.rl_cluster.actor_trainer.model))

    def learned_tokens(self) -> int:
        return sum(int(example.completion_mask.sum()) for example in self.examples)

    def batches(self):
        """Batches of prompts for `train`, which asks for one when it has done the last."""
        batch = {"prompts": np.array(self.texts)}
        for _ in range(3):  # `train` draws the first batch before its loop
            yield dict(batch)
        self.sample()
        self.learn()
        self.reply(ready=True, threads=self.setup.threads, framework="tunix")
        for line in sys.stdin:
            command = json.loads(line)
            if command["cmd"] == "quit":
                return
            seconds, tokens = [], []
            for _ in range(command["repeats"]):
                drawn = None
                start = time.perf_counter()
                match command["cmd"]:
                    case "sampler":
                        drawn = self.sample()
                    case "learner":
                        self.learn()
                    case "step":
                        yield dict(batch)
                seconds.append(time.perf_counter() - start)
                tokens.append(self.learned_tokens() if drawn is None else drawn)
            self.answer(command["cmd"], seconds, tokens)

    def answer(self, cmd: str, seconds: list[float], tokens: list[int]) -> None:
        what = {
            "sampler": "RLCluster.generate on P*G prompts; tokens include the stop token",
            "learner": "RLCluster.update_actor, GRPO loss; tokens leave out the stop token",
            "step": "one step of GRPOLearner.train; tokens leave out the stop token",
        }
        self.reply(seconds=seconds, tokens=tokens, what=what[cmd])


def make_learner(setup: Setup) -> GRPOLearner:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    prompt_length = len(setup.prompts[0])
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(setup.learning_rate, b1=0.9, b2=0.95, weight_decay=0.0),
    )
    roles = (cluster_lib.Role.ACTOR, cluster_lib.Role.ROLLOUT, cluster_lib.Role.REFERENCE)
    config = cluster_lib.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        rollout_engine="vanilla",
        training_config=cluster_lib.RLTrainingConfig(
            actor_optimizer=optimizer,
            eval_every_n_steps=10**9,
            max_steps=10**9,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=setup.max_new_tokens,
            max_prompt_length=prompt_length,
            kv_cache_size=prompt_length + setup.max_new_tokens,
            temperature=setup.temperature,
            top_p=1.0,
            top_k=None,
        ),
    )
    cluster = cluster_lib.RLCluster(
        actor=load_model(setup),
        reference=None,
        tokenizer=Tokenizer(setup),
        cluster_config=config,
    )
    return GRPOLearner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=setup.group_size, num_iterations=1, beta=0.0),
        reward_fns=reward,
    )


def main() -> None:
    setup, reply = connect()
    os.environ["NPROC"] = str(setup.threads)  # XLA reads it when the first array is made
    worker = Worker(setup, reply)
    worker.learner.train(worker.batches())


if __name__ == "__main__":
    main()
