# SPDX-License-Identifier: GPL-2.0-only
"""A step or a constant of the path as text that somebody may edit, and back.

A step is read, checked, and stopped if it does not return.

The text is compiled and run as Python on the machine of whoever typed it, and may say no more than steps of the path
say themselves: assignments, `if`, `while`, `return`, arithmetic, and calls of other steps.  That is what all engines
understand; it is no fence against somebody who means harm.  A constant is one line, NAME = a whole number.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import linecache
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from dis import Instruction, get_instructions, stack_effect
from itertools import count, pairwise
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import one_line, write_number
from kvm_pf.common.typed import typed
from kvm_pf.patch.diff import source_lines
from kvm_pf.proof.case import WAYS
from kvm_pf.proof.mutants import ENTRIES
from kvm_pf.revisions import REVISIONS, Revision, get, logic_names, path_modules
from kvm_pf.run.inputs import U64_MAX

LONGEST = 20_000
"""Characters of a step that are read."""

LARGEST = 4096
"""Bits of a number, and items of a tuple, that a step may have."""

TOO_MUCH = f"could be too much: * takes a number up to {LARGEST} on one side"

SECONDS = 1.0
"""A step that has not returned by then does not end."""

clock = getattr(time, "thread_time", time.process_time)
"""Time of the processor: on a busy machine a step has as long as on an idle one."""

MADE_OF = (
    ast.Add, ast.And, ast.AnnAssign, ast.Assign, ast.Attribute, ast.AugAssign, ast.BinOp, ast.BitAnd,
    ast.BitOr, ast.BitXor, ast.BoolOp, ast.Break, ast.Call, ast.Compare, ast.Constant, ast.Continue, ast.Eq,
    ast.Expr, ast.FloorDiv, ast.Gt, ast.GtE, ast.If, ast.IfExp, ast.In, ast.Invert, ast.keyword, ast.Load,
    ast.LShift, ast.Lt, ast.LtE, ast.Mod, ast.Mult, ast.Name, ast.Not, ast.NotEq, ast.NotIn, ast.Or,
    ast.Pass, ast.Return, ast.RShift, ast.Store, ast.Sub, ast.Tuple, ast.UAdd, ast.UnaryOp, ast.USub,
    ast.While,
)  # fmt: skip
"""What a step may be made of."""

OF_CONSTANTS = (
    ast.Add, ast.BinOp, ast.BitAnd, ast.BitOr, ast.BitXor, ast.Constant, ast.Invert, ast.Load, ast.LShift, ast.Name,
    ast.RShift, ast.Sub, ast.UnaryOp, ast.USub,
)  # fmt: skip
"""What the value of a constant may be made of."""

BUILTINS = ("bool", "int", "max", "min")
"""The functions of Python's own that a step may call."""

OF_FUNCTIONS = (*BUILTINS, "abs", "isinstance", "len", "str")
"""Those that a step may call which is given as a function: besides, what the path's own step of that name calls."""

OUT_OF_PLACE = {
    "IMPORT_": "an import", "LOAD_BUILD_CLASS": "a class", "LOAD_SUPER_ATTR": "a class", "PUSH_EXC_INFO": "try or with",
    **dict.fromkeys(
        ("DELETE_ATTR", "DELETE_GLOBAL", "DELETE_NAME", "DELETE_SUBSCR", "STORE_ATTR", "STORE_GLOBAL", "STORE_NAME",
         "STORE_SUBSCR"), "what changes something outside of it",
    ),
    "BUILD_LIST": "a list", "BUILD_SET": "a set", "BUILD_MAP": "a dict", "BUILD_CONST": "a dict",
    "BUILD_STRING": "an f-string", "BUILD_TEMPLATE": "a t-string", "FORMAT_": "an f-string",
    "RETURN_GENERATOR": "a generator",
}  # fmt: skip
"""Instructions, by their first letters, that no function for a step may have, and what they are part of.

By these it changes, or fetches, what is not its own, catches what would stop it, or makes what is not watched.
"""

_WORDS = {
    "FunctionDef": "a function in the function", "AsyncFunctionDef": "an async function", "ClassDef": "a class",
    "Import": "an import", "ImportFrom": "an import", "For": "a for loop", "Try": "try", "Raise": "raise",
    "With": "with", "Lambda": "a lambda", "Global": "global", "Nonlocal": "nonlocal", "Assert": "assert",
    "Delete": "del", "JoinedStr": "an f-string", "Dict": "a dict", "List": "a list", "Set": "a set",
    "Subscript": "an index", "Pow": "**", "Div": "/ (// divides whole numbers)", "Starred": "*",
    "Is": "is", "IsNot": "is not", "Match": "match", "NamedExpr": ":=", "Yield": "yield",
    "Await": "await", "ListComp": "a comprehension", "GeneratorExp": "a comprehension", "MatMult": "@",
}  # fmt: skip

