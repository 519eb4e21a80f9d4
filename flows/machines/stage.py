"""The flow `rarlhf-stage`, which a worker of a pool runs in its machine's clone: one stage for a run elsewhere."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.machines.clone import ready, refuse
from flows.machines.request import Request
from flows.machines.results import send
from flows.machines.server import FLOW, MAY_PASS, said_of
from flows.running.devices import Shares, stage_shares
from flows.running.processes import Processes
from flows.running.reproduce import PassingTrouble, Repro, StageError, reproduce
from flows.serving.workspace import hold_workspace
from rarlhf.config.errors import PassingError, UserError
from rarlhf.config.load import load_params

REFUSED = "Refused"  # the name of a failed stage's state where this machine does not run it
WATCH_SECONDS = 1.0  # between two looks at whether the worker is still there


@flow(name=FLOW, log_prints=False)
def rarlhf_stage(request: Request) -> State[Any]:
    """Runs one stage with the values and inputs of a request, and sends what it made to the remote.

    Args:
        request: the stage and all that decides its bytes.
    """
    here = f"{socket.gethostname()}:{Path.cwd()}"

    def say(text: str) -> None:
        get_run_logger().info("%s%s", said_of(request.stage), text)

    say(f"on {here}")
    with hold_workspace(say) as held, _ends_with_worker(), Processes([held]) as processes:
        try:
            refuse(request)
        except UserError as error:
            return Failed(name=REFUSED, message=f"{here} refuses {request.stage}: {error}")
        try:
            with ready(request):
                share = Shares(stage_shares(load_params(), 1))
                ended = reproduce(request.stage, Repro(request.force, None, processes, share), say)
                say(f"{send(request.remote, request.stage)} files sent to remote {request.remote}")
        except (PassingTrouble, PassingError) as error:
            return Failed(name=MAY_PASS, message=f"on {here}: {error}")
        except (StageError, UserError) as error:
            return Failed(message=f"on {here}: {error}")
    return Completed(name=ended.value)


@contextmanager
def _ends_with_worker() -> Iterator[None]:
    """Ends this process in good order when its worker is gone: the run that asked gives the stage to another machine.

    Prefect would let it go on, unseen and out of reach of a cancellation.
    """
    worker, over = os.getppid(), Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if os.getppid() != worker:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
