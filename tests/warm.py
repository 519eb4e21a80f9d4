"""A `python3` for tests that start many commands: they fork from a process that has imported the large libraries.

A stage of the pipeline works for a second on a tiny model, and imports torch, transformers, trl and MLflow for several.
`WarmPython` starts one process that imports them, and puts a `python3` into a folder for PATH. That `python3 -m MODULE`
asks the process to fork, and the fork becomes the command: its folder, environment, arguments, streams, module search
and exit status are those of a process of its own, and it ends as one does. Nothing of this project is imported before
the fork, and no random numbers are shared.

So that nothing rests on what was imported before, a module's first command may run under the real Python.
"""

import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = (
    "dvc.cli",
    "dvc.commands.repro",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking.client",
    "numpy.random",
    "pandas",
    "peft",
    "scipy.stats",
    "torch",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.trainer",
    "trl.trainer.sft_trainer",
)
# `python3 -m MODULE ...`: run by a Python that reads no settings and no packages, so that it starts at once.
CLIENT = """\
import json, os, signal, socket, sys
python, address, seen = {python!r}, {address!r}, {seen!r}
words = sys.argv[1:]
warm = len(words) > 1 and words[0] == "-m"
if warm and seen:
    try:
        os.close(os.open(os.path.join(seen, words[1]), os.O_CREAT | os.O_EXCL))
        warm = False
    except FileExistsError:
        pass
if not warm:
    os.execv(python, [python, *words])
asked = json.dumps([words[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(address)
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    told = server.recv(4)
if not told:
    sys.exit("the process that forks commands has ended")
status = int.from_bytes(told, "big", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextmanager
def warm_python(
    environment: Mapping[str, str], libraries: Sequence[str] = LIBRARIES, first_real: bool = True
) -> Iterator[Path]:
    """A folder for PATH whose `python3` forks. The process that it asks has this environment and ends with the context.

    Args:
        libraries: what is imported before; numpy.random is among them.
        first_real: whether each module's first command runs under the real Python.
    """
    with tempfile.TemporaryDirectory() as name:  # a short path, as the addresses of sockets must be
        folder, address = Path(name), f"{name}/address"
        (folder / "seen").mkdir()
        (folder / "bin").mkdir()
        seen = f"{name}/seen" if first_real else ""
        client = folder / "client.py"
        client.write_text(CLIENT.format(python=sys.executable, address=address, seen=seen))
        command = folder / "bin" / "python3"
        command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(client)])} "$@"\n')
        command.chmod(0o755)
        own = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            words = [sys.executable, "-P", __file__, str(listener.fileno()), str(command), *libraries]
            with subprocess.Popen(words, stdin=subprocess.PIPE, env=own, pass_fds=[listener.fileno()]) as process:
                yield folder / "bin"
                process.communicate()  # it ends as its standard input is closed


def serve(listener: socket.socket, libraries: Sequence[str]) -> socket.socket:
    """Forks a process for each command that is asked for; returns, in that process, where it was asked from."""
    for name in libraries:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that forks share its memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for commands
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return connection
        connection.close()


def forked(connection: socket.socket) -> list[str]:
    """Forks the command, which goes on with its words; this process tells its exit status and ends."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    words, folder, environment = json.loads(asked)
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        os._exit(0)
    connection.close()
    become(folder, environment, streams)
    return words


def become(folder: str, environment: Mapping[str, str], streams: Sequence[int]) -> None:
    """Takes a command's folder, environment, module search and streams, and random numbers of its own."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.modules["numpy"].random.seed()  # `random` does so by itself


if __name__ == "__main__":
    command = sys.argv[2]
    module, *arguments = forked(serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:]))
    sys.executable = command  # what it starts forks too
    sys.orig_argv = [command, "-m", module, *arguments]
    sys.argv = ["-m", *arguments]  # as it is while Python looks for the module
    runpy.run_module(module, run_name="__main__", alter_sys=True)
