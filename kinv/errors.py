"""What the user can mend: exceptions, exit status, argument types."""

import argparse
import errno
import math
import os
import re
import shlex
import signal
import sys
import threading


class InputError(ValueError):
    """Input that the user can mend.

    The message is one line: what was expected, what was received and how to
    mend it. Tools print it and exit with status 2.
    """


class NoSplitError(InputError):
    """A data set without the split that was named."""


class EmptySplitError(InputError):
    """A split without images, as the first 90 % of a single one."""


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite; the message names the step."""


class LostWorkerError(RuntimeError):
    """Another worker of a run on several hosts stopped."""


class Terminated(KeyboardInterrupt):
    """The signal SIGTERM, which ends a tool as Ctrl-C does."""


def run(main, resumable=False):
    """Runs a tool's `main`; bad input ends in one line and exit status 2.

    Ctrl-C and SIGTERM end it in a line, too, with status 130 and 143.

    Args:
        main: function without arguments. `InputError`, `NonFiniteError`,
            `LostWorkerError` and `OSError` (missing file, no permission, full
            disk) are printed to standard error as `TOOL: error: MESSAGE`, as
            are the name of an image that TensorFlow could not decode, a damaged
            record of a data set, and too little memory of a device. Any other
            exception is a defect of kinv and keeps its traceback.
        resumable: whether the tool has a flag `--resume`, which the message
            after Ctrl-C then offers.
    """
    tool = os.path.basename(sys.argv[0])
    # Keras reads it when it is imported: the tools need TensorFlow.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be text, nor the terminal's.
        stream.reconfigure(errors="replace")
    try:
        main()
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        message = f"stopped by {'SIGTERM' if terminated else 'the user'}"
        if resumable:
            words = [word for word in sys.argv[1:] if word != "--resume"]
            message += "; finished epochs are kept, go on with:\n  "
            message += f"{sys.argv[0]} {shlex.join([*words, '--resume'])}"
        print(f"\n{tool}: {message}", file=sys.stderr)
        sys.exit(143 if terminated else 130)
    except Exception as error:
        message = _explain(error, resumable)
        if message is None:
            raise
        print(f"{tool}: error: {message}", file=sys.stderr)
        sys.exit(2)


def _terminate(number, frame):
    raise Terminated


def _explain(error, resumable):
    """A line about what the user can mend; None of a defect."""
    message = " ".join(str(error).split())
    if isinstance(error, InputError | NonFiniteError | LostWorkerError):
        return message
    full = os.strerror(errno.ENOSPC)
    if getattr(error, "errno", None) == errno.ENOSPC or full in message:
        # HDF5 and TensorFlow say so at length, and not as an `OSError`.
        if not isinstance(error, OSError) or error.errno is None:
            message = full
        again = " with --resume" if resumable else ""
        return f"{message}. Free some, then repeat the command{again}."
    if type(error).__name__ == "ResourceExhaustedError":
        return (
            f"Expected more memory. Received: {reason(error)}. A training "
            "takes less with a smaller --batch-size, or, of tools/train.py, "
            "--set micro_batches=4, in a new run."
        )
    if type(error).__name__ == "DataLossError":
        found = re.search(r"\w+ record at \d+", message)
        return (
            "Expected undamaged records in the data set, or the logit cache. "
            f"Received: {found[0] if found else 'a damaged one'}. Remove what "
            "is damaged; the command makes it anew."
        )
    return message if isinstance(error, OSError) else _undecoded(error)


def _undecoded(error):
    """Names the image that an exception of TensorFlow's is about, or None."""
    # What a function raised that TensorFlow had called.
    if found := re.search(r"\bInputError: (Expected .*)", str(error)):
        return found[1]
    # Without a data set opened it can be about none.
    folders = sys.modules.get("kinv.data.folders")
    if folders and re.search("Decode|ReadFile", str(error)):
        return folders.find_unreadable()
    return None


def reason(error):
    """The cause in another library's exception, without a full stop."""
    text = str(error).strip() or type(error).__name__
    # Keras puts it last, or second, and configurations around it.
    *_, text = text.split("Exception encountered: ")
    if text.startswith("Exception encountered when calling"):
        _, *rest = text.splitlines()
        text = "\n".join(rest).strip() or text
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    first, *_ = text.splitlines() or [type(error).__name__]
    return first.split(" Full object config:")[0].rstrip(".")


def _number(kind, expected, accepts):
    """An argument type: a number that is accepted."""

    def parse(text):
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not accepts(number):
            raise argparse.ArgumentTypeError(
                f"expected {expected}, received {text!r}"
            )
        return number

    return parse


# Argument types of `argparse`. Those of numbers refuse NaN and infinity.
positive_int = _number(int, "an integer of at least 1", lambda n: n >= 1)
non_negative_int = _number(int, "an integer of at least 0", lambda n: n >= 0)
# As TensorFlow takes them.
seed = _number(int, "an integer in [0, 2147483647]", lambda n: 0 <= n < 2**31)
port = _number(int, "a port from 0 to 65535", lambda n: 0 <= n < 65536)
# Their number of bytes has to fit a signed 32-bit integer.
mebibytes = _number(int, "an integer in [1, 2047]", lambda n: 0 < n < 2048)
positive_float = _number(
    float, "a number greater than 0", lambda n: 0 < n < math.inf
)
non_negative_float = _number(
    float, "a number of at least 0", lambda n: 0 <= n < math.inf
)
share = _number(float, "a number in [0, 1)", lambda n: 0 <= n < 1)


def origin(text):
    """Argument type: an origin of web pages, or `*` for all."""
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#]+", text):
        raise argparse.ArgumentTypeError(
            f"expected https://HOST, without a path, or *, received {text!r}"
        )
    return text


def boolean(text):
    """Argument type: `True` or `False`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(
            f"expected True or False, received {text!r}"
        )
    return text.lower() == "true"
