"""Texts as windows of tokens: what is cut where, what is scored, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import save_tokenizer

from moepack.manifests.digest import of_bytes
from moepack.manifests.errors import UsageError
from moepack.manifests.schema import File
from moepack.runtime.packfiles import PackFiles
from moepack.runtime.quality.windows import Windows, read_text, read_tokens
from moepack.runtime.tokenizer import Tokenizer

TEXTS = ("the quick brown fox jumps over the lazy dog, again and again " * 12, "x", "a fox jumped over a dog " * 9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    listed = [File(path.name, path.stat().st_size, of_bytes(path.read_bytes()).hex()) for path in folder.iterdir()]
    return Tokenizer.open(PackFiles(folder, listed), 512)


def read(tmp_path: Path, tokenizer: Tokenizer, content: str, **options: int) -> Windows:
    (tmp_path / "text").write_text(content)
    return read_text(tmp_path / "text", tokenizer, **options)


def sequences(windows: Windows) -> list[list[int]]:
    return [windows.corpus.tokens[first:last].tolist() for first, last in windows.corpus.bounds()]


def test_documents_are_cut_apart_and_scored_within(tmp_path: Path, tokenizer: Tokenizer) -> None:
    windows = read(tmp_path, tokenizer, "\0".join(TEXTS), window=50)
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    cut = [(n, ids[i : i + 50]) for n, ids in enumerate(tokens) for i in range(0, len(ids), 50)]
    kept = [(number, ids) for number, ids in cut if len(ids) > 1]
    assert sequences(windows) == [ids for _, ids in kept]
    assert windows.documents == tuple(number for number, _ in kept)
    rows = windows.rows()
    assert len(rows) == sum(len(ids) - 1 for _, ids in kept) == len(windows.clusters())
    targets = [token for _, ids in kept for token in ids[1:]]
    assert windows.corpus.tokens[rows + 1].tolist() == targets
    assert set(windows.clusters().tolist()) == {0, 2}


def test_a_single_document_is_clustered_by_window(tmp_path: Path, tokenizer: Tokenizer) -> None:
    windows = read(tmp_path, tokenizer, TEXTS[0], window=30)
    counts = np.bincount(windows.clusters())
    assert counts.tolist() == [len(ids) - 1 for ids in sequences(windows)]


def test_a_limit_cuts_the_last_window(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = sequences(read(tmp_path, tokenizer, TEXTS[0], window=50))
    limited = sequences(read(tmp_path, tokenizer, TEXTS[0], window=50, limit=120))
    assert limited == [whole[0], whole[len(whole) // 3], whole[2 * len(whole) // 3][:20]]
    assert sequences(read(tmp_path, tokenizer, TEXTS[0], window=50, limit=10**6)) == whole


@pytest.mark.parametrize("limit", [120, 131, 150, 160])
def test_a_limit_is_kept_and_reaches_all_documents(tmp_path: Path, tokenizer: Tokenizer, limit: int) -> None:
    content = "\0".join(TEXTS)
    whole, limited = (read(tmp_path, tokenizer, content, window=7, **how) for how in ({}, {"limit": limit}))
    assert limit - 7 <= len(limited.corpus) <= limit < len(whole.corpus)
    assert set(limited.documents) == {0, 2}
    assert all(ids in [full[: len(ids)] for full in sequences(whole)] for ids in sequences(limited))


def test_a_sample_is_spread_over_the_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    windows = read(tmp_path, tokenizer, "\0".join(TEXTS), window=10)
    sample = windows.sample(40)
    assert 30 <= len(sample.corpus) <= 40
    assert {0, 2} == set(sample.documents)
    assert all(ids in sequences(windows) for ids in sequences(sample))
    assert sequences(windows.sample(10**6)) == sequences(windows)
    assert sequences(windows.sample(1)) == sequences(windows)[:1]


def tokens_file(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(value))
    return path


def test_a_sample_has_scored_positions(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"windows": [[1, 2]] * 5 + [[3] * 300], "scored_from": 20}))
    assert len(read_tokens(path).sample(3).rows()) == 279


def test_another_tools_windows(tmp_path: Path) -> None:
    """As llama-perplexity scores: positions 256 to 510 of a window of 512 predict tokens 257 to 511."""
    drawn = np.random.default_rng(0).integers(0, 500, (3, 512)).tolist()
    windows = read_tokens(tokens_file(tmp_path, {"windows": drawn, "scored_from": 256}))
    assert windows.rows().tolist() == [512 * w + i for w in range(3) for i in range(256, 511)]
    assert np.bincount(windows.clusters()).tolist() == [255] * 3
    assert windows.document()["positions"] == 765
    assert len(read_tokens(tokens_file(tmp_path, {"windows": drawn})).rows()) == 3 * 511


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], 'is not {"windows"'),
        ({"windows": [[1.5] * 200]}, 'is not {"windows"'),
        ({"windows": [[-1] * 200]}, 'is not {"windows"'),
        ({"windows": [[1] * 200], "start": 1}, 'is not {"windows"'),
        ({"windows": [[1] * 200], "scored_from": -1}, "scored_from is -1"),
        ({"windows": [[1] * 200], "scored_from": 150}, "too short: it gives 49 positions"),
        ({"windows": [[1] * 200], "scored_from": 199}, "and the longest window has 200 tokens, so nothing is scored"),
        ({"windows": [[1] * 200], "scored_from": 999}, "scored_from is 999, and the longest"),
        ({"windows": []}, "too short: it gives 0 positions"),
    ],
)
def test_windows_that_are_none(tmp_path: Path, value: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_tokens(tokens_file(tmp_path, value))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"", {}, "too short: it gives 0 positions"),
        (b"a fox", {}, "too short"),
        (b"\xff" * 1000, {}, "is not UTF-8"),
        (TEXTS[0].encode(), {"window": 1}, "windows of 1 tokens"),
        (TEXTS[0].encode(), {"limit": 1}, "a limit of 1 tokens"),
        (TEXTS[0].encode(), {"limit": 50}, "it gives 49 positions"),
    ],
)
def test_texts_that_cannot_be_scored(
    tmp_path: Path, tokenizer: Tokenizer, content: bytes, options: dict[str, int], sentence: str
) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_text(tmp_path / "text", tokenizer, **options)
    assert sentence in str(raised.value)


def test_a_text_that_is_not_there(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path / "none", tokenizer)


def test_windows_longer_than_the_context_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    windows = read(tmp_path, tokenizer, TEXTS[0], window=60)
    windows.require_within(60)
    with pytest.raises(
        UsageError, match="windows of 60 tokens do not fit the model's context of 59; give --window 59 or less"
    ):
        windows.require_within(59)
    with pytest.raises(UsageError, match="context of 59; cut them"):
        windows.require_within(59, "cut them")
