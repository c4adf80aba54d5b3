"""From judgements to preference pairs: ratings, length control, then best and worst of K.

The paper's "building preference pairs": the response with the highest length-controlled score is chosen and the one
with the lowest is rejected, each together with its thought. Malformed outputs are never rated, but they may be
rejected in a small share of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpo_lite.preferences.length_control import auto_rho, length_controlled
from tpo_lite.preferences.ratings import bradley_terry, elo, win_matrix
from tpo_lite.records import (
    DROP_REASONS,
    DropReason,
    Pair,
    PairCount,
    PairKind,
    PromptJudgements,
    PromptSamples,
    PromptScores,
    ResponseScore,
    Sample,
)
from tpo_lite.seeds import keyed_hash


@dataclass(frozen=True)
class Scored:
    """The scores of an iteration's prompts and the rho behind them."""

    scores: dict[str, PromptScores]
    """By instruction id."""
    rho: float
    """The rho in all `controlled` scores."""
    reached: bool | None
    """Whether an automatic rho kept chosen responses from being longer; None where rho was given."""


@dataclass(frozen=True)
class Pairs:
    """An iteration's pairs, and what became of every prompt."""

    pairs: list[Pair]
    """In the prompts' order."""
    counts: dict[PairCount, int]
    """Prompts, pairs by kind, and prompts without a pair by the reason; prompts = pairs + dropped."""


def score_prompt(
    samples: PromptSamples, judgements: PromptJudgements, *, soft: bool, prior: float, rho: float
) -> PromptScores:
    """Rate one prompt's well-formed samples, and control the ratings for length.

    Comparisons give Bradley-Terry ratings. The scores of a pointwise judge are ratings as they are, as in the paper. A
    response of which the judge could say nothing within its context has no rating, so it is neither best nor worst.
    `soft` and `prior` as in `tpo_lite.preferences.ratings`, `rho` as in `tpo_lite.preferences.length_control`.
    """
    if judgements.scores is None:
        ks, ratings = _bradley_terry_ratings(samples, judgements, soft, prior)
    else:
        ks, ratings = _raw_scores(samples, judgements.scores)
    response_tokens = {sample.k: sample.response_tokens for sample in samples.samples}
    lengths = [response_tokens[k] for k in ks]
    return PromptScores(
        id=samples.instruction.id,
        ks=ks,
        ratings=ratings.tolist(),
        elo=elo(ratings).tolist() if judgements.scores is None else None,
        lengths=lengths,
        controlled=length_controlled(ratings, lengths, rho).tolist(),
    )


def _bradley_terry_ratings(
    samples: PromptSamples, judgements: PromptJudgements, soft: bool, prior: float
) -> tuple[list[int], np.ndarray]:
    """Return the ks of the samples that were compared, and their ratings."""
    ks, wins = win_matrix(judgements, samples, soft)
    responses = {sample.k: sample.response for sample in samples.samples}
    if len({responses[k] for k in ks}) > 1:
        made = (comparison for comparison in judgements.comparisons if comparison.verdict != "overlong")
        compared = {responses[k] for comparison in made for k in (comparison.first, comparison.second)}
        rows = [row for row, k in enumerate(ks) if responses[k] in compared]
        ks, wins = [ks[row] for row in rows], wins[np.ix_(rows, rows)]
    # Newton's method leaves noise of about 1e-12. Without it equal ratings are equal, and a tie shows.
    return ks, bradley_terry(wins, prior).round(9) + 0.0


def _raw_scores(samples: PromptSamples, scores: Sequence[ResponseScore]) -> tuple[list[int], np.ndarray]:
    """Return the ks of the samples whose response has a score, and these scores."""
    by_text = {samples.sample(each.k).response: each.score for each in scores if each.score is not None}
    rated = {
        sample.k: by_text[sample.response]
        for sample in samples.samples
        if sample.well_formed and sample.response in by_text
    }
    return list(rated), np.array(list(rated.values()), dtype=np.float64)


def trained_on(samples: Iterable[PromptSamples], budget_forced: bool) -> list[PromptSamples]:
    """Return the prompts with the samples that are judged, rated and paired (`pairs.budget_forced`).

    A response after a thought that its budget has ended says little about thinking. So by default such a sample is
    neither chosen nor rejected, and it is not malformed either.
    """
    if budget_forced:
        return list(samples)
    return [
        replace(prompt, samples=[sample for sample in prompt.samples if sample.outcome != "budget_forced"])
        for prompt in samples
    ]


def score_prompts(
    samples: list[PromptSamples],
    judgements: dict[str, PromptJudgements],
    *,
    soft: bool,
    prior: float,
    rho: float | None,
    max_tokens: int,
) -> Scored:
    """Score all prompts. A rho of None is found by `auto_rho` over the prompts whose pair `make_pairs` can keep."""
    scores = [
        score_prompt(prompt, judgements[prompt.instruction.id], soft=soft, prior=prior, rho=rho or 0.0)
        for prompt in samples
    ]
    reached = None
    if rho is None:
        automatic = auto_rho(
            ((score.ratings, score.lengths) for score in scores),
            (
                [_fits(prompt, prompt.sample(k), max_tokens) for k in score.ks]
                for prompt, score in zip(samples, scores, strict=True)
            ),
        )
        rho, reached = automatic.rho, automatic.reached
        scores = [
            replace(score, controlled=length_controlled(score.ratings, score.lengths, rho).tolist()) for score in scores
        ]
    return Scored({score.id: score for score in scores}, rho, reached)


