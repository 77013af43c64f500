"""How a command runs and ends: its log on stderr, what a user can mend as one line with exit code 2."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from stablerep import __version__
from stablerep.config import UserError, check_choice

BACK = "run the same command when its file system is back; nothing finished is lost"
OUT_OF_MEMORY_TEXTS = re.compile(
    r"(can't|cannot|failed to) allocate|not enough memory|out of memory|bad_alloc|failed to map segment"
    r"|can't start new thread",
    re.IGNORECASE,
)
MENDS = {
    errno.EIO: BACK,
    errno.ESTALE: BACK,
    errno.ENOTCONN: BACK,
    errno.ETIMEDOUT: BACK,
    errno.ENOSPC: "free some space and run the same command to go on; nothing finished is lost",
    errno.EDQUOT: "free some space and run the same command to go on; nothing finished is lost",
    errno.EACCES: "choose an --out you can write to",
    errno.EPERM: "choose an --out you can write to",
    errno.EROFS: "choose an --out you can write to",
    errno.ENOTDIR: "a file is in the way; choose another folder",
    errno.EEXIST: "a file is in the way; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter --out",
}
COMPLETION = "--tyro-"
SHELLS = ("bash", "zsh", "tcsh", "fish")
# Whose choices are the user's to know; engines and storage speak as generate.
SPOKEN = ("generate", "adapt", "models", "data", "train", "search", "poc")


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For imports of seconds: what torch and diffusers bring stays to the end, and is not looked through for garbage.

    Importing what stablerep-gen needs took 5.8 s so, not 7.9, and the end of the process 0.3 s, not 1.8.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _spoken_log() -> Iterator[None]:
    """What commands say of their choices and of long waits, on stderr."""
    logs, handler = [logging.getLogger(f"stablerep.{room}") for room in SPOKEN], logging.StreamHandler()
    levels = [log.level for log in logs]
    for log in logs:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.removeHandler(handler)
            log.setLevel(level)


def run_command(name: str, run: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> None:
    # Before torch loads OpenMP. Its threads spin for milliseconds by default and starve whoever shares the cores: two
    # trainings on two cores made 101 + 104 images/s, with this 295 + 292; one alone 573 and 536.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if argv is None and _address_space() is not None:
        _outlive(name)
    argv = sys.argv[1:] if argv is None else argv
    if list(argv) == ["--version"]:
        print(f"stablerep {__version__}")
        return
    try:
        if argv and argv[0] == f"{COMPLETION}print-completion":  # tyro asserts
            check_choice(argv[0], argv[1] if len(argv) > 1 else "", SHELLS)
        with _spoken_log():
            run(argv)
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        says_so = isinstance(error, UserError) and "memory" in str(error)
        if _ran_out_of_memory(cause) and not says_so:
            _stop(name, _memory_line(" ".join(str(cause).split())[:200]))
        if isinstance(error, UserError):
            _stop(name, str(error))
        if isinstance(error, OSError) and error.errno in MENDS:
            _stop(name, f"{error.strerror}: {error.filename or '--out'}; {MENDS[error.errno]}")
        raise


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says so, in the words of torch, of the loader of libraries, or of the system."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and OUT_OF_MEMORY_TEXTS.search(str(error)) is not None
    )


def _memory_line(reason: str) -> str:
    """The last line of a command that had too little memory."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    has = f"the machine has {most / 1e9:.1f} GB"
    if (limit := _address_space()) is not None:
        has += f", and ulimit -v leaves {limit / 1e9:.1f} GB of addresses, of which libraries alone take about 4"
    return (
        f"out of memory ({reason or 'no more can be had'}); {has}: raise the limit, or take a smaller --batch-size or "
        "model; nothing finished is lost"
    )


def _address_space() -> int | None:
    """Bytes that a process may map (ulimit -v); None: as many as it likes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def _outlive(name: str) -> None:
    """Go on in a child, and say in its place why it died.

    A C++ library that gets no memory while it is loaded, or in a thread of its own, aborts the process: nothing in it
    can speak any more. Only where addresses are limited: elsewhere the system itself would have to kill us.
    """
    child = os.fork()
    if not child:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if -code in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        _stop(name, _memory_line(f"a library ended the process with {signal.Signals(-code).name}"))
    sys.exit(code if code >= 0 else 128 - code)


def _stop(name: str, message: str) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)
