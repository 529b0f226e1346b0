"""Exceptions that report failures which the user can fix."""


class PebalError(Exception):
    """A failure with a cause outside the program.

    The text names the file, topic or option and says what to do. Commands print only the text and exit with status 1;
    the node logs it and reports it in its diagnostics.
    """


class CutShortError(PebalError):
    """A recording ended before all announced frames were read; the frames up to that point are valid."""


class EngineError(PebalError):
    """The engine's output is impossible for any image, because of an overflow, a faulty device or a foreign graph.

    The node counts it like any other failure of its engine and exits if it repeats.
    """


def one_line(error: Exception) -> str:
    r"""The text of a library's exception in one line, without the control characters that a damaged file can put there.

    Examples:
        >>> one_line(ValueError("unknown type \x1c in\nthe header"))
        'unknown type in the header'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
