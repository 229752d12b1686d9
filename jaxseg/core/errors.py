"""The one exception that users see as a sentence instead of a traceback."""


class JaxsegError(Exception):
    """Says what was wrong, where (file, field, value) and what to do about it.

    `jaxseg.main` prints its text and exits with status 2; a library user catches it like any exception.
    """


class UnknownNameError(JaxsegError):
    """A name or key that nothing answers to; the message lists the close matches."""


class BadExampleError(JaxsegError):
    """An image or label that cannot be used as it is; the message names the file and the value."""


class NonFiniteLossError(JaxsegError):
    """The loss became NaN or infinite; the message names the step and the examples."""
