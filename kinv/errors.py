"""What the user can mend: exceptions, exit status, argument types."""

import argparse
import errno
import os
import shlex
import sys


class InputError(ValueError):
    """Input that the user can mend.

    The message is one line: what was expected, what was received and how to
    mend it. Tools print it and exit with status 2.
    """


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite; the message names the step."""


class LostWorkerError(RuntimeError):
    """Another worker of a run on several hosts stopped."""


def run(main, resumable=False):
    """Runs a tool's `main`; bad input ends in one line and exit status 2.

    Args:
        main: function without arguments. `InputError`, `NonFiniteError`,
            `LostWorkerError` and `OSError` (missing file, no permission, full
            disk) are printed to standard error as `TOOL: error: MESSAGE`, as is
            the name of an image that TensorFlow could not decode. Any other
            exception is a defect of kinv and keeps its traceback.
        resumable: whether the tool has a flag `--resume`, which the message
            after Ctrl-C then offers.
    """
    tool = os.path.basename(sys.argv[0])
    try:
        main()
    except (InputError, NonFiniteError, LostWorkerError, OSError) as error:
        message = " ".join(str(error).split())
        if getattr(error, "errno", None) == errno.ENOSPC:
            again = " with --resume" if resumable else ""
            message += f". Free some, then repeat the command{again}."
        print(f"{tool}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        message = _undecoded(error)
        if message is None:
            raise
        print(f"{tool}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        message = "stopped by the user"
        if resumable:
            words = [word for word in sys.argv if word != "--resume"]
            message += "; finished epochs are kept, go on with:\n  "
            message += shlex.join([*words, "--resume"])
        print(f"\n{tool}: {message}", file=sys.stderr)
        sys.exit(130)


def _undecoded(error):
    """Names the image that an exception of TensorFlow's is about, or None."""
    # Without a data set opened it can be about none.
    folders = sys.modules.get("kinv.data.folders")
    if folders and "DecodeImage" in str(error):
        return folders.find_unreadable()
    return None


def reason(error):
    """First line of another library's exception, for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def positive_int(text):
    """Argument type: an integer of at least 1."""
    return _number(text, int, "an integer of at least 1", lambda n: n >= 1)


def non_negative_int(text):
    """Argument type: an integer of at least 0."""
    return _number(text, int, "an integer of at least 0", lambda n: n >= 0)


def positive_float(text):
    """Argument type: a finite number greater than 0."""
    return _number(
        text, float, "a number greater than 0", lambda n: 0 < n < float("inf")
    )


def non_negative_float(text):
    """Argument type: a finite number of at least 0."""
    return _number(
        text, float, "a number of at least 0", lambda n: 0 <= n < float("inf")
    )


def _number(text, kind, expected, accepts):
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not accepts(number):
        raise argparse.ArgumentTypeError(
            f"expected {expected}, received {text!r}"
        )
    return number
