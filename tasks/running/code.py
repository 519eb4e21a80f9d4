"""The part of the code that can decide a result: without comments, docstrings and texts for people.

Stages depend on this part, so that a reworded text makes nothing run again. Texts for people are those of raised
errors, lines that `say` and `log` print, and private constants that only such places read. So what an error, `say` or
`log` is given must have no effect of its own.
"""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rarlhf.config.errors import UserError

FOLDER = Path("data/modules")  # where stage `code` puts it
KINDS = (".py", ".j2", ".js")
SPEAKING = ("say", "log")  # methods that print a line


class _Silent(ast.NodeTransformer):
    """Takes out docstrings, the texts of raised errors, and calls that only print a line."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]  # statements that hold others need one at least
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:  # noqa: N802, the name that ast looks for
        call = node.value
        if isinstance(call, ast.Constant) and isinstance(call.value, str):
            return None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in SPEAKING:
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:  # noqa: N802
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func, cause=node.cause)
        return node


@cache  # a stage compares its code at its start and at its end
def silent(source: str) -> str:
    """A module's source without whatever only speaks to a reader, in one fixed layout.

    Raises: SyntaxError if it is not Python.
    """
    tree = _Silent().visit(ast.parse(source))
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    tree.body = [node for node in tree.body if not _is_unread_text(node, read)]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _is_unread_text(node: ast.stmt, read: Iterable[str]) -> bool:
    """Whether a statement gives a private name a text that nothing else reads."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
        return False
    text = isinstance(node.value, ast.JoinedStr) or (
        isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    name = node.targets[0].id
    return text and name.startswith("_") and name not in read


def silent_file(path: Path) -> str:
    """What stages depend on of a file: a module as `silent` gives it, a template or a script as it is.

    Raises: UserError if it cannot be read as UTF-8, or as Python.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return silent(text) if path.suffix == ".py" else text
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}; mend the code") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); mend or delete it") from error


def code_files(root: Path) -> list[Path]:
    """Modules, templates and scripts at or below `root`, without an editor's hidden files."""
    found = [root] if root.is_file() else sorted(root.rglob("*"))
    return [path for path in found if path.suffix in KINDS and not path.name.startswith(".") and path.is_file()]


def write_silent(root: Path, folder: Path) -> None:
    """Writes every module, template and script below `root` to `folder` as `silent_file` gives it.

    Raises: UserError as `silent_file`.
    """
    for path in code_files(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(silent_file(path), encoding="utf-8", newline="\n")


def refuse_edited(dependencies: Iterable[str]) -> None:
    """Refuses to go on where the code is no longer what stage `code` has copied; DVC would record the copy.

    Args:
        dependencies: paths of a stage; those of copied code are compared.
    Raises: UserError naming the first file that differs.
    """
    for copy in (Path(path) for path in dependencies if Path(path).is_relative_to(FOLDER)):
        now = {path: silent_file(path) for path in code_files(copy.relative_to(FOLDER))}
        then = {path.relative_to(FOLDER): path.read_text(encoding="utf-8") for path in code_files(copy)}
        for path in sorted(now.keys() | then.keys()):
            if now.get(path) != then.get(path):
                raise UserError(f"{path} was edited after stage code had copied it; run `dvc repro --force code` first")
