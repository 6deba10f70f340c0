# SPDX-License-Identifier: GPL-2.0-only
"""Compile a function of the path in which some operators read their 64 bits as unsigned.

Compiled code holds every value in int64.  What `kvm_pf.run.ranges` found to be unsigned is put in place of the
operators in numba's intermediate form, before types are inferred; the function's text stays as it is.
So are `+ - *`, always: numba promises LLVM that signed ones never overflow, and LLVM computes with that promise;
the low 64 bits are right of unsigned ones only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import ir
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.ir_utils import build_definitions
from numba.core.untyped_passes import IRProcessing
from numba.extending import overload

from kvm_pf.run.ranges import DIVISION, ORDER, REMAINDER, RIGHT_SHIFT, with_int64


def _unsigned(of: Callable[[Any, Any], Any], number: bool) -> Callable[[Any, Any], Any]:
    """Make an operator on int64 that reads both operands as uint64; `number`: its result is a number again."""

    def stands_for(a, b):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def made(a, b):  # type: ignore[no-untyped-def]  # numba compares its signature with the lambdas'
        if number:
            return lambda a, b: np.int64(of(np.uint64(a), np.uint64(b)))
        return lambda a, b: of(np.uint64(a), np.uint64(b))

    overload(stands_for)(made)
    return stands_for


WRAPPING = "+ - *"
"""The operators whose low 64 bits need only those of their operands."""

_COMPARE = {of: _unsigned(of, False) for of in (operator.lt, operator.le, operator.gt, operator.ge)}
_NUMBER = {
    RIGHT_SHIFT: [(operator.rshift, operator.irshift)],
    DIVISION: [(operator.floordiv, operator.ifloordiv)],
    REMAINDER: [(operator.mod, operator.imod)],
    WRAPPING: [
        (operator.add, operator.iadd),
        (operator.sub, operator.isub),
        (operator.mul, operator.imul),
    ],
}
_BY_KIND: dict[str, dict[Any, Any]] = {ORDER: _COMPARE}
for _kind, _operators in _NUMBER.items():
    _BY_KIND[_kind] = {}
    for _pair in _operators:
        _BY_KIND[_kind].update(dict.fromkeys(_pair, _unsigned(_pair[0], True)))


_OPERATIONS = ("binop", "inplace_binop", "unary")


def _inverted(a):  # type: ignore[no-untyped-def]
    raise NotImplementedError


@overload(_inverted)
def _made_inverted(a):  # type: ignore[no-untyped-def]  # a truth value, too, is the number 0 or 1
    return lambda a: ~np.int64(a)


_BY_KIND[WRAPPING][operator.invert] = _inverted


@numba.njit(inline="never")
def _least(a, b):  # type: ignore[no-untyped-def]
    return np.int64(min(np.uint64(a), np.uint64(b)))


@numba.njit(inline="never")
def _greatest(a, b):  # type: ignore[no-untyped-def]
    return np.int64(max(np.uint64(a), np.uint64(b)))


@register_pass(mutates_CFG=False, analysis_only=False)
class _ReadUnsigned(FunctionPass):  # type: ignore[misc]
    """Put the unsigned operators in place."""

    _name = "kvm_pf_read_unsigned"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Replace the operators of one function; say whether there were any."""
        instead = {
            of: new
            for kind in (WRAPPING, *getattr(state.func_id.func, "unsigned", ()))
            for of, new in _BY_KIND[kind].items()
        }
        changed = False
        for block in state.func_ir.blocks.values():
            for assign in block.find_insts(ir.Assign):
                value = assign.value
                if isinstance(value, ir.Expr) and value.op in _OPERATIONS and value.fn in instead:
                    operands = [value.value] if value.op == "unary" else [value.lhs, value.rhs]
                    make = ir.Expr.unary if value.op == "unary" else ir.Expr.binop
                    assign.value = make(value.fn, *operands, value.loc)
                    assign.value.fn = instead[value.fn]
                    changed = True
        # Numba decides branches on constants by what it noted of each variable's definition.
        state.func_ir._definitions = build_definitions(state.func_ir.blocks)
        return changed


class _Compiler(CompilerBase):  # type: ignore[misc]
    """Numba's own passes, and the one above."""

    def define_pipelines(self) -> list[Any]:
        """List the one pipeline there is."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_ReadUnsigned, IRProcessing)
        passes.finalize()
        return [passes]


def compiled(function: FunctionType, unsigned: Iterable[str], **options: Any) -> Any:
    """Compile a linked function; `unsigned` are the operators that read their operands as such."""
    copy: Any = with_int64(function)
    copy.unsigned = tuple(unsigned)
    if ORDER in copy.unsigned:
        copy.__globals__.update(min=_least, max=_greatest)
    return numba.njit(copy, nogil=True, error_model="numpy", pipeline_class=_Compiler, **options)
