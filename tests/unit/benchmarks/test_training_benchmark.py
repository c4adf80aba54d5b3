"""The training benchmark's pairs, settings and table; one setting is measured where the GPU benchmark is tested."""

import argparse

from benchmarks.training import grid, parser, random_pairs, report

RUN = {"tokens_per_second": 100.0, "peak": {"host": 2_000_000_000}}


def settings():
    return [vars(parser().parse_args(["--model", "m", *flags])) for flags in grid()]


def test_each_side_of_a_pair_has_the_tokens_asked_for():
    for pair in random_pairs(3, 50, 1000):
        assert len(pair.prompt_ids) + len(pair.chosen_ids) == len(pair.prompt_ids) + len(pair.rejected_ids) == 50
        assert 0 < len(pair.prompt_ids) < 25
        assert max(pair.prompt_ids + pair.chosen_ids) < 1000


def test_settings_differ_from_the_first_in_one_thing():
    first, *others = settings()
    assert all(len([key for key in first if first[key] != other[key]]) == 1 for other in others)


def test_the_table_compares_with_trl_and_keeps_what_failed():
    first, trl, unsloth, *others = settings()
    measured = [
        [first | RUN | {"tokens_per_second": 150.0}, first | RUN | {"tokens_per_second": 250.0}],
        [trl | RUN, trl | RUN],
        [unsloth | RUN, unsloth | {"error": "no memory"}],
        *([other | RUN] * 2 for other in others),
    ]
    options = argparse.Namespace(device="cpu", model="somewhere/llama", pairs=4, tokens=50)
    table = report(measured, "command", options).splitlines()
    assert "| ours | adamw_torch | 16 | 1 | yes | 150.0, 250.0 | 200.0 | 2.00 | 2.00 | 0.00 |" in table
    assert "| trl | adamw_torch | 16 | 1 | yes | 100.0, 100.0 | 100.0 | 1.00 | 2.00 | 0.00 |" in table
    assert "| unsloth | adamw_torch | 16 | 1 | yes | no memory | - | - | - | - |" in table
    assert "| ours | paged_adamw_8bit | 16 | 1 | yes | 100.0, 100.0 | 100.0 | 1.00 | 2.00 | 0.00 |" in table
