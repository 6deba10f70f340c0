# SPDX-License-Identifier: GPL-2.0-only
"""What loads what, and what the logic is made of."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import kvm_pf
from kvm_pf.revisions import path_modules, revision_modules

HEAVY = {
    "IPython",
    "ipywidgets",
    "jsonschema",
    "matplotlib",
    "numba",
    "numpy",
    "pandas",
    "pandera",
    "pyarrow",
    "unidiff",
    "z3",
}

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(kvm_pf.__path__, "kvm_pf.")
    if not module.name.endswith("__main__")
)
LOGIC = [f"kvm_pf.{name}" for name in path_modules()]
LOGIC += [f"kvm_pf.revisions.{name}" for name in revision_modules()]


SENTENCE = re.compile(r"([A-Z`\"0-9-]|struct |\w+\(\)).*[.:?;,…]", re.DOTALL)
"""A sentence; the kernel's own names keep their small letters."""


LAYERS = (
    {"common"}, {"path"}, {"revisions"}, {"run", "patch"}, {"guest"}, {"conformance"}, {"trace"}, {"proof"}, {"show"},
    {"cli"},
)  # fmt: skip
"""Who may import whom: a layer those before it, and itself; folders of one layer not each other."""


def layer(name):
    """The number of a module's layer and its folder: the modules beside `kvm_pf/__init__.py` are the path."""
    folder = "path" if name.removeprefix("kvm_pf.") in path_modules() else name.split(".")[1]
    return next(n for n, layers in enumerate(LAYERS) if folder in layers), folder


