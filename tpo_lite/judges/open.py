"""Opens the judge that a recipe names."""

from __future__ import annotations

from tpo_lite import engines
from tpo_lite.judges import Judge
from tpo_lite.recipe import JudgeSettings
from tpo_lite.sources import EMBEDDED_JUDGE_PROMPT, judge_path


def open_judge(settings: JudgeSettings) -> Judge:
    """The judge, loaded; on a GPU with all its layers there. Raises `InputError` for a file that is no judge."""
    from tpo_lite.judges.gguf import GgufJudge

    template = settings.template
    if template is None and settings.model == "embedded":
        template = EMBEDDED_JUDGE_PROMPT.read_text(encoding="utf-8").rstrip("\n")
    return GgufJudge(
        judge_path(settings.model),
        mode=settings.mode,
        template=template,
        chat_template=settings.chat_template,
        explain_tokens=settings.explain_tokens,
        overlong=settings.overlong,
        n_ctx=settings.context,
        n_batch=settings.batch,
        n_seq_max=settings.sequences,
        n_gpu_layers=-1 if engines.wants_cuda() else 0,
        kv_type=settings.kv_type,
    )
