"""Open the judge that a recipe names, or check it without loading it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tpo_lite.errors import InputError, OutOfMemory
from tpo_lite.hub import judge_path, reward_model_path
from tpo_lite.judges.prompts import prompt_of
from tpo_lite.judges.protocol import Judge
from tpo_lite.machine.device import Device
from tpo_lite.settled import SettledJudge

if TYPE_CHECKING:
    from tpo_lite.judges.openai_server import OpenAiJudge

STEPS = 8
"""In how many steps the judge gives up its GPU layers where they do not fit."""

Loaded = TypeVar("Loaded")


def open_judge(
    settings: SettledJudge, device: Device = "cpu", calls: Path | None = None, day: date | None = None
) -> Judge:
    """Load the judge, ready to compare; on "cuda" with `gpu_layers` of its layers there.

    `calls` is the file that counts the requests to an openai judge over all processes of a run; without it, this
    judge's alone are counted. The verdicts are kept beside that file (for "judge-calls" in "judge-replies.jsonl").
    `day` is the date that a reward model's chat template gets for today's; None: today's. A GGUF judge's template never
    gets one. Raises `InputError` for a model that cannot judge, `OutOfMemory` if it does not fit.
    """
    if settings.mode == "openai":
        return _openai(settings, calls)
    if settings.mode == "reward-model":
        return _reward_model(settings, device, day)
    path, layers = judge_path(settings.model), _gpu_layers(settings, device)
    if layers and settings.fewer_gpu_layers:
        from tpo_lite.llamacpp.model import GgufModel

        most = GgufModel(path, vocab_only=True).n_layer + 1  # the output layer counts as one
        return with_fewer_layers(lambda n: _gguf(settings, path, n), most if layers < 0 else min(layers, most))
    return _gguf(settings, path, layers)


def check_judge(settings: SettledJudge, device: Device = "cpu") -> None:
    """Raise what `open_judge` would, as far as it shows without loading weights or asking for a verdict.

    Looks at a GGUF's header, vocabulary and length, at the prompt and at the room for the context; at a reward model's
    configuration and tokenizer; and whether the server of an openai judge answers and takes the key.
    """
    if settings.mode == "openai":
        _openai(settings, None).check()
    elif settings.mode == "reward-model":
        from tpo_lite.judges.reward_inputs import RewardInputs

        RewardInputs(reward_model_path(settings.model), settings.trust_remote_code)
    else:
        _check_gguf(settings, device)


def too_long(what: str, ids: Sequence[str], settings: SettledJudge, judge: Judge | None, option: str) -> str:
    """Return a line on what did not fit the judge: `what` and how much, the first of `ids`, the limit and the remedy.

    `option` is what raises the context. `judge` is None if it was not opened this time.
    """
    named = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    limit, remedy = "the judge", "Use a judge with a longer context."
    if settings.mode == "openai":
        limit, remedy = "the server", "Raise its context, or use another judge."
    elif judge is not None and judge.max_tokens is not None and judge.max_tokens < settings.context:
        limit = f"the {judge.max_tokens} tokens that the judge was trained on"
    elif judge is not None:
        limit, remedy = f"{judge.max_tokens} tokens", f"Raise {option}, or use another judge."
    if settings.mode != "openai" and settings.overlong == "drop":
        remedy = remedy.removesuffix(".") + ", or set judge.overlong: truncate."
    return f"too long for {limit}: {what} ({named}). {remedy}"


def with_fewer_layers(load: Callable[[int], Loaded], layers: int) -> Loaded:
    """Return what `load` makes with as many of `layers` GPU layers as there is memory for; say so if it is fewer.

    Raises `OutOfMemory` if there is too little memory even with none.
    """
    fewer = layers
    while True:
        try:
            loaded = load(fewer)
        except OutOfMemory:
            if fewer == 0:
                raise
            fewer = max(0, fewer - max(1, layers // STEPS))
            continue
        if fewer < layers:
            warning = f"judge: the GPU's memory holds {fewer} of {layers} layers; the others are on the CPU."
            print(warning, file=sys.stderr, flush=True)
        return loaded


def _gpu_layers(settings: SettledJudge, device: Device) -> int:
    return settings.gpu_layers if device == "cuda" else 0


def _gguf(settings: SettledJudge, path: Path, gpu_layers: int) -> Judge:
    prompt = prompt_of(settings)
    # A decode cannot hold more than the context, and a batch has room set aside for each of its tokens.
    batch = min(settings.batch, settings.context)
    if settings.mode == "score":
        from tpo_lite.judges.score import ScoreJudge
        from tpo_lite.llamacpp.decoder import LlamaCpp

        decoder = LlamaCpp(
            path,
            n_ctx=settings.context,
            n_batch=batch,
            n_seq_max=settings.sequences,
            n_gpu_layers=gpu_layers,
            kv_type=settings.kv_type,
        )
        return ScoreJudge(decoder, prompt.template, prompt.system, settings.chat_template, settings.overlong)
    from tpo_lite.judges.gguf import GgufJudge

    return GgufJudge(
        path,
        mode="explain" if settings.mode == "explain" else "verdict",
        template=prompt.template,
        system=prompt.system,
        chat_template=settings.chat_template,
        explain_tokens=settings.explain_tokens,
        overlong=settings.overlong,
        n_ctx=settings.context,
        n_batch=batch,
        n_seq_max=settings.sequences,
        n_gpu_layers=gpu_layers,
        kv_type=settings.kv_type,
    )


def _check_gguf(settings: SettledJudge, device: Device) -> None:
    from tpo_lite.judges.gguf import pair_prompt
    from tpo_lite.judges.score import score_prompt
    from tpo_lite.llamacpp.model import GgufModel

    layers = _gpu_layers(settings, device)
    model = GgufModel(judge_path(settings.model), layers, vocab_only=True)
    asked = prompt_of(settings)
    if settings.mode == "score":
        prompt = score_prompt(model, asked.template, asked.system, settings.chat_template)
    else:
        prompt = pair_prompt(
            model,
            "explain" if settings.mode == "explain" else "verdict",
            asked.template,
            asked.system,
            settings.chat_template,
            settings.explain_tokens,
        )
    prompt.check_room(settings.context)
    model.check_context(settings.context, settings.kv_type, on_gpu=layers != 0)


def _openai(settings: SettledJudge, calls: Path | None) -> OpenAiJudge:
    from tpo_lite.judges.openai_server import CallBudget, OpenAiJudge
    from tpo_lite.judges.paid_verdicts import PaidVerdicts

    if settings.overlong == "truncate":
        raise InputError(
            "judge.overlong: truncate needs the judge's tokenizer, which a server does not show. Set it to drop."
        )
    prompt = prompt_of(settings)
    return OpenAiJudge(
        settings.model,
        settings.base_url,
        template=prompt.template,
        system=prompt.system,
        max_tokens=settings.explain_tokens,
        in_flight=settings.sequences,
        budget=CallBudget(settings.max_calls, calls),
        paid=PaidVerdicts(calls and calls.with_name(calls.name.removesuffix("calls") + "replies.jsonl")),
    )


def _reward_model(settings: SettledJudge, device: Device, day: date | None) -> Judge:
    from tpo_lite.judges.reward_model import RewardModelJudge

    return RewardModelJudge(
        reward_model_path(settings.model),
        quantize=settings.quantize,
        trust_remote_code=settings.trust_remote_code,
        overlong=settings.overlong,
        context=settings.context,
        sequences=settings.sequences,
        device=device,
        day=day,
    )
