"""The command line, called as its entry point does, in this process (quick) or in one of its own (to be killed)."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

WORDS = (sys.executable, "-c", "from opdbench.cli import main; main()")
"""`opdbench`, whichever environment this is; its arguments follow."""


@dataclass(frozen=True)
class Done:
    """What a person sees."""

    returncode: int
    stdout: str
    stderr: str


def opdbench(*args, cwd=None) -> Done:
    """Run a command here: without the seconds that a new process needs to import torch."""
    from opdbench.cli import main

    out, err, home = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd or home)
    try:
        with redirect_stdout(out), redirect_stderr(err), mock.patch("sys.argv", ["opdbench", *map(str, args)]):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        return Done(code, out.getvalue(), err.getvalue())
    finally:
        os.chdir(home)


def apart(*args, **kwargs) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    return subprocess.run([*WORDS, *map(str, args)], capture_output=True, text=True, timeout=280, **kwargs)
