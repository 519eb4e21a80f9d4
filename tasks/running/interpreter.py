"""Runs a command under `.venv`'s Python where the Python that was found lacks the project's packages.

The stages' commands in dvc.yaml say `python3`. Where `.venv` is not activated, as in `.venv/bin/dvc repro`, that is
another Python. This file uses only the standard library and old syntax, so that every Python 3 can read it.
"""

import os
import sys
from importlib.util import find_spec

PACKAGES = ("ruamel", "pydantic", "psutil", "torch", "transformers", "trl", "peft", "datasets", "mlflow", "dvc")
MISSING = """\
error: {python} lacks packages of this project: {names}
`make repro` sets up .venv and runs everything; a single command needs `source .venv/bin/activate` first
"""


def use_own(packages=PACKAGES):  # type: ignore[no-untyped-def]  # older Pythons read this too
    """Starts this process's `python -m` command again under `.venv` if packages are missing here; else does nothing.

    `.venv` is looked for in this repository and, when that is a temporary copy, in the main one. A process that was not
    started by `python -m`, such as a notebook, is left alone.

    Raises: SystemExit with one line where no `.venv` can help.
    """
    if sys.argv[:1] != ["-m"]:  # its value while Python looks for the module of `python -m`
        return
    missing = [name for name in packages if find_spec(name) is None]
    if not missing:
        return
    words = getattr(sys, "orig_argv", None)  # from Python 3.10 on
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for folder in (here, os.environ.get("DVC_ROOT", here)):
        venv = os.path.join(folder, ".venv")
        python = os.path.join(venv, "bin", "python")
        if words and os.access(python, os.X_OK) and os.path.realpath(venv) != os.path.realpath(sys.prefix):
            sys.stdout.flush()
            os.execv(python, [python] + words[1:])
    sys.stderr.write(MISSING.format(python=sys.executable, names=", ".join(missing)))
    sys.exit(1)
