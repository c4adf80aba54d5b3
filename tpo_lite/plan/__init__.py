"""What a run will need, before it starts: memory, disk and hours for each phase, by arithmetic alone.

    shapes.py    what a model's config.json or a judge's GGUF header says about its size
    memory.py    the terms of each phase's peak memory, in bytes
    rates.py     the seconds of each phase, from the card's published figures or from measured rates
    choices.py   what `auto` becomes, and the smallest change if a phase does not fit
    report.py    the plan as a table, as plain text and as JSON

The card comes from `tpo_lite.machine.cards`. Nothing here imports torch or llama_cpp, loads weights or needs a GPU.
"""
