"""What a run will need, before it starts: memory, disk and hours by phase, by arithmetic alone.

    shapes.py    what a model's config.json or a judge's GGUF header says about its size
    cards.py     the card: found, or from a table of published figures
    memory.py    terms of each phase's peak memory, in bytes
    rates.py     seconds of each phase: by the card's published figures, or by rates that were measured
    choices.py   what `auto` becomes, and the smallest change where a phase does not fit
    report.py    the plan as a table, as plain text and as JSON

Imports neither torch nor llama_cpp, loads no weights and needs no GPU.
"""