def imported_by(name):
    """The modules of ours that a module imports, at once or later; not what only types need."""
    nodes = [tree(name)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kvm_pf."):
            yield from (
                deeper if (deeper := f"{node.module}.{alias.name}") in MODULES else node.module
                for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom) and node.module == "kvm_pf":
            yield from (f"kvm_pf.{alias.name}" for alias in node.names)


def loaded_by(code):
    """The heavy libraries that a fresh Python has loaded after `code`."""
    code = f"{code}\nimport sys\nprint('loaded', *sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


WITHOUT_LIBRARIES = """
import sys

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top != "kvm_pf" and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not of the standard library", name=name)

sys.meta_path.insert(0, Only())
"""


def without_libraries(code):
    """What `code` prints in a fresh Python in which the standard library is all there is, parsed as a literal."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARIES + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


NEED_LIBRARIES = {
    "kvm_pf.run.batch", "kvm_pf.run.compiler", "kvm_pf.run.unsigned",  # tables, compiled
    "kvm_pf.conformance.corpus", "kvm_pf.conformance.vectors",  # tables
    "kvm_pf.proof.kills",
}  # fmt: skip
"""What cannot be imported without pandas; pictures, pages and widgets come on top."""


def tree(name):
    return ast.parse(inspect.getsource(importlib.import_module(name)))


def functions(name):
    """The logic functions of a module."""
    return [node for node in tree(name).body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(
    "code",
    [
        "import kvm_pf",
        "import kvm_pf; kvm_pf.decode(6), kvm_pf.REVISIONS['v7_3'], dir(kvm_pf), kvm_pf.InputError",
        "from kvm_pf.cli import main; main(['decode', '0x2000100000006'])",
        "from kvm_pf.cli import main; main(['decode', '6', '--json'])",
        "from kvm_pf.cli import main; main(['explain', '6', '--private', '--vm', 'sw-protected'])",
        "from kvm_pf.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        f"import {', '.join(LOGIC)}",
    ],
)
def test_no_library_is_loaded_before_it_is_used(code):
    assert loaded_by(code) == []


def test_what_runs_watches_and_judges_the_path_needs_only_the_standard_library():
    names = [name for name in MODULES if not name.startswith("kvm_pf.show.")]
    found = without_libraries(f"""
from importlib import import_module
failed = set()
for name in {names}:
    try:
        import_module(name)
    except ModuleNotFoundError:
        failed.add(name)
print(failed)
""")
    assert found == NEED_LIBRARIES


def test_a_case_is_run_explained_and_judged_without_a_library():
    found = without_libraries("""
import kvm_pf
from kvm_pf.conformance.cases import differences, read_cases
from kvm_pf.run.inputs import results
given = {"error_code": "WRITE|USER", "vm_type": "sw-protected", "private": True}
kept = kvm_pf.REVISIONS["posted"].derive("mine", sanitize=lambda error_code: (error_code, 0))
verdict = kvm_pf.verdict(kept)
print([
    results("cases", kvm_pf.REVISIONS["posted"], given)["f_error_code"],
    kvm_pf.explain(**given).outcome.handled.fault.is_private,
    "sanitize-both-bits" in verdict.cases, verdict.witness.state, verdict.witness.outputs["f_error_code"],
    (verdict.claims, verdict.fallen), len(differences(read_cases())),
])
""")
    code, private, noticed, state, outputs, claims, failing = found
    assert (code, private) == (1 << 49 | 0b110, True)
    assert noticed
    assert state == {"error_code": 1 << 49}
    assert outputs == ("0", "0x2000000000000")
    assert claims == (0, [])
    assert failing == 0


@pytest.mark.parametrize(
    "code",
    [
        "import kvm_pf.conformance.corpus",
        "import kvm_pf.conformance.vectors",
        "kvm_pf.evaluate",
        "kvm_pf.load_corpus",
    ],
)
def test_tables_load_pandas_but_nothing_to_compile_prove_or_draw(code):
    loaded = loaded_by(f"import kvm_pf\n{code}")
    assert "pandas" in loaded
    assert not {"numba", "z3", "matplotlib", "ipywidgets", "IPython"} & set(loaded)


def test_every_public_name_is_there_and_no_other():
    for name in kvm_pf.__all__:
        assert name in dir(kvm_pf)
        assert getattr(kvm_pf, name) is not None
    with pytest.raises(AttributeError, match="'kvm_pf' has no attribute 'nope'"):
        kvm_pf.nope  # noqa: B018


def test_every_public_name_is_explained_with_an_example_that_holds():
    names = {name: getattr(kvm_pf, name) for name in kvm_pf.__all__}
    assert doctest.testmod(kvm_pf, extraglobs=names).failed == 0
    assert {*re.findall(r"`(\w+)`(?=[,:])", kvm_pf.__doc__), "InputError"} == set(names)
    assert len(kvm_pf.__all__) <= 13


@pytest.mark.parametrize("name", LOGIC)
def test_the_logic_imports_only_the_standard_library_and_itself(name):
    own = {*LOGIC, "kvm_pf", "kvm_pf.common.errors"}
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if node.module in ("kvm_pf", "kvm_pf.revisions"):
                assert {f"{node.module}.{alias.name}" for alias in node.names} <= own
            else:
                assert node.module in own or node.module.split(".")[0] in sys.stdlib_module_names, node.module


@pytest.mark.parametrize("name", LOGIC)
def test_the_logic_is_made_of_what_can_be_run_compiled_and_proved(name):
    forbidden = (
        ast.Try, ast.Raise, ast.With, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
        ast.Dict, ast.Set, ast.Yield, ast.Await, ast.Global, ast.Nonlocal, ast.JoinedStr, ast.Delete, ast.For,
        ast.Assert,
    )  # fmt: skip
    names = {"isinstance", "int", "bool", "print", "open", "getattr", "setattr", "type"}
    for function in functions(name):
        if name == "kvm_pf.bits":
            continue  # reading and writing of codes; its constants are the logic's
        assert not function.args.vararg, function.name
        assert not function.args.kwarg, function.name
        for node in ast.walk(function):
            assert not isinstance(node, forbidden), f"{function.name}, line {node.lineno}"
            if isinstance(node, ast.FunctionDef):
                assert node is function
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in names, f"{function.name}, line {node.lineno}"


@pytest.mark.parametrize("name", LOGIC)
def test_no_literal_inside_the_logic_needs_the_64th_bit(name):
    for function in functions(name):
        for node in ast.walk(function):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                assert node.value < 1 << 63, f"{function.name}, line {node.lineno}"


@pytest.mark.parametrize("name", LOGIC)
def test_every_argument_and_result_of_the_logic_is_annotated(name):
    for function in functions(name):
        if function.name.startswith("_"):
            continue
        assert function.returns is not None, function.name
        for argument in function.args.args:
            assert argument.annotation is not None, function.name


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    mine, folder = layer(name)
    for other in imported_by(name):
        theirs, elsewhere = layer(other)
        assert theirs < mine or elsewhere == folder, f"{name} imports {other}"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_thing_has_a_docstring_that_begins_with_a_sentence(name):
    module = importlib.import_module(name)
    things = {name: module}
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value):
            things[key] = value
            things |= {
                f"{key}.{k}": v
                for k, v in vars(value).items()
                if not k.startswith("_") and (inspect.isfunction(v) or isinstance(v, property))
            }
        elif inspect.isfunction(value):
            things[key] = value
    for key, value in things.items():
        text = inspect.getdoc(value)
        assert text, f"{name}: {key}"
        assert SENTENCE.match(text.partition("\n\n")[0]), f"{name}: {key}: {text!r}"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_file_names_its_licence(root):
    for folder in ("kvm_pf", "tests", "tools", "benchmarks"):
        for path in (root / folder).glob("**/*.py"):
            head = path.read_text(encoding="utf-8").splitlines()[:2]
            assert "# SPDX-License-Identifier: GPL-2.0-only" in head, path
