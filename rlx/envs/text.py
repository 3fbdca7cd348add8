"""Tokenizers of checkpoints, from a Hugging Face folder or a GGUF file.

The folder has tokenizer.json, the names of special tokens and the chat template; the GGUF file has
tokens, merges and template in its metadata (github.com/ggml-org/ggml, docs/gguf.md). The `pre` of a
GGUF names its pre-tokenizer: `smollm` splits every digit off.
"""

from __future__ import annotations

import contextlib
import importlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlx import jsonfile
from rlx.envs.template import Template
from rlx.errors import InputError

PLAIN = "{prompt}"
ANSWER = "(an answer)"  # placeholder for the policy's, whose tokens are never rendered
STRING, ARRAY = 8, 9  # value types of a GGUF
CONTROL = 3  # token type of a GGUF: special, without text
HOW_TO = "give a folder with tokenizer.json, or a .gguf file"
SPECIAL = tuple(f"{x}_token" for x in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


def wrong(path: object, reason: str, remedy: str = "correct the file") -> InputError:
    return InputError("env.tokenizer", path, reason, remedy)


@contextlib.contextmanager
def _library(path: object, what: str) -> Iterator[None]:
    """Turns whatever `tokenizers` raises, including panics, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, InputError):
        raise
    except BaseException as error:
        raise wrong(path, f"{what} ({error})", HOW_TO) from None


@dataclass(frozen=True)
class TextTokenizer:
    """rlx.envs.base.TextTokenizer over a `tokenizers.Tokenizer`."""

    words: Any
    stop_ids: tuple[int, ...]  # the first ends supervised traces
    pad_id: int
    vocab_size: int  # ids beyond the last token are unused rows of the embedding
    template: Callable[..., str] | None = None  # of the chat; None: prompts without a template
    special: tuple[tuple[str, str], ...] = ()  # variables of the template: bos_token and so on
    system_prompt: str = ""
    prompt_template: str = PLAIN

    path: str = ""  # of its folder or file

    @property
    def stop_id(self) -> int:
        return self.stop_ids[0]

    def encode(self, text: str) -> list[int]:
        """Adds no tokens; special tokens in the text are recognised."""
        with _library(self.path, f"cannot encode {text[:100]!r}"):
            return self.words.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """As a turn of the user up to the start of the answer; without a chat, after a BOS token.

        Without a chat, an end token that the tokenizer appends is removed, and so is a second BOS.
        Raises InputError if a template ends with an end token, or if nothing is left.
        """
        text = self.prompt_template.replace(PLAIN, text.strip())
        ids = self._bare(text) if self.template is None else self._chat(text)
        if not ids:
            key, remedy = "env.prompt_template", "add words"
            raise InputError(key, self.prompt_template, "an empty prompt", remedy)
        return ids

    def _bare(self, text: str) -> list[int]:
        with _library(self.path, f"cannot encode {text[:100]!r}"):
            encoded = self.words.encode(text)
        bos_id = self.words.token_to_id(dict(self.special).get("bos_token", ""))
        ids, added = encoded.ids, [of_text is None for of_text in encoded.sequence_ids]
        if sum(added) != self.words.num_special_tokens_to_add(False):
            raise wrong(self.path, "its post-processor changes the prompt", HOW_TO)
        while ids and added[-1] and ids[-1] in self.stop_ids and ids != [bos_id]:
            del ids[-1], added[-1]
        twice = ids[:2] == [bos_id, bos_id] and added[:2] == [True, False]
        return ids[1:] if twice else ids

    def _rendered(self, *turns: tuple[str, str]) -> str:
        """The chat of (role, content), after the system prompt, up to the start of an answer."""
        turns = (("system", self.system_prompt), *turns) if self.system_prompt else turns
        messages = [{"role": role, "content": content} for role, content in turns]
        values = {"tools": None, "documents": None, "add_generation_prompt": True}
        return self.template(messages=messages, **values, **dict(self.special))

    def encode_reply(self, text: str) -> list[int]:
        """From the end of one answer to the start of the next; without a chat, the text alone.

        In a chat it is a turn of the user, with everything that the template writes after an
        answer, except its first end token, which the policy has sampled. Raises InputError if a
        template does not repeat an answer.
        """
        if self.template is None:
            return self.encode(text)
        chat = self._rendered(("user", "?"), ("assistant", ANSWER), ("user", text.strip()))
        _, found, behind = chat.partition(ANSWER)
        if not found:
            reason = f"the chat template of {self.path} omits the assistant's turns"
            raise InputError("env.chat", True, reason, "set env.chat=false or episode.max_turns=1")
        ids = self.encode(behind)
        return ids[1:] if ids and ids[0] in self.stop_ids else ids

    def _chat(self, text: str) -> list[int]:
        ids = self.encode(self._rendered(("user", text)))
        if ids and ids[-1] in self.stop_ids and not self.decode_one(ids[-1]):
            reason = f"the chat template of {self.path} ends with the end token {ids[-1]}"
            raise InputError("env.chat", True, reason, "set env.chat=false")
        return ids

    def decode_one(self, token: int) -> str:
        return self.words.decode([token], skip_special_tokens=True)

    def decode(self, ids: Iterable[int]) -> str:
        """Text before the first stop token, without special tokens."""
        ids = list(ids)
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return self.words.decode(ids[:end], skip_special_tokens=True)


class Source(NamedTuple):
    """The tokenizer parts of a folder or a file."""

    words: Any
    names: dict[str, str]  # of special tokens
    template: str
    template_file: Path
    stops: list[int]
    rows: int


def load(
    path: str | Path,
    *,
    chat: bool = False,
    system_prompt: str = "",
    prompt_template: str = PLAIN,
    rows: int = 0,
) -> TextTokenizer:
    """The tokenizer in a folder or GGUF file; rows: of the embedding, if it has more.

    Raises InputError, naming the file and the key.
    """
    _import("tokenizers")
    path = Path(path)
    if PLAIN not in prompt_template:
        raise InputError("env.prompt_template", prompt_template, f"{PLAIN} is missing", "add it")
    gguf = path.suffix == ".gguf"
    if not jsonfile.is_file(path if gguf else path / "tokenizer.json"):
        raise wrong(path, "no tokenizer there", HOW_TO)
    source = _from_gguf(path) if gguf else _from_folder(path, rows)
    words, names, stops = source.words, source.names, source.stops
    if not stops:
        raise wrong(path, "it names no end-of-sequence token", "set eos_token")
    if chat and not source.template:
        raise InputError("env.chat", True, f"{path} has no chat template", "set env.chat=false")
    if chat:
        _import("jinja2")
    pad_id = words.token_to_id(names.get("pad_token", ""))
    return TextTokenizer(
        words=words,
        stop_ids=tuple(dict.fromkeys(stops)),
        pad_id=stops[0] if pad_id is None else pad_id,
        vocab_size=max(source.rows, words.get_vocab_size(), rows),
        template=Template(source.template, source.template_file) if chat else None,
        special=tuple(names.items()),
        system_prompt=system_prompt,
        prompt_template=prompt_template,
        path=str(path),
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = "pip install 'rlx[hf]'"
        raise InputError("env.tokenizer", "", f"cannot import {name} ({error})", remedy) from None


def _ids(value: Any, file: Path, size: int) -> list[int]:
    """Values of the key eos_token_id: one, a list, or none."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if type(i) is not int or not 0 <= i < size:
            raise wrong(file, f"eos_token_id={value!r} is not one of the {size} tokens")
    return ids


def _added(value: Any, key: str, file: Path) -> Any:
    """A token given as text, or as an object with text and flags."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise wrong(file, f"{key}={value!r} is not a token")
    return AddedToken(value["content"], **{x: value[x] is True for x in FLAGS if x in value})


def _add_tokens(words: Any, path: Path, rows: int) -> dict[str, str]:
    """Add the tokens listed beside tokenizer.json; returns the special tokens by name.

    In the order of `transformers`, so that a new token gets the same id; a token without a row of
    the embedding is left out, except BOS and EOS. special_tokens_map.json takes precedence over
    tokenizer_config.json, unless the latter lists its added tokens.
    """
    from tokenizers import AddedToken

    def read(name: str) -> dict[str, Any]:
        return jsonfile.read("env.tokenizer", path / name)

    file, config = path / "tokenizer_config.json", read("tokenizer_config.json")
    listed, old = config.get("added_tokens_decoder"), {}
    if listed is None:
        config, old = config | read("special_tokens_map.json"), read("added_tokens.json")
        if not all(type(i) is int for i in old.values()):
            raise wrong(path / "added_tokens.json", "has values that are not ids")
    elif not isinstance(listed, dict) or not all(x.isdecimal() and len(x) < 12 for x in listed):
        raise wrong(file, f"added_tokens_decoder={listed!r} is not an object of ids and tokens")
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    more = list(more.values()) if isinstance(more, dict) else more
    if not isinstance(more, list):
        raise wrong(file, f"extra_special_tokens={more!r} is not a list of tokens")
    own = [key for key, x in config.items() if key.endswith("_token") and isinstance(x, str)]
    keys = dict.fromkeys([*(key for key in SPECIAL if config.get(key)), *filter(config.get, own)])
    named = {key: _added(config[key], key, file) for key in keys}
    extra = [_added(token, "extra_special_tokens", file) for token in more]
    special = {token.content for token in (*named.values(), *extra)}
    listed = sorted((listed or {}).items(), key=lambda item: int(item[0]))
    listed = [_added(token, "added_tokens_decoder", file) for _, token in listed]
    old = [AddedToken(text, special=text in special) for text in sorted(old, key=old.get)]
    with _library(file, "has tokens that cannot be added"):
        words.add_tokens([*listed, *old])
        for key in ("bos_token", "eos_token"):
            if key in named and words.token_to_id(named[key].content) is None:
                raise wrong(file, f"{key}={named[key].content} is not a token of tokenizer.json")
        there = {token.content for token in words.get_added_tokens_decoder().values()}
        extra = [token for token in extra if token.content not in there]
        for token in (*named.values(), *extra):
            known = words.token_to_id(token.content) is not None
            if known or not 0 < rows <= words.get_vocab_size():
                words.add_special_tokens([token])
    return {key: token.content for key, token in named.items()}


def _from_folder(path: Path, rows: int) -> Source:
    """As in `transformers`; generation_config.json takes precedence over config.json."""
    from tokenizers import Tokenizer

    with _library(path, "cannot be read"):
        words = Tokenizer.from_file(str(path / "tokenizer.json"))
        words.no_truncation()
        words.no_padding()
    file = path / "config.json"
    config = jsonfile.read("env.tokenizer", file)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else {}
    ours = config.get("vocab_size", text.get("vocab_size", 0))
    if type(ours) is not int or not 0 <= ours < 2**31:
        raise wrong(file, f"vocab_size={ours!r} is not a number of tokens")
    rows = max(rows, ours)
    names = _add_tokens(words, path, rows)
    if (path / "generation_config.json").exists():
        file = path / "generation_config.json"
        config = jsonfile.read("env.tokenizer", file)
    eos_id = words.token_to_id(names.get("eos_token", ""))
    more = _ids(config.get("eos_token_id"), file, max(rows, words.get_vocab_size()))
    stops = [*([] if eos_id is None else [eos_id]), *more]
    return Source(words, names, *_template(path), stops, rows)


def _template(path: Path) -> tuple[str, Path]:
    """The chat template and its file; of several, the one named default."""
    file = path / "chat_template.jinja"
    if jsonfile.is_file(file):
        try:
            return file.read_text(encoding="utf-8"), file
        except (OSError, ValueError) as error:
            raise wrong(file, f"cannot be read ({error})", "copy it again") from None
    file = path / "tokenizer_config.json"
    source = jsonfile.read("env.tokenizer", file).get("chat_template") or ""
    if isinstance(source, list) and all(isinstance(one, dict) for one in source):
        source = {str(one.get("name")): one.get("template") for one in source}
    if isinstance(source, dict):
        source = source.get("default", "")
    if not isinstance(source, str):
        raise wrong(file, f"chat_template={source!r} is not a template")
    return source, file


def _from_gguf(path: Path) -> Source:
    """The same, from the metadata of a GGUF file."""
    fields = gguf_metadata(path)

    def value(name: str, kind: type, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.{name}", default)
        if found is not default and type(found) is not kind:
            raise wrong(path, f"tokenizer.{name}={found!r} is not {kind.__name__}", HOW_TO)
        return found

    kind = value("ggml.model", str, "")
    if kind != "gpt2":
        reason = f"its tokenizer is of kind {kind}, not byte-level BPE (gpt2)"
        raise wrong(path, reason, "give the folder of the original checkpoint")
    tokens, merges = value("ggml.tokens", list, []), value("ggml.merges", list, [])
    cut = _cut(path, value("ggml.pre", str, "default"))
    with _library(path, "cannot be read"):
        words = _byte_level_bpe(tokens, merges, value("ggml.token_type", list, []), cut)
    keys = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    ids = {name: value(f"ggml.{name}_token_id", int) for name in (*keys, "eot")}
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise wrong(path, f"{name}_token_id={i} is not one of the {len(tokens)} tokens", HOW_TO)
    names = {key: tokens[ids[name]] for name, key in keys.items() if ids[name] is not None}
    stops = [ids[name] for name in ("eos", "eot") if ids[name] is not None]
    if value("ggml.add_bos_token", bool) and "bos_token" in names:
        from tokenizers.processors import TemplateProcessing

        begin = [(names["bos_token"], ids["bos"])]
        pieces = [names["bos_token"], "$A"]
        with _library(path, "has a BOS that cannot be added"):
            words.post_processor = TemplateProcessing(single=pieces, special_tokens=begin)
    return Source(words, names, value("chat_template", str, ""), path, stops, len(tokens))


def gguf_metadata(path: Path) -> dict[str, Any]:
    """Keys and values at the head of a GGUF file (version 2 or 3, little-endian).

    The `gguf` package takes seconds for the 100,000 strings of a vocabulary. Raises InputError if
    it is not such a file.
    """
    numbers = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}  # types as in struct
    try:
        f, size = path.open("rb"), path.stat().st_size
    except OSError as error:
        raise wrong(path, f"cannot be read ({error})", HOW_TO) from None

    def number(kind: int) -> Any:
        code = "<" + numbers[kind]
        return struct.unpack(code, f.read(struct.calcsize(code)))[0]

    def value(kind: int) -> Any:
        if kind == STRING:
            return f.read(min(number(10), size)).decode()
        if kind == ARRAY:
            inner, count = number(4), number(10)
            return [value(inner) for _ in range(count)]
        return number(kind)

    with f:
        try:
            if f.read(4) != b"GGUF" or number(4) not in (2, 3):
                raise ValueError("not GGUF version 2 or 3")
            _, count = number(10), number(10)  # tensors, keys
            return {value(STRING): value(number(4)) for _ in range(count)}
        except (KeyError, ValueError, struct.error, RecursionError) as error:
            raise wrong(path, f"cannot be read ({error})", HOW_TO) from None


def _cut(path: Path, pre: str) -> list[Any]:
    """The pre-tokenizer. Raises InputError if it is unknown."""
    from tokenizers import pre_tokenizers

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), bytes_],
        "gpt-2": [bytes_],
        "default": [bytes_],
    }
    if pre not in known:
        reason = f"unknown pre-tokenizer {pre}, known are {', '.join(known)}"
        raise wrong(path, reason, "give the folder of the original checkpoint")
    return known[pre]


def _byte_level_bpe(
    tokens: Sequence[str], merges: Sequence[str], kinds: Sequence[int], cut: list[Any]
):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    words = Tokenizer(models.BPE(vocab, [tuple(pair.split(" ")) for pair in merges]))
    words.pre_tokenizer = pre_tokenizers.Sequence(cut)
    words.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    words.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return words
