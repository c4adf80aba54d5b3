"""From judgements to preference pairs: ratings, length control, then best and worst of K.

The paper's "building preference pairs": the response with the highest length-controlled score is chosen,
the one with the lowest is rejected, thought and response together. Malformed outputs are never rated;
they may be rejected in a small share of the pairs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from tpo_lite.preferences.length_control import auto_rho, length_controlled
from tpo_lite.preferences.ratings import bradley_terry, elo, win_matrix
from tpo_lite.records import Pair, PromptJudgements, PromptSamples, PromptScores, Sample
from tpo_lite.seeds import keyed_hash

DROP_REASONS = ("no_well_formed", "one_response", "not_judged", "tied", "too_long")


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
    counts: dict[str, int]
    """"prompts", "best-worst" and "malformed" (pairs by kind), and prompts without a pair by
    `DROP_REASONS`; prompts = pairs + dropped."""


def score_prompt(
    samples: PromptSamples, judgements: PromptJudgements, *, soft: bool, prior: float, rho: float
) -> PromptScores:
    """Bradley-Terry ratings of one prompt's well-formed samples, and their length-controlled scores.

    A response of which no comparison fitted the judge has no rating, and so is neither best nor worst.
    `soft` and `prior` as in `tpo_lite.preferences.ratings`, `rho` as in `tpo_lite.preferences.length_control`.
    """
    ks, wins = win_matrix(judgements, samples, soft)
    responses = {sample.k: sample.response for sample in samples.samples}
    if len({responses[k] for k in ks}) > 1:
        made = (comparison for comparison in judgements.comparisons if comparison.verdict != "overlong")
        compared = {responses[k] for comparison in made for k in (comparison.first, comparison.second)}
        rows = [row for row, k in enumerate(ks) if responses[k] in compared]
        ks, wins = [ks[row] for row in rows], wins[np.ix_(rows, rows)]
    # Newton leaves some 1e-12 of noise; without it, equal ratings are equal and a tie can be seen.
    ratings = bradley_terry(wins, prior).round(9) + 0.0
    response_tokens = {sample.k: sample.response_tokens for sample in samples.samples}
    lengths = [response_tokens[k] for k in ks]
    return PromptScores(
        id=samples.instruction.id,
        ks=ks,
        ratings=ratings.tolist(),
        elo=elo(ratings).tolist(),
        lengths=lengths,
        controlled=length_controlled(ratings, lengths, rho).tolist(),
    )


def score_prompts(
    samples: list[PromptSamples],
    judgements: dict[str, PromptJudgements],
    *,
    soft: bool,
    prior: float,
    rho: float | None,
    max_tokens: int,
) -> Scored:
    """The scores of all prompts; a rho of None is found by `auto_rho` over those whose pair `make_pairs` can keep."""
    scores = [
        score_prompt(prompt, judgements[prompt.instruction.id], soft=soft, prior=prior, rho=rho or 0.0)
        for prompt in samples
    ]
    reached = None
    if rho is None:
        automatic = auto_rho(
            ((score.ratings, score.lengths) for score in scores),
            (
                [_fits(prompt, prompt.samples[k], max_tokens) for k in score.ks]
                for prompt, score in zip(samples, scores, strict=True)
            ),
        )
        rho, reached = automatic.rho, automatic.reached
        scores = [
            dataclasses.replace(score, controlled=length_controlled(score.ratings, score.lengths, rho).tolist())
            for score in scores
        ]
    return Scored({score.id: score for score in scores}, rho, reached)


def make_pairs(
    samples: list[PromptSamples],
    scores: dict[str, PromptScores],
    *,
    malformed_share: float,
    max_tokens: int,
    seed: int,
) -> Pairs:
    """One pair a prompt: best against worst, or, for at most `malformed_share` of all pairs, best against
    a malformed output.

    Prompts with both well-formed and malformed outputs can give the second kind. Those without a pair of
    the first kind come first (they would be lost otherwise), then the others, each in the order of a hash
    of (seed, id); the malformed output is drawn by a hash of (seed, id, k). Equal scores go to the
    lowest k. A prompt whose ratings are all equal shows no preference.

    A pair of which one side has more than `max_tokens` tokens, prompt and output together, is dropped,
    never cut. Every prompt with a well-formed sample must have its scores; one whose scores are empty gives no pair.
    """
    best_worst: dict[str, Pair] = {}
    malformed: dict[str, Pair] = {}
    reasons: dict[str, str] = {}
    for prompt in samples:
        id = prompt.instruction.id
        well_formed = {sample.k: sample for sample in prompt.samples if sample.outcome == "ok"}
        if not well_formed:
            reasons[id] = "no_well_formed"
            continue
        score = scores[id]
        if not score.ks:
            reasons[id] = "not_judged"
            continue
        best = well_formed[score.ks[int(np.argmax(score.controlled))]]
        worst = well_formed[score.ks[int(np.argmin(score.controlled))]]
        if len({sample.response for sample in well_formed.values()}) == 1:
            reasons[id] = "one_response"
        elif min(score.ratings) == max(score.ratings) or best.response == worst.response:
            reasons[id] = "tied"
        elif not _fits(prompt, best, max_tokens) or not _fits(prompt, worst, max_tokens):
            reasons[id] = "too_long"
        else:
            best_worst[id] = _pair("best-worst", prompt, best, worst)

        unparsed = [sample for sample in prompt.samples if sample.outcome != "ok" and _fits(prompt, sample, max_tokens)]
        if unparsed and _fits(prompt, best, max_tokens):
            drawn = min(unparsed, key=lambda sample: keyed_hash(seed, f"{id}/{sample.k}"))
            malformed[id] = _pair("malformed", prompt, best, drawn)

    quota = 0
    pairs = dict(best_worst)
    for id in sorted(malformed, key=lambda id: (id in best_worst, keyed_hash(seed, id))):
        total = len(pairs) + (id not in pairs)
        # The tolerance lets a share of 0.29 have 29 of 100 pairs, though 0.29 * 100 < 29 in floats.
        if quota + 1 > malformed_share * total + 1e-9:
            break
        quota += 1
        pairs[id] = malformed[id]

    ordered = [pairs[prompt.instruction.id] for prompt in samples if prompt.instruction.id in pairs]
    dropped = [reason for id, reason in reasons.items() if id not in pairs]
    counts = {"prompts": len(samples), "best-worst": len(ordered) - quota, "malformed": quota}
    return Pairs(ordered, counts | {reason: dropped.count(reason) for reason in DROP_REASONS})


def _fits(prompt: PromptSamples, sample: Sample, max_tokens: int) -> bool:
    return len(prompt.prompt_ids) + len(sample.token_ids) <= max_tokens


def _pair(kind: str, prompt: PromptSamples, chosen: Sample, rejected: Sample) -> Pair:
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
