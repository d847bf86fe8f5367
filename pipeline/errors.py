"""The root of all errors that a user can act on."""


class PageturnError(Exception):
    """Something outside the program is not as it must be. The message says what was expected, found, and where.

    The command line prints the message alone; any other exception is a defect of ours and keeps its traceback.
    """