@dataclass(frozen=True)
class _Candidates:
    """The pairs that one prompt can give."""

    best_worst: Pair | None
    malformed: Pair | None
    reason: DropReason | None
    """Why there is no best-worst pair."""


def make_pairs(
    samples: list[PromptSamples],
    scores: dict[str, PromptScores],
    *,
    malformed_share: float,
    max_tokens: int,
    seed: int,
) -> Pairs:
    """Make one pair per prompt: best against worst or, in at most `malformed_share` of all pairs, against malformed.

    Prompts with both well-formed and malformed outputs can give the second kind. Those without a pair of the first kind
    come first, since they would be lost otherwise, then the others, each in the order of a hash of (seed, id). The
    malformed output is drawn by a hash of (seed, id, k). If scores are equal, the lowest k is used. A prompt
    whose ratings are all equal shows no preference: it has no pair of the first kind, and in one of the second kind the
    lowest k is chosen, whatever the lengths. (Samples are drawn alike, so the lowest k is any of them. Length control
    would choose the shortest.)

    A pair of which one side has more than `max_tokens` tokens, prompt and output together, is dropped, never cut. Every
    prompt with a well-formed sample must have its scores; one whose scores are empty gives no pair.
    """
    candidates = {prompt.instruction.id: _candidates(prompt, scores, max_tokens, seed) for prompt in samples}
    pairs = _with_malformed(
        {id: each.best_worst for id, each in candidates.items() if each.best_worst is not None},
        {id: each.malformed for id, each in candidates.items() if each.malformed is not None},
        malformed_share,
        seed,
    )
    ordered = [pairs[id] for id in candidates if id in pairs]
    dropped = [each.reason for id, each in candidates.items() if id not in pairs]
    malformed = sum(pair.kind == "malformed" for pair in ordered)
    counts: dict[PairCount, int] = {
        "prompts": len(samples),
        "best-worst": len(ordered) - malformed,
        "malformed": malformed,
    }
    return Pairs(ordered, counts | {reason: dropped.count(reason) for reason in DROP_REASONS})


def _candidates(prompt: PromptSamples, scores: dict[str, PromptScores], max_tokens: int, seed: int) -> _Candidates:
    well_formed = {sample.k: sample for sample in prompt.samples if sample.well_formed}
    if not well_formed:
        return _Candidates(None, None, "no_well_formed")
    score = scores[prompt.instruction.id]
    if not score.ks:
        return _Candidates(None, None, "not_judged")
    tied = min(score.ratings) == max(score.ratings)
    best = well_formed[score.ks[0 if tied else int(np.argmax(score.controlled))]]
    worst = well_formed[score.ks[int(np.argmin(score.controlled))]]
    reason: DropReason | None = None
    if len({sample.response for sample in well_formed.values()}) == 1:
        reason = "one_response"
    elif tied or best.response == worst.response:
        reason = "tied"
    elif not _fits(prompt, best, max_tokens) or not _fits(prompt, worst, max_tokens):
        reason = "too_long"
    return _Candidates(
        best_worst=None if reason else _pair("best-worst", prompt, best, worst),
        malformed=_malformed_pair(prompt, best, max_tokens, seed),
        reason=reason,
    )


def _malformed_pair(prompt: PromptSamples, best: Sample, max_tokens: int, seed: int) -> Pair | None:
    unparsed = [sample for sample in prompt.samples if not sample.well_formed and _fits(prompt, sample, max_tokens)]
    if not unparsed or not _fits(prompt, best, max_tokens):
        return None
    drawn = min(unparsed, key=lambda sample: keyed_hash(seed, f"{prompt.instruction.id}/{sample.k}"))
    return _pair("malformed", prompt, best, drawn)


def _with_malformed(
    best_worst: dict[str, Pair], malformed: dict[str, Pair], malformed_share: float, seed: int
) -> dict[str, Pair]:
    """Return the pairs by instruction id, with as many malformed ones as their share allows."""
    pairs = dict(best_worst)
    order = sorted(malformed, key=lambda id: (id in best_worst, keyed_hash(seed, id)))
    for number, id in enumerate(order, 1):
        total = len(pairs) + (id not in pairs)
        # The tolerance lets a share of 0.29 have 29 of 100 pairs, although 0.29 * 100 < 29 in floats.
        if number > malformed_share * total + 1e-9:
            break
        pairs[id] = malformed[id]
    return pairs


def _fits(prompt: PromptSamples, sample: Sample, max_tokens: int) -> bool:
    return len(prompt.prompt_ids) + len(sample.token_ids) <= max_tokens


def _pair(kind: PairKind, prompt: PromptSamples, chosen: Sample, rejected: Sample) -> Pair:
    return Pair(
        id=prompt.instruction.id,
        kind=kind,
        prompt_ids=prompt.prompt_ids,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        chosen_k=chosen.k,
        rejected_k=rejected.k,
        chosen_response_tokens=chosen.response_tokens,
        rejected_response_tokens=rejected.response_tokens,
    )
