# SPDX-License-Identifier: GPL-2.0-only
"""Find the lines of a notebook that make a value: the statements that it depends on, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def lines_for(expression: str, cells: Sequence[str]) -> str:
    """Return the statements of code cells, in order, that `expression` depends on after them; it comes last.

    A statement is wanted if it binds a name that is wanted, or changes what such a name stands for: an assignment to
    a part of it, or a call of one of its methods that stands alone.  What is only asserted is left out, and of an
    import, the names that nobody wants.  Cells that are no plain Python are passed over.
    """
    statements = [statement for cell in cells for statement in _statements(cell)]
    first = {each.id for each in _names(ast.parse(expression))}
    late: set[str] = (
        set()
    )  # what functions need when they are called, which may be bound after them, and again
    while True:
        kept = list(_needed(statements, first, late))
        found = {
            name
            for each in kept
            if isinstance(each, ast.FunctionDef | ast.ClassDef)
            for name in _loaded(each)
        }
        if found <= late:
            return "\n".join([*map(ast.unparse, reversed(kept)), expression])
        late |= found


def _needed(
    statements: Sequence[ast.stmt], first: AbstractSet[str], late: AbstractSet[str]
) -> Iterator[ast.stmt]:
    """Yield the statements that are wanted for some names, the last one first."""
    modules = {bound for each in statements if _is_import(each) for bound in _bound(each)}
    wanted = first | late
    for statement in reversed(statements):
        bound = _bound(statement)
        changed = _changed(statement) - modules
        if isinstance(statement, ast.Assert) or wanted.isdisjoint(bound | changed):
            continue
        if isinstance(statement, ast.Import):
            statement = ast.Import([each for each in statement.names if _alias(each) in wanted])
        elif isinstance(statement, ast.ImportFrom):
            names = [each for each in statement.names if _alias(each) in wanted]
            statement = ast.ImportFrom(statement.module, names, statement.level)
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.ClassDef) or _is_import(
            statement
        ):
            wanted = wanted - (bound - late)  # whatever stood there before is gone
        wanted = wanted | _loaded(statement)
        yield statement


def shown_still(cell: str) -> str:
    """Return the expression whose `.static()` a code cell ends with: what it shows the still twin of; "" if none."""
    match _statements(cell)[-1:]:
        case [ast.Expr(ast.Call(ast.Attribute(value)) as call)] if _is_still(call):
            return ast.unparse(value)
    return ""


def _is_still(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "static"


def _statements(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:
        return []


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _alias(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _names(node: ast.AST, inner: frozenset[str] = frozenset()) -> Iterator[ast.Name]:
    """Yield the names in a node, but for those that a comprehension or a lambda has for itself."""
    if isinstance(node, Comprehension):
        targets = [each for part in node.generators for each in ast.walk(part.target)]
        inner |= {each.id for each in targets if isinstance(each, ast.Name)}
    elif isinstance(node, ast.Lambda | ast.FunctionDef):
        inner |= {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
    elif isinstance(node, ast.Name) and node.id not in inner:
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _names(child, inner)


def _loaded(statement: ast.stmt) -> set[str]:
    return {each.id for each in _names(statement) if isinstance(each.ctx, ast.Load)}


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {_alias(each) for each in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {each.id for each in _names(statement) if isinstance(each.ctx, ast.Store)}


def _changed(statement: ast.stmt) -> set[str]:
    """The names of which a statement changes a part, or calls a method for what that does."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(_root(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _is_still(node.value):
            found.add(_root(node.value.func))
    return found - {""}


def _root(node: ast.expr) -> str:
    """The name that a chain of attributes, places and calls begins with; "" if it begins with none."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
