"""The user turn that is answered in a conversation, and what comes before it.

Turns are in OpenAI's form (role, content), ShareGPT's (from, value) or plain text, which counts as the user's.
"""

from __future__ import annotations

from typing import Any, Literal

from tpo_lite.records import Turn

WhichTurn = Literal["first", "last"]
"""Which user turn is answered; `tpo_lite.recipe_keys.Instructions.turn` explains it."""

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"} | dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"
)
"""Roles by the names that data sets give them."""


def read_conversation(turns: list[Any], which: WhichTurn) -> tuple[Any, list[Turn]]:
    """Return the content of the first or last user turn, and the turns before it: a system turn and the history.

    What an assistant says before the first user turn is left out. Raises `ValueError` if no turn is the user's, or if
    the history does not alternate between user and assistant.

    >>> hello = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Bye"}]
    >>> read_conversation(hello, "last")
    ('Bye', [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}])
    >>> read_conversation(hello, "first")
    ('Hi', [])
    """
    said = [_role_and_content(turn) for turn in turns]
    asked = [index for index, (role, _) in enumerate(said) if role == "user"]
    if not asked:
        raise ValueError("has no user turn")
    first, last = asked[0], asked[0] if which == "first" else asked[-1]
    history = [_turn(index, *said[index]) for index in range(first, last)]
    for index, (role, _) in enumerate(said[first : last + 1]):
        due = "assistant" if index % 2 else "user"
        if role != due:
            raise ValueError(
                f"has no history that alternates between user and assistant: turn {first + index + 1} should be the "
                f"{due}'s"
            )
    prompts = [content for role, content in said[:first] if role == "system"]
    return said[last][1], system_turn(prompts) + history


def system_turn(prompts: list[Any]) -> list[Turn]:
    """Return system prompts as one turn, in a list; an empty list if all are blank or null.

    Raises `ValueError` for a prompt that is not text.
    """
    for prompt in prompts:
        if not isinstance(prompt, str | None):
            raise ValueError(f"has a system prompt that is not text but {type(prompt).__name__}")
    content = "\n\n".join(prompt.strip() for prompt in prompts if prompt and prompt.strip())
    return [{"role": "system", "content": content}] if content else []


def _role_and_content(turn: Any) -> tuple[str | None, Any]:
    """Return a turn's role, None if it is unknown, and its content."""
    if isinstance(turn, str):
        return "user", turn
    if not isinstance(turn, dict):
        return None, None
    # A table with turns of both forms has both pairs of keys, one of them null.
    names = [turn[key] for key in ("role", "from") if key in turn]
    name = next((name for name in names if name is not None), None)
    content = turn.get("content")
    return ROLES.get(str(name)) if names else "user", turn.get("value") if content is None else content


def _turn(index: int, role: str | None, content: Any) -> Turn:
    """Return a turn before the one that is answered. Raises `ValueError` if it holds no text."""
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"has no text in turn {index + 1}, which comes before the one to answer")
    return {"role": str(role), "content": content.strip()}
