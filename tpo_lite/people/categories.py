"""How the last model does on each category of held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tpo_lite.intervals import Share, share
from tpo_lite.people.held_out import HeldOutPrompt


@dataclass
class Category:
    """Held-out prompts of one category, in one arm."""

    name: str
    wins: list[float] = field(default_factory=list)
    """Of the last model against M_0, as probabilities."""
    right_before: int = 0
    """Prompts that M_0 answers right."""
    right_after: int = 0
    """Prompts that the last model answers right."""
    checked: int = 0
    """Prompts with a known answer."""
    prompts: int = 0

    @property
    def win_rate(self) -> Share:
        """Return the win rate against M_0 with its 95 % interval."""
        return share(sum(self.wins), len(self.wins))

    def add(self, found: HeldOutPrompt) -> None:
        """Count a prompt."""
        first, last = found.answers[0], found.answers[-1]
        self.prompts += 1
        if found.win is not None:
            self.wins.append(found.win)
        if first.right is not None:
            self.checked += 1
            self.right_before += bool(first.right)
            self.right_after += bool(last.right)


def by_category(prompts: Iterable[HeldOutPrompt]) -> list[Category]:
    """Return the categories by name; none if fewer than two are named."""
    found: dict[str, Category] = {}
    for prompt in prompts:
        name = prompt.instruction.category or "no category"
        found.setdefault(name, Category(name)).add(prompt)
    return sorted(found.values(), key=lambda category: category.name) if len(found) > 1 else []
