"""The stages: one small file each, which reads inputs, calls `rarlhf`, and writes outputs."""

from tasks.running.interpreter import use_own

use_own()
