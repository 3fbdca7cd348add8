"""TRL's GRPOTrainer as a worker that another program times in turns with rlx.

Run with the Python of an environment that holds torch, transformers and trl:

    python experiments/rivals/trl_driver.py

One JSON line on stdin sets it up (see protocol.py), one on stdout answers that it is ready.
Then `{"cmd": "sampler" | "learner" | "step", "repeats": n}` does that work n times and answers
`{"seconds": [...], "tokens": [...], "what": ...}`, one entry per repeat; `{"cmd": "quit"}` ends.
Whatever libraries print goes to stderr. An error ends the process with a traceback there.

`trainer.train()` runs for the life of the process, and commands are read in its `on_step_end`
callback, so a "step" is a step of TRL's own loop: fetch the batch, generate, score, update.
"sampler" tokenizes P*G prompts and calls the trainer's `_generate_single_turn`. "learner" is
`compute_loss`, backward, gradient clipping and the optimizer on the batch of the last step.
Every command continues from the weights that the last one left.

Settings, each TRL's best on a CPU for this model size:
  bf16 off                     the default is bfloat16 autocast: twice the time of an update
  activation checkpointing off the default is on: a second forward pass per update
  attn_implementation="sdpa"   generates a fifth faster than "eager"
  dynamic KV cache             the default; a static one is no faster, as TRL never compiles it
  optim="adamw_torch_fused"    one kernel per parameter group
  dataloader workers 0         256 short strings cost less to read than to move between processes
  no torch.compile             measured no faster in the update, for over a minute of compiling
  no logs, checkpoints, bars   rlx is timed without them too; cheap metrics of the loss remain

Equal to rlx: architecture, initial weights, float32, prompts, group size, stop rule, CISPO with the
same cap, advantages scaled by the deviation of the batch, AdamW, clipping at norm 1, temperature.
Not equal: each prompt is prefilled G times; generation ends when every row has stopped; the batch
is as long as its longest completion; tokens weigh the same (rlx: prompts); groups of equal reward
stay in the batch; the head runs twice (its backward recomputes logits) and entropy is measured;
texts are decoded and rewards computed on the host inside "step"; no learning-rate warm-up.
"""

import json
import os
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from protocol import REWARDED_ID, Setup, connect
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

MAX_STEPS = 10**9  # the loop ends when told to


def load_model(setup: Setup) -> LlamaForCausalLM:
    m = setup.model
    config = LlamaConfig(
        vocab_size=m["vocab_size"],
        hidden_size=m["d_model"],
        intermediate_size=m["d_ff"],
        num_hidden_layers=m["n_layers"],
        num_attention_heads=m["n_heads"],
        num_key_value_heads=m["n_kv_heads"],
        head_dim=m["head_dim"],
        rms_norm_eps=m["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": m["rope_theta"]},
        max_position_embeddings=len(setup.prompts[0]) + setup.max_new_tokens,
        tie_word_embeddings=m["tie_embeddings"],
        pad_token_id=setup.pad_id,
        eos_token_id=setup.stop_id,
        bos_token_id=None,
        attn_implementation="sdpa",
    )
    names = {
        "embed": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
        "attn_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        **{k: f"self_attn.{k}_proj" for k in "qkvo"},
        **{k: f"mlp.{k}_proj" for k in ("gate", "up", "down")},
    }
    state = {}
    with np.load(setup.weights) as arrays:
        for key in arrays:
            *layer, name = key.split(".")
            prefix = ".".join(["model", *layer, ""]) if layer else ""
            value = arrays[key] if name == "embed" else arrays[key].T  # a Linear holds W.T
            state[f"{prefix}{names[name]}.weight"] = torch.tensor(value, dtype=torch.float32)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = ["lm_head.weight"] if m["tie_embeddings"] else []
    if missing != tied or unexpected:
        raise ValueError(f"weights do not fit: {missing=} {unexpected=}")
    return model


def token_text(ids) -> str:
    return " ".join(f"<{i}>" for i in ids)


def make_tokenizer(setup: Setup) -> PreTrainedTokenizerFast:
    """One word per id, so that the text of a prompt encodes to exactly its ids."""
    vocab = {token_text([i]): i for i in range(setup.model["vocab_size"])}
    words = Tokenizer(models.WordLevel(vocab))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=token_text([setup.pad_id]),
        eos_token=token_text([setup.stop_id]),
    )
    texts = [token_text(prompt) for prompt in setup.prompts]
    if tokenizer(texts)["input_ids"] != setup.prompts:
        raise ValueError("prompts do not survive tokenization")
    return tokenizer


