"""The one base class of every error that a user can cause."""


class TpoError(Exception):
    """A run cannot go on; the message is one sentence of what and one of the remedy.

    `exit_code` is 1 for a failure while running, 2 for bad usage or input.
    """

    exit_code = 1


class InputError(TpoError):
    """Bad usage or input: a recipe, an instruction file, a model folder, an option."""

    exit_code = 2
