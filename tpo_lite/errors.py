"""Errors that a user can cause, their exit codes, and how libraries say that memory ran out."""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, no quota left, or a file over the size limit. safetensors and torch give only the text, not the number."""


class TpoError(Exception):
    """Base class: a run cannot go on. The message says in one sentence what is wrong, and in one how to fix it.

    `exit_code` is 1 for a failure while running, 2 for bad usage or input, 3 for too little memory.
    """

    exit_code = 1


class InputError(TpoError):
    """Bad usage or input: a recipe, an instruction file, a model folder, an option."""

    exit_code = 2


class OutOfMemory(InputError):
    """The recipe needs more memory than there is. The orchestrator tries again with smaller batches."""

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
"""How CUDA, cuBLAS (by name and in words), Triton, torch, accelerate, llama.cpp, C++ and Python say it; lower case."""


def says_out_of_memory(text: str) -> bool:
    """Return whether a library's message says that memory ran out, on the host or on the GPU."""
    return any(sign in text.lower() for sign in SIGNS)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a library's error means that memory ran out. Most are ordinary `RuntimeError`s."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has none. For messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