_numbers = count(1)


class DoesNotEnd(InputError):
    """A changed step does not return."""


@typed()
def steps(revision: str | Revision = "posted") -> list[str]:
    """List the steps of the path in a revision: every function that a way in leads to, in the order of first use.

    Raises InputError if there is no such revision.
    """
    revision = get(revision)
    known = {**logic_names(), **revision.names}
    return [each.__name__ for each in _behind_all(revision) if each.__name__ in known]


@typed()
def constants(revision: str | Revision = "posted") -> list[str]:
    """List the constants that steps of a revision name, such as masks of flags, by name.

    Raises InputError if there is no such revision.
    """
    revision = get(revision)
    known = {**logic_names(), **revision.names}
    named = {name for each in _behind_all(revision) for name in each.__code__.co_names}
    return sorted(name for name in named if type(known.get(name)) is int)


def _behind_all(revision: Revision) -> list[FunctionType]:
    """The functions that all ways in lead to, in the order of first use, each name once."""
    found: dict[str, FunctionType] = {}

    def note(function: FunctionType) -> FunctionType:
        found.setdefault(function.__name__, function)
        return function

    for entry in ENTRIES:
        revision.link(WAYS[entry].row if entry in WAYS else entry, note)
    return list(found.values())


@typed()
def step_text(name: str, revision: str | Revision = "posted") -> str:
    """Return the source of a step as a revision has it, without its docstring; of a constant, NAME = its value.

    Raises InputError if there is no such revision, step or constant.
    """
    value = get(revision).step(name)
    if isinstance(value, int):
        return f"{name} = {write_number(value)}\n"
    return "\n".join(source_lines(name, revision)) + "\n"


