"""The error for input that a user has to change."""


class InputError(ValueError):
    """Bad input, in one readable line that names the file and the fault.

    The command line prints the message alone and ends with exit code 2.
    """
