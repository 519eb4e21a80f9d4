"""The part of a module that can decide a result: its code without comments, docstrings and texts for people.

Stages depend on this, so that a reworded error or docstring makes nothing run again.
"""

import ast
from pathlib import Path

SPEAKING = ("say", "log")  # methods that print a line


class _Silent(ast.NodeTransformer):
    """Removes docstrings, the texts of raised errors, and calls that only print a line."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:  # noqa: N802, the name that ast looks for
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Pass()
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in SPEAKING:
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:  # noqa: N802
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func, cause=node.cause)
        return node


def silent(source: str) -> str:
    """A module's source without what is only for readers, in one fixed layout."""
    tree = ast.fix_missing_locations(_Silent().visit(ast.parse(source)))
    return ast.unparse(tree) + "\n"


def write_silent(root: Path, folder: Path) -> None:
    """Writes every module below `root` to `folder` as `silent` returns it, and other files as they are."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            target.write_text(silent(text) if path.suffix == ".py" else text, encoding="utf-8", newline="\n")
