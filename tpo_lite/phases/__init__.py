"""The phases of an iteration, one process each: `python -m tpo_lite.phases.<name> RUN_DIR`."""
