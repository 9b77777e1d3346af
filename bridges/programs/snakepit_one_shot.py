"""The worker of ``OneShotAdapter``: the command ``run`` starts a program, waits for its end and tells the outcome."""

import subprocess

from snakepit_bridge import command, context, on_start

SHOWN_BYTES = 2000
"""How much of its output an error shows."""


@on_start
def begin(encoding, check):
    context().worker_state.update(encoding=encoding, check=check)


class NoText(Exception):
    """The program wrote bytes where text was expected."""


class Failed(Exception):
    """The program ended with an exit status other than 0."""

    data = None


@command
def run(argv, input):
    encoding = context().worker_state["encoding"]
    if isinstance(input, str):
        input = input.encode(encoding or "utf-8")
    # Its standard input is empty without an input, not the worker's.
    done = subprocess.run(argv, input=input or b"", stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    outputs = {"stdout": done.stdout, "stderr": done.stderr}
    if done.returncode and context().worker_state["check"]:
        shown = (done.stderr.strip() or done.stdout.strip() or b"it wrote nothing")[-SHOWN_BYTES:]
        words = shown.decode(encoding or "utf-8", "replace")
        error = Failed("%s: exit status %d: %s" % (argv[0], done.returncode, words))
        error.data = {"exit_code": done.returncode}
        raise error
    if encoding is not None:
        outputs["stderr"] = done.stderr.decode(encoding, "replace")
        try:
            outputs["stdout"] = done.stdout.decode(encoding)
        except UnicodeDecodeError as error:
            words = "the output of %s is not %s text (%s); encoding=None gives it as bytes"
            raise NoText(words % (argv[0], encoding, error)) from None
    return {"exit_code": done.returncode, **outputs}
