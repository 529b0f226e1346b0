"""The one exception that means: the user can mend this."""


class PebalError(Exception):
    """A failure with a cause outside the program: its text names the file, topic or option and says what to do.

    Commands print the text alone and exit with status 1; the node logs it and reports it in its diagnostics.
    """
