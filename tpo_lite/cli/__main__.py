"""`python -m tpo_lite.cli`: the same as `tpo-lite`."""

from tpo_lite.cli import main

main()
