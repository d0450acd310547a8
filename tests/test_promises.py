"""Promises hold in simulations whose truth is known, agree with scipy and with counting by hand, and are refused where
there are too few images."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pickglass.calibration import Calibration, Evidence, Wish, flagged_curve, promised, usual_threshold
from pickglass.calibration.promises import (
    SHARES,
    area_threshold,
    average_needs,
    average_rank,
    best_f1,
    fixed_value,
    group_maxima,
    set_by_hand,
    shift_bound,
    tolerance_bound,
    tolerance_needs,
    tolerance_rank,
)
from pickglass.errors import InputError, PromiseUnreachable


def evidence(scores: np.ndarray, **more: object) -> Evidence:
    return Evidence(scores.tolist(), scores.tolist(), **more)  # type: ignore[arg-type]


# -- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("rate", [0.003, 0.01, 0.05, 0.3])
def test_the_rank_is_the_largest_admissible_one(rate: float, confidence: float) -> None:
    for n in (1, 12, 298, 299, 300, 2000):
        admissible = [r for r in range(n) if stats.beta.sf(rate, r + 1, n - r) <= 1 - confidence]
        assert tolerance_rank(n, rate, confidence) == (max(admissible) if admissible else None)
        for r in admissible[-1:]:
            achieved = tolerance_bound(n, r, confidence)
            assert achieved == pytest.approx(stats.beta.ppf(confidence, r + 1, n - r), rel=1e-9)
            assert achieved <= rate * (1 + 1e-9)
    needed = tolerance_needs(rate, confidence)
    assert tolerance_rank(needed, rate, confidence) == 0
    assert tolerance_rank(needed - 1, rate, confidence) is None


def test_one_per_cent_at_95_takes_299_images() -> None:
    assert tolerance_needs(0.01, 0.95) == 299
    assert 100 * tolerance_bound(212, 0, 0.95) == pytest.approx(1.4, abs=0.01)


def test_the_average_rank_by_hand() -> None:
    # 7 % of 100 is a little more than 7 in binary, 29 % a little less
    assert [average_rank(99, a) for a in (0.01, 0.07, 0.29, 0.009)] == [0, 6, 28, None]
    assert [average_needs(a) for a in (0.01, 0.3, 0.5, 0.9)] == [99, 3, 1, 1]
    for rate in (0.01, 0.3, 0.5):
        assert average_rank(average_needs(rate), rate) == 0
        assert average_rank(average_needs(rate) - 1, rate) is None


def test_the_count_of_a_shift_is_beta_binomial() -> None:
    for n, r, shift, level in ((212, 0, 2000, 0.95), (30, 2, 500, 0.9), (5, 4, 10, 0.99), (2, 0, 1, 0.5)):
        assert shift_bound(n, r, shift, level) == stats.betabinom(shift, r + 1, n - r).ppf(level)
    assert shift_bound(3, 3, 50, 0.9) == 50


# -- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 50])  # continuous scores, and scores with many ties
def test_promises_are_broken_as_rarely_as_stated(steps: int | None) -> None:
    rng, repeats = np.random.default_rng(0), 1000
    wish, average = Wish("tolerance", 0.05, 0.9), Wish("marginal", 0.05)
    broken, mean, over, counts = 0, 0.0, 0, stats.binom
    for _ in range(repeats):
        draws = rng.random(120)
        scores = draws if steps is None else np.floor(draws * steps)

        def rate(limit: float | None) -> float:  # the truth: P(score > limit)
            assert limit is not None
            return 1 - limit if steps is None else max(0.0, 1 - (math.floor(limit) + 1) / steps)

        tolerant = promised(evidence(scores), wish)
        true = rate(tolerant.image_threshold)
        broken += true > wish.false_alarm
        mean += rate(promised(evidence(scores), average).image_threshold) / repeats
        over += counts.rvs(500, true, random_state=rng) > shift_bound(120, tolerant.r or 0, 500, 0.9)
    margin = 3 * math.sqrt(0.1 * 0.9 / repeats)
    assert broken / repeats <= 0.1 + margin
    assert over / repeats <= 0.1 + margin
    assert mean <= 0.05 + 3 * 0.02 / math.sqrt(repeats)
    if steps is None:  # and not more cautious than the ranks force it to be
        exact = stats.beta.sf(0.05, (tolerant.r or 0) + 1, 120 - (tolerant.r or 0))
        assert broken / repeats == pytest.approx(exact, abs=margin)
        assert mean == pytest.approx(6 / 121, abs=0.002)


def test_groups_count_once_and_keep_the_promise() -> None:
    """Images of a part are nearly equal: counted one by one, the promise would be broken far too often."""
    rng, repeats, wish = np.random.default_rng(1), 400, Wish("tolerance", 0.1, 0.9)
    names = [f"part{i // 6}" for i in range(240)]
    broken = {True: 0, False: 0}
    for _ in range(repeats):
        scores = np.repeat(rng.random(40), 6) + 1e-6 * rng.random(240)
        for grouped in broken:
            limit = promised(evidence(scores, groups=names if grouped else ()), wish).image_threshold or 0.0
            broken[grouped] += 1 - limit > wish.false_alarm
    assert broken[True] / repeats <= 0.1 + 3 * math.sqrt(0.09 / repeats)
    assert broken[False] / repeats > 0.2


@pytest.mark.slow
def test_any_and_area_keep_their_promise_about_images() -> None:
    rng, repeats = np.random.default_rng(2), 200
    broken, area, alone = 0, [], []
    for _ in range(repeats):
        level = rng.random((61, 1, 1))
        maps = level + rng.random((61, 6, 6))  # images differ, and so do pixels
        curves = np.array([flagged_curve(m) for m in maps[:60]])
        peaks = maps.max(axis=(1, 2))
        given = Evidence(peaks[:60].tolist(), peaks[:60].tolist(), curves=curves)
        limit = promised(given, Wish("marginal", 0.1, pixel="any")).pixel_threshold
        broken += peaks[60] > limit
        limit = promised(given, Wish("marginal", 0.1, pixel="area")).pixel_threshold
        area.append((maps[60] > limit).mean())
        limit = area_threshold(curves, 0.05)
        alone.append((maps[60] > limit).mean())
    assert broken / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert np.mean(area) <= 0.05 + 3 * np.std(area) / math.sqrt(repeats)
    assert np.mean(area) > 0.02  # not by flagging nothing
    assert area == alone


def test_what_is_said_of_unsure_holds_as_what_is_said_of_flagged() -> None:
    """Two thresholds on the same scores: each breaks its own statement as rarely as stated, and neither moves."""
    rng, repeats = np.random.default_rng(11), 500
    wish, average = Wish("tolerance", 0.05, 0.9, unsure=0.1), Wish("marginal", 0.05, unsure=0.1)
    broken, mean, between = 0, 0.0, 0.0
    for _ in range(repeats):
        given = evidence(rng.random(120))
        found = promised(given, wish)
        assert found.image_threshold == promised(given, replace(wish, unsure=None)).image_threshold
        assert found.unsure_threshold is not None
        broken += 1 - found.unsure_threshold > 0.15
        low, high = (getattr(promised(given, average), f"{name}_threshold") for name in ("unsure", "image"))
        mean += (1 - low) / repeats
        between += (high - low) / repeats
    assert broken / repeats <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / repeats)
    assert mean == pytest.approx(18 / 121, abs=0.006)  # floor(0.15 x 121) = 18
    assert between == pytest.approx(12 / 121, abs=0.006)


def test_the_number_of_images_that_a_band_takes() -> None:
    for wish, have in (
        (Wish("estimate", 0.01, unsure=0.001), 120),
        (Wish("estimate", 0.01, unsure=0.001), 0),
        (Wish("marginal", 0.3, unsure=0.01), 4),
        (Wish("tolerance", 0.02, 0.95, unsure=0.002), 150),
    ):
        needed = wish.needs(have)
        assert needed > have
        assert wish.fills(needed)
        assert not wish.fills(needed - 1) or needed - 1 < replace(wish, unsure=None).needs()
        scores = np.random.default_rng(12).random(needed)
        assert promised(evidence(scores), wish).unsure_threshold is not None
        with pytest.raises(PromiseUnreachable, match="more for unsure, takes"):
            promised(evidence(scores[: needed - 1]), wish)
    assert Wish("tolerance", 0.01, 0.95, unsure=0.05).needs() == 299  # 6 % takes fewer than 1 % does
    assert 9e5 < Wish("estimate", 0.01, unsure=1e-6).needs(500) <= 1e6  # found at once, and without millions of numbers


def test_equal_scores_leave_no_band() -> None:
    with pytest.raises(InputError, match=r"unsure=0\.05.*the score 7 many times"):
        promised(evidence(np.append(np.arange(100.0) / 100, np.full(50, 7.0))), Wish("estimate", 0.1, unsure=0.05))


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_a_curve_bounds_the_flagged_share() -> None:
    rng = np.random.default_rng(3)
    for shape in ((1, 1), (5, 7), (90, 130)):
        map_ = rng.integers(0, 40, shape).astype(np.float32)
        curve = flagged_curve(map_)
        above = np.array([(map_ > value).mean() for value in curve])
        assert (above <= SHARES + 1e-12).all()
        assert curve[0] == map_.max()
        lower = np.array([(map_ > np.nextafter(np.float32(v), np.float32(-np.inf))).mean() for v in curve[:-1]])
        assert (lower > SHARES[:-1] - 1e-12).all()  # no lower threshold would do


def test_the_area_threshold_equals_a_plain_search() -> None:
    rng = np.random.default_rng(4)
    tied = [np.array([flagged_curve(rng.integers(0, 30, (9, 9))) for _ in range(25)]) for _ in range(3)]
    continuous = [np.array([flagged_curve(rng.random((20, 20))) for _ in range(6)]) for _ in range(3)]
    for curves, rate in [*zip(tied, (0.05, 0.2, 0.6), strict=True), *zip(continuous, (0.2, 0.3, 0.7), strict=True)]:

        def risk(limit: float, curves: np.ndarray = curves) -> float:
            shares = [SHARES[np.flatnonzero(curve <= limit)[0]] for curve in curves]
            return (sum(shares) + 1) / (len(curves) + 1)

        candidates = [v for v in np.unique(curves) if np.isfinite(v) and risk(v) <= rate]
        assert area_threshold(curves, rate) == min(candidates)
    assert area_threshold(curves, 1 / 8) is None
    assert area_threshold(curves, 1 / 7) == curves.max()
    assert area_threshold(curves[:0], 0.5) is None


# -- records and words ------------------------------------------------------------------------------------------------


def test_the_sentence_states_what_was_achieved() -> None:
    rng = np.random.default_rng(5)
    found = promised(evidence(rng.random(212)), Wish("tolerance", 0.02, 0.95, shift=2000))
    assert found.sentence == (
        "at most 1.41 % of good parts will be flagged, with 95 % confidence, from 212 calibration images, "
        "if coming parts are like these; in a shift of 2,000 at most 29"
    )
    assert (found.n, found.r, found.confidence) == (212, 0, 0.95)
    assert found.false_alarm_bound == pytest.approx(0.014031, abs=1e-6)
    assert found.image_threshold == max(found.scores)
    found = promised(evidence(rng.random(212)), Wish("marginal", 0.02))
    assert "on average over calibration sets at most 1.88 %" in found.sentence
    assert "without a confidence" in found.sentence
    assert (found.confidence, found.r) == (None, 3)
    assert found.image_threshold == sorted(found.scores)[-4]
    found = promised(evidence(rng.random(212), source="folds"), Wish("estimate", 0.02))
    assert "no promise" in found.sentence
    assert "3.76 %" in found.sentence
    assert found.false_alarm_bound is None


def test_the_sentence_states_what_is_said_of_unsure() -> None:
    given = evidence(np.random.default_rng(5).random(500))
    for wish, said in (
        (Wish("tolerance", 0.01, unsure=0.05), "at most 6 %, with 95 % confidence of its own"),
        (
            Wish("tolerance", 0.01, unsure=0.05, shift=2000),
            "with 95 % confidence of its own, in such a shift at most 124",
        ),
        (Wish("marginal", 0.01, unsure=0.05), "on average at most 5.99 %"),
        (Wish("estimate", 0.01, unsure=0.05), "about 5.99 %"),
    ):
        found = promised(given, wish)
        assert found.sentence.startswith(promised(given, replace(wish, unsure=None)).sentence + "; flagged or unsure: ")
        assert found.sentence.endswith(said)
        assert (found.unsure_bound is None) == (wish.promise == "estimate")


def test_a_number_by_hand_changes_its_own_part_of_the_sentence() -> None:
    given = evidence(np.arange(1.0, 101.0))
    promise = promised(given, Wish("estimate", 0.02, unsure=0.05))
    said = promise.sentence.split("; flagged or unsure")[0]
    fixed = set_by_hand(promise, unsure=90.0)
    by_value = "; flagged or unsure: 10 of 100 good images, by a fixed value that promises nothing"
    assert fixed.sentence == said + by_value
    assert (fixed.unsure_bound, fixed.image_threshold) == (None, promise.image_threshold)
    pixels = set_by_hand(promise, pixel=50.0)
    assert pixels.sentence.startswith(f"{promise.sentence}; the pixel threshold")
    both = set_by_hand(set_by_hand(pixels, unsure=90.0), image=95.0)
    assert both.sentence == (
        f"a fixed value; 5 of 100 good images exceed it, and no false-alarm rate is promised{by_value}"
        + pixels.sentence.removeprefix(promise.sentence)
    )
    old = Calibration("highest", 3.0, 3.0, (1.0, 3.0), (1.0, 3.0))  # older models have no sentence
    twice = set_by_hand(set_by_hand(old, unsure=2.0), unsure=1.0)
    assert twice.sentence.startswith("the highest score of good images")
    assert twice.sentence.count("flagged or unsure") == 1


def test_scores_on_a_threshold_do_not_exceed_it() -> None:
    both = Calibration("fixed", 2.0, None, unsure_threshold=1.0)
    up, down = (lambda x: float(np.nextafter(x, np.inf))), (lambda x: float(np.nextafter(x, -np.inf)))
    at = {down(1.0): "good", 1.0: "good", up(1.0): "unsure", 2.0: "unsure", up(2.0): "bad"}
    assert {score: both.verdict(score) for score in at} == at
    assert [both.verdict(score) for score in (math.nan, math.inf, -math.inf)] == ["bad"] * 3
    assert replace(both, unsure_threshold=None).verdict(1.5) == "good"
    assert replace(both, image_threshold=None).verdict(1.5) is None


def test_both_promises_split_the_error_and_say_so() -> None:
    scores = np.random.default_rng(6).random(400)
    with pytest.raises(PromiseUnreachable, match="takes 368 calibration images, there are 367: 1 are missing"):
        promised(evidence(scores[:367]), Wish("tolerance", 0.01, 0.95, "any"))
    found = promised(evidence(scores), Wish("tolerance", 0.01, 0.95, "any"))
    assert found.false_alarm_bound == pytest.approx(stats.beta.ppf(0.975, 1, 400))
    assert "with 95 % confidence in both together, each made at half the error" in found.sentence
    with pytest.raises(PromiseUnreachable, match="takes 199 "):
        promised(evidence(scores[:198]), Wish("marginal", 0.01, pixel="any"))
    with pytest.raises(InputError, match="needs the maps"):
        promised(evidence(scores), Wish("tolerance", 0.02, 0.95, "area"))


def test_a_refusal_says_what_is_missing_and_what_can_be_had() -> None:
    scores = np.arange(15.0)
    with pytest.raises(PromiseUnreachable, match=r"299 calibration images, there are 15: 284 are missing") as error:
        promised(evidence(scores), Wish())
    assert (error.value.needed, error.value.missing) == (299, 284)
    assert "--false-alarm 0.182" in str(error.value)
    assert promised(evidence(scores), Wish("tolerance", 0.182)).r == 0
    with pytest.raises(PromiseUnreachable, match="there are 0: 299 are missing"):
        promised(evidence(scores[:0]), Wish())
    with pytest.raises(PromiseUnreachable, match="takes 299 groups of calibration images, there are 5"):
        promised(evidence(scores, groups=[str(i // 3) for i in range(15)]), Wish())


def test_groups_are_counted_and_told() -> None:
    assert group_maxima([1, 5, 2, 3, 4], ["a", None, "a", "b", None]).tolist() == [2, 3, 4, 5]
    found = promised(evidence(np.arange(90.0), groups=[str(i // 3) for i in range(90)]), Wish("tolerance", 0.1))
    assert (found.n, found.r) == (30, 0)
    assert "from 30 groups of 90 calibration images (a group counts once, with its highest score)" in found.sentence
    with pytest.raises(InputError, match="2 groups for 3 values"):
        group_maxima([1, 2, 3], ["a", "b"])


def test_a_best_f1_and_a_fixed_value_promise_nothing() -> None:
    good = evidence(np.array([1.0, 2.0, 3.0]))
    found = best_f1(good, [0, 0, 0, 1, 1], [1.0, 2.0, 3.0, 2.5, 4.0])
    assert found.image_threshold == 2.25  # between the best cut, 2.5, and the next lower score
    assert [found.verdict(s) for s in (2.0, 2.5)] == ["good", "bad"]
    assert best_f1(good, [1, 1, 0], [1.0, 2.0, 1.0]).verdict(1.0) == "bad"
    fixed = fixed_value(good, 2.0)
    assert (fixed.image_threshold, fixed.r, fixed.false_alarm_bound) == (2.0, 1, None)
    assert [fixed.verdict(s) for s in (2.0, np.nextafter(2.0, 3.0))] == ["good", "bad"]  # a tie is good
    for record in (found, fixed):
        assert "no false-alarm rate is promised" in record.sentence


def test_records_come_back_from_json() -> None:
    full = promised(evidence(np.arange(40.0), groups=["a", *[None] * 39], settings="s"), Wish("tolerance", 0.2))
    band = promised(evidence(np.arange(40.0)), Wish("estimate", 0.2, unsure=0.2))
    for record in (full, band, usual_threshold([3.0, 1.0], [2.0, 1.0]), usual_threshold([], [])):
        assert Calibration.from_json(json.loads(json.dumps(record.to_json()))) == record
        assert Calibration.from_json(record.to_json()) == record
    old = {"promise": "highest", "image_threshold": 1.0, "pixel_threshold": 1.0, "scores": [1.0], "peaks": [1.0]}
    assert Calibration.from_json({**old, "stale": False}).p_value(2.0) is not None


def test_changed_settings_make_it_stale() -> None:
    from pickglass.detectors.settings import settings_digest

    made = usual_threshold([1.0], [1.0], settings=settings_digest({"size": (64, 64), "top_k": 3}))
    assert not made.against(settings_digest({"top_k": 3, "size": [64, 64]})).stale
    assert made.against(settings_digest({"size": [64, 64], "top_k": 4})).stale
    assert not usual_threshold([1.0], [1.0]).against("4").stale  # of older models nothing is known


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"false_alarm": 0.0}, "false_alarm=0.0"),
        ({"false_alarm": 1.0}, "false_alarm=1.0"),
        ({"false_alarm": 5e-324}, "false_alarm=5e-324"),  # which takes more images than a float counts
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"confidence": 5e-324}, "confidence=5e-324"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"promise": "sure"}, "promise='sure'"),
        ({"pixel": "all"}, "pixel='all'"),
        ({"shift": 0}, "shift=0"),
        ({"promise": "estimate", "shift": 5}, "shift=5 with promise='estimate'"),
        ({"unsure": 0.0}, "unsure=0.0"),
        ({"unsure": 1e-9}, "unsure=1e-09"),
        ({"unsure": float("nan")}, "unsure=nan"),
        ({"false_alarm": 0.6, "unsure": 0.4}, "unsure=0.4 with false_alarm=0.6"),
    ],
)
def test_wishes_that_make_no_sense(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Wish(**wrong)  # type: ignore[arg-type]


# -- the p-value ------------------------------------------------------------------------------------------------------


def test_p_values_by_hand() -> None:
    found = usual_threshold([4.0, 1.0, 3.0, 3.0], [0.0] * 4)
    values = {s: found.p_value(s) for s in (1.0, 2.0, 3.0, 3.5, 4.0)}
    assert [v.p for v in values.values() if v] == pytest.approx([4 / 5, 3.5 / 5, 3 / 5, 2 / 5, 1 / 5])
    assert not any(v.extrapolated for v in values.values() if v)
    assert usual_threshold([], []).p_value(1.0) is None


@pytest.mark.parametrize("n", [1, 2, 3, 12, 250])
def test_p_values_fall_without_end(n: int) -> None:
    found = usual_threshold(np.random.default_rng(n).gamma(2.0, size=n).tolist(), [0.0] * n)
    top = max(found.scores)
    scale = np.concatenate([np.linspace(-5, 2 * top, 400), top * np.geomspace(2.1, 1e6, 60)])
    values = [found.p_value(s) for s in scale]
    logs = np.array([v.log10 for v in values if v])
    assert (np.diff(logs) >= -1e-12).all()
    assert np.isfinite(logs).all()
    assert [v.extrapolated for v in values if v] == [s > top or s < min(found.scores) for s in scale.tolist()]
    at_top, above = found.p_value(top), found.p_value(np.nextafter(top, np.inf))
    assert at_top and above  # noqa: PT018
    assert at_top.p == pytest.approx(1 / (n + 1))
    assert above.p == pytest.approx(at_top.p)
    if found.tail is not None:
        assert (np.diff(logs[scale > top]) > 0).all()
        assert logs[-1] > 4


def test_ties_take_the_larger_p_value() -> None:
    found = usual_threshold([1.0, 2.0, 2.0, 2.0], [0.0] * 4)
    value = found.p_value(2.0)
    assert value is not None
    assert value.p == pytest.approx(3 / 5)
    constant = usual_threshold([2.0] * 30, [0.0] * 30)
    assert constant.tail is None
    assert [v.p for v in map(constant.p_value, (1.0, 2.0, 3.0)) if v] == pytest.approx([30 / 31] * 3)


def test_within_the_scores_p_values_are_calibrated() -> None:
    rng, n, repeats = np.random.default_rng(7), 40, 1500
    below = np.zeros(4)
    levels = np.array([1, 2, 8, 20]) / (n + 1)
    for _ in range(repeats):
        value = usual_threshold(rng.normal(size=n).tolist(), [0.0] * n).p_value(rng.normal())
        assert value is not None
        below += value.p <= levels + 1e-12
    assert (np.abs(below / repeats - levels) <= 3.5 * np.sqrt(levels / repeats)).all()


@pytest.mark.parametrize("draw", [stats.expon(), stats.norm(), stats.gamma(3), stats.genpareto(0.3)])
def test_the_tail_has_the_right_order_of_magnitude(draw: stats.rv_continuous) -> None:
    rng, logs = np.random.default_rng(8), []
    score = float(draw.isf(1e-4))
    for _ in range(200):
        value = usual_threshold(draw.rvs(400, random_state=rng).tolist(), [0.0] * 400).p_value(score)
        assert value is not None
        logs.append(value.log10)
    assert 3.0 < float(np.median(logs)) < 4.5  # true: 4
    assert float(np.quantile(logs, 0.9)) < 7  # seldom far too bold
