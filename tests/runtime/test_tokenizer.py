"""Tokens to text and back: streaming, end tokens, and tokenizers that are not what they should be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from front import CORPUS, TRAINED, byte_level, needs_trained_model, small_files
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Vocabulary
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from moepack.convert.shipped import CHECKPOINT
from moepack.manifests.errors import CorruptInputError, MismatchError, MoepackError, UsageError
from moepack.runtime.tokenizer import Tokenizer

VOCAB_SIZE = 300


def opened(folder: Path, vocabulary: Vocabulary | None = None, **files: Any) -> Tokenizer:
    content = (vocabulary or byte_level("<tool_call>")).to_str()
    return Tokenizer.open(small_files(folder, tokenizer__json=content, **files), VOCAB_SIZE)


def plain(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(vocabulary, vocabulary.get_vocab_size(), (), {})


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


BYTES = plain(byte_level("<tool_call>"))


@given(st.lists(st.integers(0, 256 + 1)))
def test_streamed_pieces_join_to_the_whole_text_for_any_bytes_at_all(tokens: list[int]) -> None:
    assert "".join(streamed(BYTES, tokens)) == BYTES.decode(tokens)


@given(st.text())
def test_no_piece_of_a_valid_text_ends_in_half_a_character(text: str) -> None:
    pieces = streamed(BYTES, BYTES.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.text(), st.data())
def test_a_text_is_cut_between_tokens_or_not_at_all(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    tokens, counts = BYTES.encode_cut(text, [cut])
    assert tokens == BYTES.encode(text, add_special_tokens=False)
    assert [BYTES.decode(tokens[:count]) for count in counts] == [text[:cut]]  # each character has tokens of its own
    _, two = BYTES.encode_cut("a<tool_call>b", [1, 5, 12])
    assert two == [1, 2]


def test_a_character_comes_out_with_its_last_byte_and_text_before_it_at_once() -> None:
    tokens = BYTES.encode("a🙂b", add_special_tokens=False)
    assert streamed(BYTES, tokens) == ["a", "", "", "", "🙂", "b", ""]


def test_an_unfinished_character_is_shown_as_a_replacement_when_the_answer_ends() -> None:
    tokens = BYTES.encode("a🙂", add_special_tokens=False)[:-1]
    assert streamed(BYTES, tokens)[-1] == "\ufffd"


@given(st.sampled_from(["a b  c", "héllo wörld 你好", "🙂🙃 x", " lead", "tail "]), st.integers(0, 3))
def test_a_sentencepiece_tokenizer_with_byte_fallback_streams_too(text: str, spaces: int) -> None:
    tokenizer = plain(SENTENCEPIECE)
    tokens = tokenizer.encode(text + " " * spaces + "x", add_special_tokens=False)
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_a_silent_special_token_does_not_swallow_the_space_after_it() -> None:
    space, x, end = 257, 258, SENTENCEPIECE.token_to_id("</s>")
    tokens = [space, x, end, space, x]
    assert plain(SENTENCEPIECE).decode(tokens) == "x x"
    assert "".join(streamed(plain(SENTENCEPIECE), tokens)) == "x x"


def _sentencepiece() -> Vocabulary:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "▁": 257, "x": 258, "o": 259, "l": 260}
    vocabulary = Vocabulary(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    vocabulary.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    vocabulary.decoder = decoders.Sequence(steps)
    vocabulary.add_special_tokens(["</s>"])
    return vocabulary


SENTENCEPIECE = _sentencepiece()


def test_special_tokens_are_silent_unless_asked_for(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path)
    tokens = tokenizer.encode("a<|end|><tool_call>", add_special_tokens=False)
    assert (tokenizer.decode(tokens), tokenizer.decode(tokens, special=True)) == ("a<tool_call>", "a<|end|><tool_call>")
    stream = tokenizer.stream(special=True)
    assert [stream.push(token) for token in tokens] == ["a", "<|end|>", "<tool_call>"]


def test_tokens_the_vocabulary_lacks_have_no_text() -> None:
    assert streamed(BYTES, [BYTES.encode("a", add_special_tokens=False)[0], 299]) == ["a", "", ""]


def test_truncation_and_padding_in_the_file_do_not_touch_a_prompt(tmp_path: Path) -> None:
    vocabulary = byte_level()
    vocabulary.enable_truncation(2)
    vocabulary.enable_padding(length=50)
    assert len(opened(tmp_path, vocabulary).encode("abcdef", add_special_tokens=True)) == 6


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config__json": {"eos_token_id": [5, 6]}, "config__json": {"eos_token_id": 7}}, {5, 6}),
        ({"generation_config__json": {"eos_token_id": 5}}, {5}),
        ({"generation_config__json": {"eos_token_id": None}, "config__json": {"eos_token_id": 7}}, {7}),
        ({"config__json": {"text_config": {"eos_token_id": 8}}}, {8}),
        ({"config__json": {"eos_token_id": 8}, "tokenizer_config__json": {"eos_token": "<|end|>"}}, {8, 256}),
        ({"tokenizer_config__json": {"eos_token": {"content": "<|end|>", "lstrip": False}}}, {256}),
        ({"tokenizer_config__json": {"eos_token": "<|unheard of|>"}}, set()),
        ({}, set()),
    ],
)
def test_where_end_tokens_come_from(tmp_path: Path, files: dict[str, Any], ends: set[int]) -> None:
    assert opened(tmp_path, **files).end_tokens == ends


@pytest.mark.parametrize("value", [-1, VOCAB_SIZE, "2", True, [1, None], {"a": 1}, 1.0])
def test_an_end_token_that_is_none_of_the_models_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CorruptInputError, match=r"generation_config\.json: eos_token_id"):
        opened(tmp_path, generation_config__json={"eos_token_id": value})


def test_a_named_token_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match="bos_token is not a text"):
        opened(tmp_path, tokenizer_config__json={"bos_token": 3})


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}']
    + [json.dumps({"model": {"type": "BPE", "vocab": {"a": size}, "merges": []}}).encode() for size in (-1, 10**12)],
)
def test_a_malformed_tokenizer_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorruptInputError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.open(small_files(tmp_path, tokenizer__json=content), VOCAB_SIZE)


def test_a_pack_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        Tokenizer.open(small_files(tmp_path), VOCAB_SIZE)


def test_a_tokenizer_of_another_model_is_refused_when_it_matters(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(small_files(tmp_path, tokenizer__json=byte_level().to_str()), 100)
    with pytest.raises(CorruptInputError, match="has only 100"):
        tokenizer.encode("ÿ", add_special_tokens=False)


def test_text_that_is_no_utf8_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        BYTES.encode("\udcff", add_special_tokens=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
def test_a_file_that_changed_after_packing_is_not_used(tmp_path: Path, name: str) -> None:
    empty: dict[str, Any] = {key: {} for key in ("tokenizer_config__json", "config__json", "generation_config__json")}
    files = small_files(tmp_path, tokenizer__json=byte_level().to_str(), **empty)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MismatchError, match="not the file that the manifest promises"):
        Tokenizer.open(files, VOCAB_SIZE)


def test_a_file_over_its_limit_or_replaced_by_a_link_is_not_read(tmp_path: Path) -> None:
    files = small_files(tmp_path, config__json={}, big__json=b" " * 1000)
    with pytest.raises(CorruptInputError, match="at most 100"):
        files.read("big.json", 100)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(MoepackError, match="symbolic link"):
        files.json("config.json")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a": NaN}', b"\xff"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorruptInputError, match=r"config\.json"):
        small_files(tmp_path, config__json=content).json("config.json")


@given(st.data())
def test_a_trained_tokenizer_with_merges_streams_and_agrees_with_transformers(data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, MERGED.get_vocab_size() - 1)))
    tokenizer = plain(MERGED)
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


def _merged() -> Vocabulary:
    vocabulary = Vocabulary(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    vocabulary.train_from_iterator(CORPUS, trainer)
    return vocabulary


MERGED = _merged()


@needs_trained_model
def test_the_trained_models_tokenizer_equals_transformers() -> None:
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would put Qwen's own pre-tokenizer in its place

    theirs = PreTrainedTokenizerFast.from_pretrained(TRAINED)
    ours = plain(Vocabulary.from_file(str(TRAINED / "tokenizer.json")))
    for text in CORPUS:
        tokens = theirs(text)["input_ids"]
        assert ours.encode(text, add_special_tokens=True) == tokens
        assert "".join(streamed(ours, tokens)) == theirs.decode(tokens, skip_special_tokens=True)


IN_THREADS = """
import sys
from pathlib import Path
from threading import Barrier, Thread
from moepack.runtime.packfiles import LooseFiles
from moepack.runtime.tokenizer import Tokenizer
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def encode(first):
    for half in range(2):
        for word in range(first + half * 5000, first + half * 5000 + 5000):
            letters = "".join(chr(ord("a") + int(digit)) for digit in str(10**9 + word))
            tokenizer.encode(letters, add_special_tokens=False)
        met.wait()
        met.wait()
tokenizer, met = Tokenizer.open(LooseFiles(Path(sys.argv[1])), 10**6), Barrier(5)
for thread in range(4):
    Thread(target=encode, args=(thread * 10_000,)).start()
met.wait()
before = resident()
met.wait()
met.wait()
print(resident() - before)
met.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_threads_that_encode_ever_new_words_do_not_remember_them_all() -> None:
    done = subprocess.run([sys.executable, "-c", IN_THREADS, CHECKPOINT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2_000_000  # with the library's own bound it is over 9,000,000
