"""Swapped thoughts: does the response depend on what the thought says, or only on there being one?

The response is forced after three thoughts, with the same random numbers: the model's own, exactly as it was sampled;
that of another prompt; and empty talk of the same length. If only the presence of a thought mattered, all three would
do equally well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.checking import final_answer
from tpo_lite.errors import InputError
from tpo_lite.evaluation.arms import Arms, answers_in, output_of, release
from tpo_lite.evaluation.best_of import singles
from tpo_lite.evaluation.controls import Entrant, sampled_tokens
from tpo_lite.evaluation.layout import between
from tpo_lite.evaluation.outputs import Outputs
from tpo_lite.intervals import Share, percent, share
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import final_response
from tpo_lite.progress import progress
from tpo_lite.records import JsonlAppender, PromptSamples, read_jsonl
from tpo_lite.sampling.marked import marker_ids
from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key
from tpo_lite.sampling.sampler import batches

TALK = "Let me think about this carefully before I respond. "
"""Empty talk, repeated to the length of the thought that it stands in for."""

KINDS = {"own": "own thought", "other": "another prompt's thought", "talk": "empty talk"}


@dataclass(frozen=True)
class Swapped:
    """What came of the three thoughts."""

    entrants: list[Entrant]
    """Own thought, another prompt's, empty talk, and the direct model's one answer."""
    followed: Share
    """How often the response after another prompt's thought gives that prompt's answer, where the two differ."""
    left_out: int
    """Instructions whose answer has no thought that could be moved."""

    def notes(self) -> list[str]:
        """Return what the table does not show."""
        said = []
        if self.followed.value is not None:
            low, high = 100 * self.followed.low, 100 * self.followed.high
            said.append(
                f"After another prompt's thought, {percent(self.followed.value)} ({between(low, high, 1)}) of "
                f"{self.followed.n} responses give that prompt's answer."
            )
        if self.left_out:
            said.append(f"{self.left_out} answers have no thought with a response, and are left out.")
        return said


def swap_thoughts(arms: Arms, device: Device) -> Swapped:
    """Force responses after own, other and empty thoughts; a stopped call goes on where it was.

    Raises `InputError` where fewer than two answers have a thought and a response.
    """
    answers = arms.answers("thinking")
    thoughtful = {key: answer for key, answer in answers.items() if answer.samples[-1].well_formed}
    thoughtful = {key: answer for key, answer in thoughtful.items() if answer.samples[-1].thought}
    partner = partners(thoughtful)
    files = {kind: arms.out / "swap-thoughts" / f"{kind}.jsonl" for kind in KINDS}
    there = [{record.instruction.id for record in read_jsonl(path, PromptSamples)} for path in files.values()]
    if any(not ids >= thoughtful.keys() for ids in there):
        _sample(arms, thoughtful, partner, files, device)
    instructions = [answer.instruction for answer in thoughtful.values()]
    forced = {kind: answers_in(path, instructions) for kind, path in files.items()}
    entrants = []
    for kind, name in KINDS.items():
        outputs = {key: output_of(each.instruction, final_response(each)) for key, each in forced[kind].items()}
        named = Outputs(f"thinking M_{arms.model}, {name}", outputs)
        entrants.append(Entrant(kind, named, sampled_tokens(forced[kind])))
    direct = next(entrant for entrant in singles(arms) if entrant.key == "direct")
    kept = {key: direct.outputs.by_id[key] for key in thoughtful}
    entrants.append(Entrant(direct.key, Outputs(direct.outputs.model, kept), direct.tokens))
    return Swapped(entrants, followed(forced["own"], forced["other"], partner), len(answers) - len(thoughtful))


def partners(answers: Mapping[str, PromptSamples]) -> dict[str, str]:
    """Return whose thought each instruction gets: that of the next one by its id, a hash, so as good as at random.

    Raises `InputError` with fewer than two instructions.
    """
    if len(answers) < 2:
        raise InputError("Fewer than two answers have a thought and a response, so that no thoughts can be swapped.")
    ids = sorted(answers)
    return dict(zip(ids, ids[1:] + ids[:1], strict=True))


def followed(own: Mapping[str, PromptSamples], other: Mapping[str, PromptSamples], partner: Mapping[str, str]) -> Share:
    """Return how often a response after another's thought gives the answer that the other has after the same thought.

    Only where an answer is known for the instruction, and the two own answers differ: elsewhere nothing shows.
    """
    counted = matching = 0
    for key, answer in other.items():
        mine, theirs = final_response(own[key]), final_response(own[partner[key]])
        if answer.instruction.answer is None or not theirs or final_answer(mine) == final_answer(theirs):
            continue
        counted += 1
        matching += final_answer(final_response(answer)) == final_answer(theirs)
    return share(matching, counted)


def _sample(
    arms: Arms,
    answers: Mapping[str, PromptSamples],
    partner: Mapping[str, str],
    files: Mapping[str, Path],
    device: Device,
) -> None:
    """Write a response after each kind of thought, batch by batch."""
    loaded = LoadedPolicy(arms.recipe, policy(arms.folder, arms.recipe, "thinking", arms.model), device)
    begun = {key: up_to_response(loaded, answer.samples[-1].token_ids) for key, answer in answers.items()}
    key = sampling_key(arms.recipe, "thinking", arms.model, "controls")
    for kind, path in files.items():
        if kind == "own":
            starts = begun
        elif kind == "other":
            starts = {id: begun[partner[id]] for id in answers}
        else:
            starts = {id: empty_talk(loaded, answer.samples[-1].thought_tokens) for id, answer in answers.items()}
        finished = {record.instruction.id for record in read_jsonl(path, PromptSamples)}
        label = f"response after {KINDS[kind]}"
        with JsonlAppender(path) as out, progress(label, len(answers), "prompts", len(finished)) as advance:
            prompts = list(answers.values())
            whole = [[*prompt.prompt_ids, *starts[prompt.instruction.id]] for prompt in prompts]
            for indices in batches(whole, loaded.sampler.rows):
                batch = [prompts[index] for index in indices]
                if finished >= {prompt.instruction.id for prompt in batch}:
                    continue
                keys = [f"{key}/{prompt.instruction.id}/0" for prompt in batch]
                sampled = loaded.sampler.sample([whole[index] for index in indices], keys)
                for prompt, ids in zip(batch, sampled, strict=True):
                    if prompt.instruction.id not in finished:
                        out.append(_record(loaded, arms, prompt, starts[prompt.instruction.id] + ids))
                        advance(1)
    del loaded
    release(device)


def _record(loaded: LoadedPolicy, arms: Arms, prompt: PromptSamples, ids: list[int]) -> PromptSamples:
    read = loaded.read(0, ids, arms.recipe.style("thinking"))
    return PromptSamples(prompt.instruction, prompt.prompt_ids, [read])


def up_to_response(loaded: LoadedPolicy, ids: Sequence[int]) -> list[int]:
    """Return the beginning of an output up to its first response marker, exactly as it was sampled."""
    marker = loaded.recipe.style("thinking").response_marker or ""
    low, high = 1, len(ids)
    while low < high:  # the text of a beginning has the marker from some length on
        middle = (low + high) // 2
        if marker in loaded.chat.text(list(ids[:middle])):
            high = middle
        else:
            low = middle + 1
    return list(ids[:low])


def empty_talk(loaded: LoadedPolicy, tokens: int) -> list[int]:
    """Return an output's beginning with empty talk of so many tokens for a thought, up to the response marker."""
    opening, closing = marker_ids(loaded.chat, loaded.recipe.style("thinking"))
    once = loaded.chat.text_ids(f" {TALK.strip()}")
    talk = (once * (tokens // len(once) + 1))[:tokens]
    return [*opening, *talk, *closing]
