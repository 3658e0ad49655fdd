"""Divergence, summaries and the structural slice against torch in float64, plain sums and known distributions."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moepack.manifests.console import print_json
from moepack.runtime.quality.divergence import LOGITS_BYTES, Positions, blocks, compare
from moepack.runtime.quality.structure import NAMES, NONE, class_of, structure
from moepack.runtime.quality.summary import Summary, estimate, ratio

LOGITS = arrays(np.float32, (5, 17), elements=st.floats(-60, 60, width=32))
TARGETS = arrays(np.int32, 5, elements=st.integers(0, 16))


def positions_of(divergence: list[float]) -> Positions:
    zeros, tops = np.zeros(len(divergence)), np.zeros(len(divergence), np.int32)
    return Positions(np.array(divergence), zeros, zeros, tops, tops)


@settings(deadline=None)
@given(LOGITS, LOGITS, TARGETS)
def test_it_is_torchs_divergence_in_float64(reference: np.ndarray, other: np.ndarray, targets: np.ndarray) -> None:
    found = compare(reference, other, targets)
    log_p, log_q = (torch.from_numpy(logits).double().log_softmax(-1) for logits in (reference, other))
    wanted = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).numpy()
    assert np.allclose(found.divergence, wanted, rtol=1e-9, atol=1e-12)
    index = torch.from_numpy(targets).long()
    assert np.allclose(found.reference_loss, torch.nn.functional.nll_loss(log_p, index, reduction="none").numpy())
    assert np.allclose(found.loss, torch.nn.functional.nll_loss(log_q, index, reduction="none").numpy())
    assert (
        found.reference_top.tolist() == log_p.argmax(-1).tolist()
        or (np.sort(log_p.numpy())[:, -2:].std(1) < 1e-9).any()
    )


@settings(deadline=None)
@given(LOGITS, LOGITS, TARGETS)
def test_it_is_never_negative_and_exactly_nothing_of_the_same(
    reference: np.ndarray, other: np.ndarray, targets: np.ndarray
) -> None:
    assert (compare(reference, other, targets).divergence >= 0).all()
    same = Summary.of(compare(reference, reference.copy(), targets), np.arange(5))
    assert (same.divergence.mean, same.p999, same.largest, same.agreement.mean, same.ratio) == (0, 0, 0, 1, 1)
    assert same.reference_perplexity == same.perplexity


def test_known_distributions() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = log 2 / sqrt 3 ... = 1/2 log(4/3)."""
    reference, other = np.log([[0.5, 0.5]]).astype(np.float32), np.log([[0.25, 0.75]]).astype(np.float32)
    found = compare(reference, other, np.array([1], np.int32))
    assert found.divergence[0] == pytest.approx(0.5 * math.log(4 / 3), abs=1e-7)
    assert (found.reference_loss[0], found.loss[0]) == pytest.approx((math.log(2), -math.log(0.75)), abs=1e-7)
    assert (found.reference_top[0], found.top[0]) == (0, 1)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4, 9)).astype(np.float32)
    found = compare(logits, logits + np.float32(64), np.zeros(4, np.int32))
    assert found.divergence.max() < 1e-9


def test_blocks_cover_all_positions_within_their_bytes() -> None:
    parts = list(blocks(1000, 248320))
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, 1000)
    assert max(part.stop - part.start for part in parts) * 248320 * 8 <= LOGITS_BYTES
    assert list(blocks(2, 10**9)) == [slice(0, 1), slice(1, 2)]


def test_a_summary_is_what_numpy_says() -> None:
    values = np.random.default_rng(1).gamma(0.5, size=5000)
    found = Summary.of(positions_of(values.tolist()), np.arange(5000) // 50)
    assert found.divergence.mean == pytest.approx(values.mean())
    assert found.divergence.plain == pytest.approx(values.std(ddof=1) / math.sqrt(5000))
    quantiles = (found.median, found.p99, found.p999, found.largest)
    assert quantiles == pytest.approx(np.quantile(values, (0.5, 0.99, 0.999, 1)))


def test_perplexities_and_their_ratio() -> None:
    reference, other = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 4.0])
    tops = np.zeros(3, np.int32)
    found = Summary.of(Positions(np.ones(3), reference, other, tops, np.array([0, 1, 0], np.int32)), np.arange(3))
    assert found.reference_perplexity == pytest.approx(math.exp(2))
    assert found.perplexity == pytest.approx(math.exp(2.5))
    assert found.ratio == pytest.approx(math.exp(0.5))
    assert found.log_ratio.plain == pytest.approx(np.std([0.5, 0, 1], ddof=1) / math.sqrt(3))
    assert found.agreement.mean == pytest.approx(2 / 3)


