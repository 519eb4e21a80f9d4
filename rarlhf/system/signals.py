"""Holds SIGINT and SIGTERM back until a training has saved its state."""

import signal
from threading import current_thread, main_thread
from types import FrameType, TracebackType

from rarlhf.system.distributed import World

HELD = (signal.SIGINT, signal.SIGTERM)


class HeldSignals:
    """A context that notes the first SIGINT or SIGTERM and lets it act at its end; a second one acts at once.

    The signal then does what it would have done without the context. If its handler returns, KeyboardInterrupt is
    raised. Outside the main thread, and where a signal is ignored, nothing is held.

    Attributes:
        number: the signal that was noted, None while there was none.
    """

    def __init__(self, world: World | None = None) -> None:
        self.number: int | None = None
        self._world = world or World()
        self._handlers: dict[int, signal._HANDLER] = {}

    def asked(self) -> bool:
        """Whether any of the processes has noted a signal; all of them must ask."""
        self.number = int(self._world.max(self.number or 0)) or None
        return self.number is not None

    def __enter__(self) -> "HeldSignals":
        if current_thread() is main_thread():
            found = {number: signal.getsignal(number) for number in HELD}
            self._handlers = {n: handler for n, handler in found.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._handlers:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        if error is None and self.number is not None:
            signal.raise_signal(self.number)
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
