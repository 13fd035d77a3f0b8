"""A process that has loaded everything and forks a command at a time: real processes to kill, without the imports.

It reads one JSON table per line. `{"args", "cwd", "out", "err", "limit"}` starts a command; its pid is the answer.
`{"wait": pid, "timeout": s}` is answered with its exit code (negative for a signal), or null while the command goes on.
Nothing is trained before a fork, as PyTorch's threads of the backward pass do not survive one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from PIL import Image


def preload() -> None:
    """Import what a run needs, and load the model and the judges."""
    import matplotlib.figure
    import peft.tuners.lora  # noqa: F401

    import opdbench.commands.run
    import opdbench.commands.variance
    import opdbench.evaluation.model_scores
    import opdbench.evaluation.standalone
    import opdbench.leaderboards.page.report
    import opdbench.runs.job_graph
    import opdbench.runs.trainer
    import opdbench.variance.measure  # noqa: F401
    from opdbench.cli import main  # noqa: F401
    from opdbench.environment import quiet_libraries
    from opdbench.runs.runner import _loaded

    quiet_libraries()
    matplotlib.use("agg")
    for judges in ((("preference", "preference"), ("ocr", "ocr")), ()):
        _, evaluators = _loaded("tiny", 0, judges)
        for judge in evaluators.values():
            prompt = judge.prompts("test")[0]
            judge.score([Image.new("RGB", (64, 64), "white")], [prompt])


def become(ask: dict) -> None:
    """Do the command in this new process, and end it."""
    from opdbench.cli import main

    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(ask[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if ask.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (ask["limit"], ask["limit"]))
    os.chdir(ask["cwd"])
    sys.argv = ["opdbench", *ask["args"]]
    code = 70  # what is left if the command raises
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except Exception:  # noqa: BLE001  # as the interpreter does at the end of a program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited(pid: int, timeout: float) -> int | None:
    """Exit code of a command; None if it goes on."""
    end = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def serve() -> None:
    """Answer until the input ends."""
    preload()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": str(Path.cwd())}), file=answers, flush=True)
    while line := sys.stdin.readline():
        ask = json.loads(line)
        if "wait" in ask:
            print(json.dumps({"code": waited(ask["wait"], ask["timeout"])}), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            become(ask)
        print(json.dumps({"pid": pid}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
