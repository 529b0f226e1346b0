"""The one exception that means: the user can mend this."""


class PebalError(Exception):
    """A failure with a cause outside the program: its text names the file, topic or option and says what to do.

    Commands print the text alone and exit with status 1; the node logs it and reports it in its diagnostics.
    """


class CutShortError(PebalError):
    """A recording ended before all that it promises was read; what came before is good."""


class EngineError(PebalError):
    """The engine's answer cannot be right, whatever the image: an overflow, a faulty device or a foreign graph.

    The node counts it like any other failure of its engine, and ends when it repeats.
    """