def test_figures_beyond_a_float_are_infinite_and_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one position there is no error; and exp of 1000 nats is more than a float holds."""
    one = Positions(np.ones(1), np.zeros(1), np.full(1, 1000.0), np.zeros(1, np.int32), np.zeros(1, np.int32))
    found = Summary.of(one, np.zeros(1, int))
    assert (found.perplexity, found.ratio, found.ratio_error, found.divergence.error) == (math.inf,) * 4
    print_json(found.document())
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (shown["perplexity"], shown["perplexity_ratio"], shown["kl"]["standard_error"]) == (None, None, None)
    assert (shown["kl"]["mean"], shown["reference_perplexity"]) == (1, 1)


def test_clustered_errors_are_those_of_cluster_means_when_clusters_are_equal() -> None:
    random = np.random.default_rng(2)
    values = np.repeat(random.normal(size=40), 25) + 0.1 * random.normal(size=1000)
    found = estimate(values, np.repeat(np.arange(40), 25))
    means = values.reshape(40, 25).mean(1)
    assert found.clustered == pytest.approx(means.std(ddof=1) / math.sqrt(40))
    assert found.error == found.clustered > 4 * found.plain
    assert estimate(values, np.zeros(1000, int)).clustered is None
    assert estimate(values, np.zeros(1000, int)).error == found.plain


def test_clustered_errors_agree_with_a_bootstrap_of_unequal_clusters() -> None:
    random = np.random.default_rng(3)
    sizes = random.integers(5, 60, 80)
    clusters = np.repeat(np.arange(80), sizes)
    values = np.repeat(random.normal(size=80), sizes) + random.normal(size=len(clusters))
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    drawn = random.integers(0, 80, (4000, 80))
    spread = (sums[drawn].sum(1) / counts[drawn].sum(1)).std()
    assert estimate(values, clusters).clustered == pytest.approx(spread, rel=0.1)


def test_a_ratio_is_paired() -> None:
    random = np.random.default_rng(4)
    base = random.gamma(1, size=2000)
    values = base * (0.5 + 0.01 * random.normal(size=2000))
    clusters = np.arange(2000)
    found = ratio(values, base, clusters)
    drawn = random.integers(0, 2000, (2000, 2000))
    spread = (values[drawn].mean(1) / base[drawn].mean(1)).std()
    assert found.mean == pytest.approx(0.5, abs=0.01)
    assert found.plain == pytest.approx(spread, rel=0.1)
    assert ratio(base, base, clusters).error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('"', "quote"),
        ('": "', "quote"),
        ('"},', "quote"),
        ("}}", "brace"),
        (" {", "brace"),
        ("[", "bracket"),
        ("],", "bracket"),
        (" : ", "colon"),
        (",\n", "comma"),
        ("\\", "backslash"),
        ("\n", "newline"),
        ("  \n\n", "newline"),
        ("\r\n", "newline"),
        ("7", "digit"),
        (" 42", "digit"),
        ("", None),
        ("  ", None),
        ("\t", None),
        ('"name', None),
        ("'", None),
        ("a1", None),
        ("½", None),
        ("\ufffd", None),
        ("<tool_call>", None),
    ],
)
def test_which_tokens_are_structural(text: str, wanted: str | None) -> None:
    assert class_of(text) == (NONE if wanted is None else NAMES.index(wanted))


def test_flips_are_counted_by_class() -> None:
    """Tokens 0 to 4 are: a quote, a quote with a comma, a digit, another digit, a word."""
    classes = np.array([class_of(text) for text in ('"', '",', "1", "2", "name")], np.int8)
    reference = np.array([0, 0, 0, 0, 2, 2, 2, 4, 4], np.int32)
    other = np.array([0, 1, 4, 2, 2, 3, 0, 0, 4], np.int32)
    values = np.arange(9, dtype=float)
    found = structure(Positions(values, values, values, reference, other), np.arange(9), classes)
    assert found.summary is not None
    assert (found.summary.positions, found.summary.divergence.mean) == (7, 3.0)
    quotes, digits = found.classes["quote"], found.classes["digit"]
    assert (quotes.positions, quotes.other_token, quotes.flips) == (4, 3, 2)
    assert (digits.positions, digits.other_token, digits.flips) == (3, 2, 1)
    assert found.quote_flips == 2
    assert found.document()["classes"]["brace"] == {"positions": 0, "other_token": 0, "flips": 0}


def test_a_text_without_structure_has_no_summary() -> None:
    found = structure(positions_of([1.0]), np.zeros(1, int), np.array([NONE], np.int8))
    assert found.summary is None
    assert found.document()["positions"] == 0