def reward(completion_ids, **_) -> list[float]:
    return [float(REWARDED_ID in ids) for ids in completion_ids]


class Worker(TrainerCallback):
    """Reads and does commands between two steps of `trainer.train()`."""

    def __init__(self, setup: Setup, reply):
        self.setup = setup
        self.reply = reply
        self.seconds, self.tokens = [], []
        self.steps_due = 2  # warm-up: two steps, then one of each other command
        self.ready = False
        self.trainer = None
        self.texts = [token_text(p) for p in setup.prompts for _ in range(setup.group_size)]

    def sampler(self) -> int:
        trainer = self.trainer
        prompt_ids, images, fields = trainer._tokenize_prompts(self.texts)
        completions, _ = trainer._generate_single_turn(
            prompt_ids, images, fields, trainer.num_generations
        )
        return sum(map(len, completions))

    def learner(self) -> int:
        trainer = self.trainer
        model = trainer.model_wrapped
        model.train()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, trainer._buffered_inputs[0])
        trainer.accelerator.backward(loss)
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        model.zero_grad()
        return self.last_batch_tokens()

    def last_batch_tokens(self) -> int:
        return int(self.trainer._buffered_inputs[0]["completion_mask"].sum())

    def timed(self, work, repeats: int) -> tuple[list[float], list[int]]:
        seconds, tokens = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            tokens.append(work())
            seconds.append(time.perf_counter() - start)
        return seconds, tokens

    def on_train_begin(self, args, state, control, **_):
        self.mark = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.seconds.append(time.perf_counter() - self.mark)
        self.tokens.append(self.last_batch_tokens())
        self.steps_due -= 1
        if self.steps_due == 0:
            self.serve(control)
        self.mark = time.perf_counter()

    def serve(self, control) -> None:
        """Answers the steps just done, then commands until one asks for steps, or to quit."""
        if self.ready:
            self.answer("step", self.seconds, self.tokens)
        else:
            self.sampler()
            self.learner()
            self.reply(ready=True, threads=torch.get_num_threads(), framework="trl")
            self.ready = True
        for line in sys.stdin:
            command = json.loads(line)
            if command["cmd"] == "quit":
                break
            if command["cmd"] == "step":
                self.steps_due, self.seconds, self.tokens = command["repeats"], [], []
                return
            work = {"sampler": self.sampler, "learner": self.learner}[command["cmd"]]
            self.answer(command["cmd"], *self.timed(work, command["repeats"]))
        control.should_training_stop = True

    def answer(self, cmd: str, seconds: list[float], tokens: list[int]) -> None:
        what = {
            "sampler": "tokenize P*G prompts, generate, cut after the stop token",
            "learner": "loss, backward, clip and AdamW on the batch of the last step",
            "step": "one step of trainer.train(): fetch, generate, score, update",
        }
        self.reply(seconds=seconds, tokens=tokens, what=what[cmd])


def make_trainer(setup: Setup, worker: Worker, folder: str) -> GRPOTrainer:
    rows = len(setup.prompts) * setup.group_size
    args = GRPOConfig(
        output_dir=folder,  # the trainer makes one; nothing is saved
        loss_type="cispo",
        epsilon_high=setup.is_cap,
        scale_rewards="batch",
        beta=0.0,
        num_iterations=1,
        num_generations=setup.group_size,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        max_completion_length=setup.max_new_tokens,
        temperature=setup.temperature,
        learning_rate=setup.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=MAX_STEPS,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=setup.seed,
    )
    texts = [token_text(prompt) for prompt in setup.prompts]
    return GRPOTrainer(
        model=load_model(setup),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts * 1000}),  # epochs of 1000 steps
        processing_class=make_tokenizer(setup),
        callbacks=[worker],
    )


def main() -> None:
    setup, reply = connect()
    torch.set_num_threads(setup.threads)
    os.environ["RAYON_NUM_THREADS"] = str(setup.threads)  # of the tokenizer
    set_seed(setup.seed)
    worker = Worker(setup, reply)
    with tempfile.TemporaryDirectory() as folder:
        worker.trainer = make_trainer(setup, worker, folder)
        worker.trainer.train()


if __name__ == "__main__":
    main()
