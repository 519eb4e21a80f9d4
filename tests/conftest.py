"""What all tests share."""

import signal

# A shell's background jobs inherit a SIGINT that is ignored; the processes that tests start and interrupt must heed it.
signal.signal(signal.SIGINT, signal.default_int_handler)
