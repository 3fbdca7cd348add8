"""conf/sweep/smollm2.yaml by the commands of its header, on a tiny model of that family."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlx.record import RunRecord

for name in ("tokenizers", "reasoning_gym"):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}: pip install 'rlx[hf,gym]'", allow_module_level=True)

ROOT = Path(__file__).parents[1]
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|bot|>"
TINY = [
    *("model.d_model=48", "model.n_layers=2", "model.n_heads=3", "model.n_kv_heads=1"),
    *("model.head_dim=16", "model.d_ff=64", "model.vocab_size=320"),
]
FEW = [
    *("env.train_prompts=8", "env.heldout_prompts=4", "eval.samples_per_prompt=1", "mesh=one"),
    *("rollout.prompts_per_step=4", "env.grade_timeout_s=0"),
]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """Bytes, digits on their own among them, and the words of a chat."""
    import tokenizers

    special = ["<|user|>", "<|end|>", "<|bot|>"]
    level = tokenizers.pre_tokenizers.ByteLevel
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(level.alphabet())])}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    words.add_special_tokens(special)
    words.pre_tokenizer = level(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def commands() -> list[list[str]]:
    """Those of the header, word by word; START stands in the first."""
    text = (ROOT / "conf" / "sweep" / "smollm2.yaml").read_text()
    lines = re.findall(r"^#(?: Command)? {2,}(.+)$", text.split("# Time")[0], re.M)
    script = "\n".join(lines[lines.index(next(x for x in lines if x.startswith("START"))) :])
    start = " ".join(re.findall(r'START="(?:\$START )?(.+)"', script))
    plain = re.sub(r"\\\n *", "", script).replace("$START", start).splitlines()
    return [line.split()[1:] for line in plain if line.startswith("python")]


@pytest.mark.slow
def test_its_commands_make_a_start_and_six_runs(tmp_path, tokenizer):
    sft, study = commands()
    assert sft[:2] == ["-m", "experiments.sft"] and study[:2] == ["-m", "experiments.study"]
    env = {**os.environ, "XLA_FLAGS": ""}
    start, out = tmp_path / "start", tmp_path / "study"

    def run(*words):
        command = [sys.executable, *words]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    fresh = [word for word in sft if not word.startswith(("model.path", "out", "steps"))]
    family = ["model=smollm2_135m", f"env.tokenizer={tokenizer}", *TINY]
    run(*fresh, *family, *FEW, "steps=2", f"out={start}")
    few = [*FEW, "rollout.group_size=4", "rollout.slots=16", "eval.every_steps=1", "steps=2"]
    few += ["algo.reward=random", f"model.path={start}", f"out={out}"]  # it knows no answer
    run("-m", "experiments.train", "-m", f"+{study[-1]}", *few)  # what the study runs, then fits
    made = sorted(path.name for path in (out / "runs").iterdir() if path.is_dir())
    assert len(made) == 6 and {name.split("-")[0] for name in made} == {"dapo", "scalerl"}
    for name in made:
        record = RunRecord(out / "runs" / name, writes=False)
        assert record.manifest["status"] == "done" and len(record.rows("evals.jsonl")) == 3
        model = record.manifest["config"]["model"]
        assert (model["n_layers"], model["tie_embeddings"]) == (2, True)
