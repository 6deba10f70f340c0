# SPDX-License-Identifier: GPL-2.0-only
"""Make mutants of the logic: every function changed in one place, every constant, every row of the bit tables.

mutmut makes the changes of functions, by its own operators and a few of the same form that it lacks: an operand or
a statement dropped, a test forced, a mask taken for its neighbour.  Only its mutator is used.  Its runner, like
cosmic-ray's, gives a mutant one run of a test suite and one verdict; what is asked here is which case kills which
mutant in which revision.  Its operators that make code that mypy refuses (None for a value, an argument left out)
are left out.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper
from mutmut.mutation import mutators
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.pragma_handling import IgnoredCode

from kvm_pf.proof.mutants import MODULES, Mutant, reached
from kvm_pf.revisions.link import global_names

# --- functions ---


def operand(node: cst.BinaryOperation | cst.BooleanOperation) -> Iterator[cst.BaseExpression]:
    """Keep one operand alone, in the parentheses of both."""
    for side in (node.left, node.right):
        yield side.with_changes(lpar=[*node.lpar, *side.lpar], rpar=[*side.rpar, *node.rpar])


def forced_test(node: cst.If) -> Iterator[cst.If]:
    """Take a branch always, or never."""
    yield from (node.with_changes(test=cst.Name(answer)) for answer in ("True", "False"))


def dropped_statement(node: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """Leave a statement out."""
    if not isinstance(node.body[0], (cst.Return, cst.Expr)):
        yield node.with_changes(body=[cst.Pass()])


def number_below(node: cst.Integer) -> Iterator[cst.BaseExpression]:
    """One less; mutmut's own operator gives one more."""
    less = node.evaluated_value - 1
    yield node.with_changes(value=str(less)) if less >= 0 else cst.parse_expression(f"({less})")


def neighbours(scope: dict[str, Any]) -> Any:
    """Make an operator that takes a constant for the next one in its family: same first word, next in value."""

    def neighbour(node: cst.Name) -> Iterator[cst.Name]:
        name = node.value
        if not name.isupper() or type(scope.get(name)) is not int:
            return
        values = {
            n: v
            for n, v in scope.items()
            if n.isupper() and type(v) is int and n.split("_")[0] == name.split("_")[0]
        }
        below = [(v, n) for n, v in values.items() if v < values[name]]
        above = [(v, n) for n, v in values.items() if v > values[name]]
        yield from (cst.Name(n) for _, n in (*sorted(below)[-1:], *sorted(above)[:1]))

    return neighbour


def _operators(scope: dict[str, Any]) -> list[tuple[type, Any]]:
    return [
        (cst.BaseNumber, mutators.operator_number),
        (cst.Name, mutators.operator_name),
        (cst.UnaryOperation, mutators.operator_remove_unary_ops),
        (cst.AugAssign, mutators.operator_augmented_assignment),
        (cst.CSTNode, mutators.operator_keywords),
        (cst.CSTNode, mutators.operator_swap_op),
        (cst.IfExp, mutators.operator_if_exp),
        (cst.BinaryOperation, operand),
        (cst.BooleanOperation, operand),
        (cst.If, forced_test),
        (cst.SimpleStatementLine, dropped_statement),
        (cst.Integer, number_below),
        (cst.Name, neighbours(scope)),
    ]


