"""Which Python runs a command: `.venv`'s, where the one that was found on the PATH lacks the project's packages.

The stages' commands in dvc.yaml say `python3`, which is another one where `.venv` is not activated, as in
`.venv/bin/dvc repro`. Nothing but the standard library is imported here, and no syntax is new: any Python 3 reads it.
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
    """Starts this process's `python -m` command again under `.venv`, if packages are missing here; else does nothing.

    `.venv` is looked for beside this file's folder and, of a run in a copy of the repository, in the main one.
    A process that is no `python -m` command, such as a notebook, is left alone.

    Raises: SystemExit with one line where there is no `.venv` that could help.
    """
    if sys.argv[:1] != ["-m"]:  # what it holds while the module of `python -m` is looked for
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