@typed()
def read_step(text: str, name: str, revision: str | Revision = "posted") -> FunctionType | int:
    """Make what is to take the place of the step or the constant `name` in a revision: a function or a u64.

    Raises InputError naming line and column of what none can be made of.
    """
    revision = get(revision)
    origin = revision.step(name)
    if len(text) > LONGEST:
        raise InputError(f"{name}: {len(text)} characters; it takes up to {LONGEST}")
    file = f"<{name}, edited {next(_numbers)}>"
    try:
        tree = ast.parse(text)
        compile(tree, file, "exec", dont_inherit=True)  # which finds more
    except SyntaxError as error:
        place = f", line {error.lineno}, column {error.offset}" if error.lineno else ""
        raise InputError(f"{name}{place}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{name}: this is no Python ({one_line(error, 80) or type(error).__name__})"
        ) from None
    scope: dict[str, Any] = {**logic_names(), **revision.names}
    if isinstance(origin, int):
        return _constant(tree, name, scope)
    written = _function(tree, name, origin)
    scope |= origin.__globals__
    _check(written, scope, name, ast.parse(step_text(name, revision)))
    if origin.__doc__ is not None:  # which is no change
        documented = ast.Expr(ast.Constant(origin.__doc__))
        written.body = [documented, *(each for each in written.body if not _is_text(each))]
        ast.fix_missing_locations(ast.copy_location(documented, written))
    code = compile(tree, file, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(code, scope)  # a def and nothing else: what it says runs when it is called
    function: FunctionType = scope[name]
    function.__annotations__ = dict(origin.__annotations__)
    return function


def _constant(tree: ast.Module, name: str, scope: dict[str, Any]) -> int:
    """The value in the one line that the text must be."""
    match tree.body:
        case [ast.Assign(targets=[ast.Name(id=given)], value=value)] if given == name:
            pass
        case _:
            raise InputError(f"{name}: it takes one line, {name} = a number, and nothing else")
    place = f"{name}, line {value.lineno}"
    for node in ast.walk(value):
        if not isinstance(node, OF_CONSTANTS) or (
            isinstance(node, ast.Constant) and type(node.value) is not int
        ):
            raise InputError(
                f"{place}: {ast.unparse(node):.40} has no place in a constant: it takes numbers, constants of the "
                "path, | & ^ ~ << >> + -"
            )
        if isinstance(node, ast.Name) and type(scope.get(node.id)) is not int:
            close = get_close_matches(node.id, [each for each in scope if type(scope[each]) is int], 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{place}: the path has no constant {node.id:.60}{hint}")
    if unknown := [by for by in _shifts(value) if not _is_small(by, scope)]:
        raise InputError(f"{place}: << by {unknown[0]:.40} could be too far: it takes a number up to 63")
    try:
        number = eval(compile(ast.Expression(value), f"<{name}>", "eval"), {"__builtins__": {}}, dict(scope))
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{place}: {one_line(error, 80)}") from None
    if not 0 <= number <= U64_MAX:
        raise InputError(f"{place}: {ast.unparse(value):.40} is no unsigned 64-bit number")
    return int(number)


def _function(tree: ast.Module, name: str, origin: FunctionType) -> ast.FunctionDef:
    """The one function that the text must be, with the arguments of the step."""
    if len(tree.body) != 1 or not isinstance(written := tree.body[0], ast.FunctionDef):
        line = f", line {tree.body[1].lineno}" if len(tree.body) > 1 else ""
        raise InputError(f"{name}{line}: it takes one function, def {name}(…), and nothing else")
    code = origin.__code__
    wanted = list(code.co_varnames[: code.co_argcount])
    given = written.args
    others = [*given.posonlyargs, *given.kwonlyargs, given.vararg, given.kwarg]
    if written.name != name or [each.arg for each in given.args] != wanted or any(others):
        raise InputError(f"{name}, line {written.lineno}: it takes def {name}({', '.join(wanted)})")
    if given.defaults or written.decorator_list:
        raise InputError(f"{name}, line {written.lineno}: a step has no decorators and no defaults")
    return written


def _shifts(tree: ast.AST) -> set[str]:
    """What `<<` shifts by, as text."""
    shifts = (node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.AugAssign))
    return {
        ast.unparse(node.right if isinstance(node, ast.BinOp) else node.value)
        for node in shifts
        if isinstance(node.op, ast.LShift)
    }


def _is_small(by: str, scope: dict[str, Any]) -> bool:
    """Whether what `<<` shifts by is at most 63 for sure: a number, a constant, a sum of such, or `& 63`."""
    match ast.parse(by, mode="eval").body:
        case ast.Constant(value=value):
            return isinstance(value, int) and value < 64
        case ast.Name(id=name):
            value = scope.get(name)
            return name.isupper() and isinstance(value, int) and value < 64
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return all(_is_small(ast.unparse(side), scope) for side in (left, right))
        case ast.BinOp(op=ast.BitAnd(), right=ast.Constant(value=value)):
            return isinstance(value, int) and value < 64
    return False


def _check(written: ast.FunctionDef, scope: dict[str, Any], name: str, usual: ast.Module) -> None:
    """Raise InputError for what a step cannot be made of, and for names that mean nothing.

    It may shift and multiply by what the `usual` one does, and by what is small: others would fill the memory.
    """
    shifts = _shifts(usual)
    products = {ast.unparse(node) for node in ast.walk(usual) if isinstance(node, ast.BinOp)}
    body = [statement for statement in written.body if not _is_text(statement)]
    if not body:
        raise InputError(f"{name}, line {written.lineno}: there is nothing in it")
    nodes = [node for statement in body for node in ast.walk(statement)]
    own = {argument.arg for argument in written.args.args}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    line = written.lineno
    skipped: set[int] = set()  # annotations, which say nothing
    for node in nodes:
        line = getattr(node, "lineno", line)
        if id(node) in skipped:
            continue
        if isinstance(node, ast.AnnAssign):
            skipped |= {id(each) for each in ast.walk(node.annotation)}
        place = f"{name}, line {line}"
        if not isinstance(node, MADE_OF):
            kind = type(node).__name__
            raise InputError(
                f"{place}: {_WORDS.get(kind, kind)} has no place in a step: it takes assignments, if, while, "
                "return, arithmetic, and calls of other steps"
            )
        if isinstance(node, ast.Constant) and not isinstance(node.value, int):
            raise InputError(f"{place}: {node.value!r:.40} has no place in a step: it takes whole numbers")
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.LShift):
            by = ast.unparse(node.right if isinstance(node, ast.BinOp) else node.value)
            if by not in shifts and not _is_small(by, scope):
                raise InputError(
                    f"{place}: << by {by:.40} could be too far: it takes a number up to 63, or x & 63"
                )
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
            if ast.unparse(node) not in products and not any(_is_factor(side, scope) for side in sides):
                raise InputError(f"{place}: {ast.unparse(node):.40} {TOO_MUCH}")
        if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or hasattr(int, node.attr)):
            raise InputError(f"{place}: .{node.attr:.40} has no place in a step")
        if isinstance(node, ast.Name) and node.id == written.name:
            raise InputError(f"{place}: a step does not call itself")
        if isinstance(node, ast.Name) and node.id not in own and node.id not in BUILTINS:
            value = scope.get(node.id)
            if node.id not in scope or not isinstance(value, int | tuple | FunctionType | type):
                known = [each for each in (*own, *scope) if not each.startswith("_")]
                close = get_close_matches(node.id, known, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise InputError(f"{place}: the path has no name {node.id:.60}{hint}")


def _is_factor(side: ast.expr, scope: dict[str, Any]) -> bool:
    """Whether this is a number or a constant that anything may be multiplied by."""
    value = scope.get(side.id) if isinstance(side, ast.Name) else getattr(side, "value", None)
    return type(value) is int and value <= LARGEST


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@contextmanager
def ending(revision: Revision, seconds: float = SECONDS) -> Iterator[None]:
    """Stop the steps that a derived revision changes if one has not returned after so many seconds of the processor.

    Raises DoesNotEnd naming the line that was run then, also if a value, or what is returned, has grown too far.  In
    this thread only.  Lines are watched in functions that loop, add or multiply: it takes time, and others end by
    themselves.  Raises InputError, before anything is run, for a step that reaches for more than the path has: see
    `reached`.
    """
    places: dict[tuple[str, int], tuple[str, bool]] = {}
    derived: Revision | None = revision
    while derived is not None and REVISIONS.get(derived.name) is not derived:
        for name, step in derived.changes.items():
            if isinstance(step, FunctionType):
                for code in reached(step, name, revision):
                    places[code.co_filename, code.co_firstlineno] = name, _is_watched(code)
        derived = derived.base
    files = {file for file, _ in places}

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in files or (code.co_filename, code.co_firstlineno) not in places:
            return None
        name, watched = places[code.co_filename, code.co_firstlineno]
        end = clock() + seconds

        def at_line(frame: FrameType, event: str, argument: Any) -> Any:
            seen = {"what it returns": argument} if event == "return" else frame.f_locals
            if local := _too_large(seen):
                raise DoesNotEnd(f"{name}, line {frame.f_lineno}: {local} grows too far")
            if clock() > end:
                raise DoesNotEnd(
                    f"{name}, line {frame.f_lineno}: it does not return (stopped after {seconds:g} s)"
                )
            return at_line

        frame.f_trace = at_line  # without which Python 3.13 takes no notice of the rest
        frame.f_trace_lines = watched
        frame.f_trace_opcodes = watched  # a loop that stands on one line comes to no other
        return at_line

    if not places:
        yield
        return
    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # before settrace: Python 3.12 looks for it there
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def reached(step: FunctionType, name: str, revision: Revision) -> list[CodeType]:
    """List the code of a function that is to stand for the step `name`, and of its own helpers, the path's left out.

    Raises InputError naming the line of what has no place in a step.  It may use names of the path, numbers, its
    own functions that do no more, and a few functions of Python's (OF_FUNCTIONS); import and change nothing, catch
    nothing, make tuples alone, shift to the left by no more than 63, and multiply by no more than LARGEST in all.
    This keeps a step from what cannot be stopped, such as time.sleep; it is no fence against somebody who means harm.
    """
    known = revision
    while known.base is not None and REVISIONS.get(known.name) is not known:
        known = known.base
    origin = {**logic_names(), **known.names}.get(name)
    usual = list(get_instructions(origin)) if isinstance(origin, FunctionType) else []
    callable_ = {*OF_FUNCTIONS, *(i.argval for i in usual if i.opname == "LOAD_GLOBAL")}
    taken = {i.opname for i in usual}
    by = {(b.argrepr, a.opname, a.argrepr) for a, b in pairwise(usual) if b.argrepr in (*_SHIFT, *_TIMES)}
    found: dict[CodeType, None] = {}
    waiting = [(step, step.__code__)]

    def take(value: object, what: str, place: str) -> None:
        for each in value if type(value) is tuple else (value,):
            if isinstance(each, FunctionType) and not _is_ours(each):
                waiting.append((each, each.__code__))
            elif isinstance(each, str) and "%" in each:
                raise InputError(f"{place}: text with % in it has no place in a step")
            elif not (isinstance(each, int | str | None) or _is_ours(each) or _is_ours(type(each))):
                raise InputError(
                    f"{place}: {what:.60} has no place in a step: it takes names of the path, numbers, and "
                    f"{', '.join(OF_FUNCTIONS)}"
                )

    while waiting:
        function, code = waiting.pop()
        if code in found:
            continue
        found[code] = None
        waiting += [(function, inner) for inner in code.co_consts if isinstance(inner, CodeType)]
        line = code.co_firstlineno
        held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for value in [*held, *(cell.cell_contents for cell in function.__closure__ or ())]:
            take(value, f"a value that {function.__name__} holds", f"{name}, line {line}")
        scope = {**vars(builtins), **function.__globals__, **revision.names}
        before: list[Instruction] = []
        product: int | float = 1
        for each in get_instructions(code):
            line = (each.positions and each.positions.lineno) or line
            place, argument = f"{name}, line {line}", each.argval
            usually = bool(before) and (each.argrepr, before[-1].opname, before[-1].argrepr) in by
            for start, words in OUT_OF_PLACE.items():
                if each.opname.startswith(start) and each.opname not in taken:
                    raise InputError(f"{place}: {words} has no place in a step")
            if each.opname == "LOAD_CONST" and not isinstance(argument, CodeType) and "%" in repr(argument):
                raise InputError(f"{place}: text with % in it has no place in a step")
            if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                is_pythons = scope.get(argument) is getattr(builtins, argument, None)
                if not (is_pythons and (argument in callable_ or _is_error(scope.get(argument)))):
                    take(scope.get(argument), argument, place)
            elif each.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                texts = hasattr(str, argument) and not hasattr(tuple, argument)
                if argument.startswith("__") or hasattr(int, argument) or texts:
                    raise InputError(f"{place}: .{argument:.40} has no place in a step")
            elif each.argrepr in ("**", "**="):
                raise InputError(f"{place}: ** has no place in a step")
            elif (
                each.argrepr in _SHIFT
                and not usually
                and (each.is_jump_target or not _is_near(before[-2:], scope))
            ):
                raise InputError(
                    f"{place}: << by this could be too far: it takes a number up to 63, or x & 63"
                )
            elif each.argrepr in _TIMES and not usually:
                product *= _factor([*before, each], scope)
                if product > LARGEST:
                    raise InputError(f"{place}: this {TOO_MUCH}, and in all")
            before.append(each)
    return list(found)


_SHIFT = ("<<", "<<=")
_TIMES = ("*", "*=")


def _is_near(before: list[Instruction], scope: Mapping[str, Any]) -> bool:
    """Whether what the last instructions leave, to shift by, is at most 63 for sure: a number, a constant, x & 63."""
    *others, last = before
    if last.argrepr in ("&", "&=") and others:
        return _is_near(others, {})
    return _number(last, scope) < 64


def _number(load: Instruction, scope: Mapping[str, Any]) -> int | float:
    """The number that an instruction loads, which is written out or a constant of the path; infinity if it is none."""
    value = scope.get(load.argval) if load.opname == "LOAD_GLOBAL" else load.argval
    loads = load.opname in ("LOAD_GLOBAL", "LOAD_CONST", "LOAD_SMALL_INT")
    return value if loads and type(value) is int else float("inf")


def _factor(instructions: list[Instruction], scope: Mapping[str, Any]) -> int | float:
    """The lesser of the two that the last instruction multiplies, at least 1, as far as they are known numbers."""
    *before, last = instructions
    if last.is_jump_target:  # one of several values
        return float("inf")
    least, depth = _number(before[-1], scope), 0
    # Back to where the right one begins: before it, the left one ends.
    for place in range(len(before) - 1, 0, -1):
        depth += stack_effect(before[place].opcode, before[place].arg, jump=False)
        if before[place].is_jump_target:
            break
        if depth == 1:
            least = min(least, _number(before[place - 1], scope))
            break
    return max(1, least)


def _is_error(value: object) -> bool:
    """Whether this is what a step may raise, to no other effect than that a case fails."""
    return isinstance(value, type) and issubclass(value, (Exception, SystemExit, GeneratorExit))


def _is_ours(value: object) -> bool:
    """Whether a function, a class or a module is the path's, or a revision's."""
    if not isinstance(value, FunctionType | type | ModuleType):
        return False
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__ or ""
    package, _, rest = name.partition(".")
    return package == "kvm_pf" and (
        rest in path_modules() or rest.startswith(("revisions.", "common.errors"))
    )


def _is_watched(code: CodeType) -> bool:
    """Whether code could take for ever: it loops, or what it adds or multiplies could double with each line."""
    return any("BACKWARD" in i.opname or i.argrepr in ("+", "+=", "*", "*=") for i in get_instructions(code))


def _too_large(values: dict[str, Any]) -> str:
    """Name a value of more than LARGEST bits or items, those of its items counted; "" if there is none."""
    for name, value in values.items():
        left, items = [value], 0
        while left:
            value = left.pop()
            if isinstance(value, tuple):
                left += value[:LARGEST]
            if isinstance(value, tuple | str | bytes):
                items += len(value)
            if items > LARGEST or (isinstance(value, int) and value.bit_length() > LARGEST):
                return name
    return ""