def function_mutants(module: ModuleType) -> Iterator[Mutant]:
    """Yield the mutants of a module's functions, as far as a revision's path reaches them."""
    scope = vars(module)
    wrapper = MetadataWrapper(cst.parse_module(inspect.getsource(module)))
    visitor = MutationVisitor(_operators(scope), IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    seen: dict[str, set[str]] = {}
    for mutation in visitor.mutations:
        node = mutation.contained_by_top_level_function
        if not isinstance(node, cst.FunctionDef) or not isinstance(
            origin := scope.get(node.name.value), FunctionType
        ):
            continue
        if origin.__code__ not in reached():
            continue
        new = deep_replace(node, mutation.original_node, mutation.mutated_node)
        old_text, text = (cst.Module([n.with_changes(leading_lines=[])]).code for n in (node, new))
        kind = ast.dump(ast.parse(text))
        if kind in seen.setdefault(origin.__name__, {ast.dump(ast.parse(old_text))}):
            continue
        seen[origin.__name__].add(kind)
        place, change = _first_difference(old_text.splitlines(), text.splitlines())
        line = origin.__code__.co_firstlineno + place
        made = compile(
            text, f"<mutant of {origin.__name__}>", "exec", __future__.annotations.compiler_flag, True
        )
        exec(made, own := dict(scope))
        yield Mutant(
            _short(module), origin.__name__, line, change, {origin.__name__: own[origin.__name__]}, origin
        )


def _first_difference(old: Sequence[str], new: Sequence[str]) -> tuple[int, str]:
    place = next(n for n, (a, b) in enumerate(zip(old, [*new, ""], strict=False)) if a != b)
    return place, f"{old[place].strip()} → {new[place].strip() if place < len(new) else ''}"


def _short(module: ModuleType) -> str:
    return module.__name__.removeprefix("kvm_pf.")


# --- numbers ---


@cache
def _used() -> frozenset[str]:
    """The names that the path's functions load."""
    return frozenset(name for code in reached() for name in global_names(code))


def constant_mutants(module: ModuleType) -> Iterator[Mutant]:
    """Yield the mutants of a module's constants that the path uses: numbers by one or by a bit, records by field."""
    for statement in ast.parse(inspect.getsource(module)).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        for target in [
            t for group in targets for t in (group.elts if isinstance(group, ast.Tuple) else [group])
        ]:
            if isinstance(target, ast.Name) and target.id in _used():
                value = getattr(module, target.id)
                for change, other in _others(value):
                    yield Mutant(_short(module), target.id, target.lineno, change, {target.id: other})


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a constant could be by mistake, and that in words."""
    if type(value) is bool:
        yield f"{value} → {not value}", not value
    elif type(value) is int:
        around = [value + 1, value - 1]
        if value > 8:  # a mask or a bit: moved, one bit fewer, one more
            lowest = value & -value
            around = [value << 1 & (1 << 64) - 1, value >> 1, value & ~lowest, value | lowest << 1, value ^ 1]
        for other in dict.fromkeys(around):
            if other != value:
                yield f"{_spelled(value)} → {_spelled(other)}", other
    elif isinstance(value, tuple) and hasattr(value, "_replace"):
        for name in value._fields:
            for change, other in _others(getattr(value, name)):
                yield f"{name}: {change}", value._replace(**{name: other})


def _spelled(number: int) -> str:
    return hex(number) if number > 9 else str(number)


def bit_mutants(module: ModuleType) -> Iterator[Mutant]:
    """Yield the mutants of the bit tables: each row's bit moved by one, with all masks that follow from it.

    Rows of which the path uses no mask are only read by people.
    """
    tree = ast.parse(inspect.getsource(module))
    for row in ast.walk(tree):
        match row:
            case ast.Call(ast.Name("Bit"), [ast.Constant(int(bit)) as place, ast.Constant(name), *_]):
                for other in (bit + 1, bit - 1) if bit else (1,):
                    place.value = other
                    scope: dict[str, Any] = {"__name__": module.__name__}
                    exec(compile(tree, "<mutant of the bits>", "exec"), scope)
                    now = {n: v for n, v in scope.items() if type(v) is int and v != getattr(module, n)}
                    if not _used().isdisjoint(now):
                        yield Mutant(
                            _short(module), f"bit {name or bit}", row.lineno, f"{bit} → {other}", now
                        )
                place.value = bit


def mutants(modules: Sequence[str] = MODULES) -> list[Mutant]:
    """Make all mutants of some modules."""
    made: list[Mutant] = []
    for short in modules:
        module = importlib.import_module(f"kvm_pf.{short}")
        made += (
            bit_mutants(module) if short == "bits" else [*function_mutants(module), *constant_mutants(module)]
        )
    return made
