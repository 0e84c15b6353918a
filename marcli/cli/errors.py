"""The one boundary for errors: every failure becomes one sentence on standard error and an exit code.

0 done, 1 failed, 2 wrong usage or recipe, 75 stopped on request with everything saved.
"""

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

import typer

from marcli.errors import UNEXPECTED, MarcliError, StoppedError, UsageError
from marcli.runtime.launch import report_exit
from marcli.runtime.stop import stop_at_once

DONE, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 75
SECONDS_FOR_THE_FIRST, SECONDS_FOR_EACH = 5.0, 1.0

WHEN_OS_SAYS = {
    errno.ENOSPC: "The disk is full at {place}: make room, or write elsewhere; what was complete before is intact",
    errno.EDQUOT: "Your disk quota is used up at {place}: make room, or write elsewhere",
    errno.EROFS: "{place} cannot be written to: the file system is read-only; choose another folder",
    errno.EACCES: "No permission for {place}: change its permissions, or choose another",
    errno.EPERM: "No permission for {place}: change its permissions, or choose another",
    errno.ENOENT: "There is no {place}: check the path",
    errno.EEXIST: "{place} exists already where a folder or file must be made: remove it, or choose another",
    errno.EISDIR: "{place} is a folder where a file is needed",
    errno.ENOTDIR: "{place} lies under a file where a folder is needed",
    errno.EFBIG: "{place} would grow beyond the largest file allowed here: see `ulimit -f`",
    errno.EMFILE: "Too many open files: raise the limit with `ulimit -n 65536`",
    errno.ENAMETOOLONG: "The name {place} is too long for this file system",
}
NO_MEMORY = "This machine has not enough memory: lower the batch size, or set train.micro_batch_size"
NETWORK_ERRNOS = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT}
NETWORK_TYPES = {
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "ConnectError", "SSLError", "ProxyError", "gaierror",
    "URLError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "MaxRetryError", "HfHubHTTPError",
}  # fmt: skip


def run_guarded(command: Callable[[], int | None], *, as_json: bool) -> int:
    """Run `command` and return the exit code of the program, having printed the sentence if it failed.

    One of several processes leaves the printing to the one that launched it, so that a sentence comes once. Under
    another launcher the first process prints what all of them met, and each what it alone met (no GPU for it, say).
    With `as_json` a failure, too, ends standard output with one JSON object. MARCLI_TRACEBACK=1 adds the traceback.
    """

    def end_at_once(stopped: StoppedError) -> None:
        _tell(str(stopped), STOPPED, as_json=as_json)
        os._exit(STOPPED)

    sentence = ""
    try:
        with stop_at_once(when_deaf=end_at_once):
            code = command() or DONE
    except (Exception, KeyboardInterrupt, StoppedError) as error:
        if os.environ.get("MARCLI_TRACEBACK") == "1":
            traceback.print_exc()
        sentence, code = explain_error(error)
    _tell(sentence, code, as_json=as_json)
    return code


def _tell(sentence: str, code: int, *, as_json: bool) -> None:
    """Tell the launcher, or else the user, how this process ends."""
    if report_exit(code, sentence) or not sentence:
        return
    rank = os.environ.get("RANK", "0")
    if rank != "0" and code == WRONG_USAGE:
        sentence = f"Process {rank}: {sentence}"
    if rank == "0" or code == FAILED or (code == WRONG_USAGE and _first_had_nothing_to_say()):
        _print_failure(sentence, code, as_json=as_json)


def _first_had_nothing_to_say() -> bool:
    """Wait for the first process, and for those of this machine before this one, to say the same; did they not?

    torchrun ends all once one has ended, so that whoever is still here is alone with its error. srun ends none: there
    one process of a machine speaks for all of them.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    time.sleep(SECONDS_FOR_THE_FIRST + SECONDS_FOR_EACH * local_rank)
    return "TORCHELASTIC_RUN_ID" in os.environ or local_rank == 0


def explain_error(error: BaseException) -> tuple[str, int]:
    """Return the sentence and the exit code for `error`."""
    match error:
        case KeyboardInterrupt() | typer.Abort():
            return "Interrupted before anything was saved", FAILED
        case typer.TyperException():
            return _usage_sentence(error), WRONG_USAGE
        case StoppedError():
            return str(error), STOPPED
        case UsageError():
            return str(error), WRONG_USAGE
        case MarcliError():
            return str(error), FAILED
        case MemoryError():
            return NO_MEMORY, FAILED
    return _foreign_sentence(error), FAILED


def _foreign_sentence(error: BaseException) -> str:
    """Name the cause of an error that no part of the package foresaw, following `raise ... from`."""
    chain, seen = [], error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    for cause in chain:
        names = {kind.__name__ for kind in type(cause).__mro__}
        number = cause.errno if isinstance(cause, OSError) else None
        if number in WHEN_OS_SAYS:
            return _os_sentence(number, cause.filename)
        if names & NETWORK_TYPES or number in NETWORK_ERRNOS:
            return (
                f"A file had to be fetched and the network did not answer ({_first_line(cause)}): "
                "connect, or fetch the file elsewhere and name its path"
            )
        if "can't allocate memory" in str(cause):
            return NO_MEMORY
        if "OutOfMemoryError" in names:
            return "The GPU has not enough memory: lower the batch size, or set train.micro_batch_size"
        if "No space left on device" in str(cause):
            return _os_sentence(errno.ENOSPC, None)
    return f"{type(error).__name__}: {_first_line(error)} {UNEXPECTED}"


def _os_sentence(number: int, place: str | None) -> str:
    """The sentence for an error number; the system does not always say the place."""
    sentence = WHEN_OS_SAYS[number]
    return sentence.format(place=place) if place else sentence.replace(" at {place}", "").format(place="that place")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _usage_sentence(error: typer.TyperException) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    message = message.replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}: see {context.command_path if context else 'marcli'} -h"


def _print_failure(sentence: str, code: int, *, as_json: bool) -> None:
    from rich.console import Console

    _finish_output("")
    console = Console(stderr=True, highlight=False)
    if code == STOPPED:  # nothing is wrong, and the sentence says itself that it stopped
        console.print(sentence[:1].upper() + sentence[1:], style="yellow", markup=False, soft_wrap=True)
    else:
        console.print("[bold red]error:[/]", end=" ")
        console.print(sentence, markup=False, soft_wrap=True)
    if as_json:
        _finish_output(json.dumps({"error": sentence, "exit_code": code}) + "\n")


def _finish_output(text: str) -> None:
    """Write `text` and all before it to standard output; a reader that has gone is not one more failure."""
    try:
        print(text, end="", flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # where Python's own last flush goes, too
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
