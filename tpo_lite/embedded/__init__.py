"""The embedded world: a policy, a judge, a tokenizer and instructions, small enough to ship and to run on two cores.

`world` invents the instructions, `build` trains both models from a seed, and `measure` says how good they are.
"""
