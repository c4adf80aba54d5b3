"""The one base class of every error that a user can cause."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, no quota, over the limit for one file; safetensors and torch only say so in the text of their errors."""


class TpoError(Exception):
    """A run cannot go on; the message is one sentence of what and one of the remedy.

    `exit_code` is 1 for a failure while running, 2 for bad usage or input, 3 for too little memory.
    """

    exit_code = 1


class InputError(TpoError):
    """Bad usage or input: a recipe, an instruction file, a model folder, an option."""

    exit_code = 2


class OutOfMemory(InputError):
    """What the recipe asks for needs more memory than there is; the orchestrator tries smaller batches."""

    exit_code = 3
