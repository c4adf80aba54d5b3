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


SIGNS = (
    "out of memory",
    "allocate memory",
    "failed to allocate",
    "unable to allocate",
    "cannot allocate",
    "insufficient memory",
    "enough gpu ram",
    "alloc_failed",
    "resource allocation failed",
    "bad_alloc",
    "memoryerror",
)
"""What CUDA, cuBLAS (as a name and in words), Triton, torch, accelerate, llama.cpp, C++ and Python say, lower case."""


def says_out_of_memory(text: str) -> bool:
    """Whether a library's words say that memory, of the host or of the GPU, did not suffice."""
    return any(sign in text.lower() for sign in SIGNS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's error says so; most come as an ordinary RuntimeError."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def first_line(error: Exception) -> str:
    """The first line of an error's text, for messages that must stay one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
