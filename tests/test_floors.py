"""The floors of the house: data flows one way, no folder imports one above it, and no two import each other.

Every import counts, wherever it stands in a file and whether or not it is for types alone. `pytest -s -k circle` prints
the floors. The last tests hold how arguments are passed.
"""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [  # from the ground; a room may import from the floors below it, and from its own floor in one direction
    {"_C", "kernels"},
    {"ops"},
    {"special_ids", "objective_config", "config", "cores", "device", "storage", "report", "info"},
    {"data", "decoding", "model", "reference"},
    {"objectives"},
    {"train", "tasks", "interop", "seq2seq"},
    {"cli"},
    {"__main__"},
]
MOST_POSITIONAL = 10  # arguments of a function; what belongs together is a NamedTuple, a dataclass or a struct
PACKAGE = sorted(path for path in (ROOT / "electra_fast").rglob("*.py") if "kernels" not in path.parts)


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def room(path: Path) -> str:
    return path.relative_to(ROOT / "electra_fast").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules of electra_fast that a file imports, wherever in it, as `storage.atomic`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or "kernels" in path.parts, f"{path}: a relative import, which hides its room"
            if (ROOT / (node.module or "").replace(".", "/")).is_dir():
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif node.level == 0:
                found.add(node.module or "")
    return {name.removeprefix("electra_fast.") for name in found if name.startswith("electra_fast.")}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_imports_upward(path: Path) -> None:
    if room(path) == "__init__":
        return
    for other in sorted(imported(path)):
        above = other.split(".")[0]
        assert floor(above) <= floor(room(path)), f"{path.name} imports {other}, which stands above it"


def test_no_circle() -> None:
    """Neither rooms nor files import each other, however long the way round. Prints the floors."""
    files = {path: imported(path) for path in PACKAGE if room(path) != "__init__"}
    rooms: dict[str, set[str]] = {}
    modules: dict[str, set[str]] = {}
    for path, others in files.items():
        rooms.setdefault(room(path), set()).update({other.split(".")[0] for other in others} - {room(path)})
        modules[".".join(path.relative_to(ROOT / "electra_fast").with_suffix("").parts)] = others
    for name, graph in (("rooms", rooms), ("modules", modules)):
        for ground in storeys(graph):
            print(f"{name}: {', '.join(ground)}")


def storeys(graph: dict[str, set[str]]) -> list[list[str]]:
    """From the ground up, the names that import only from those below; a circle fails."""
    found = []
    while graph:
        ground = sorted(name for name, others in graph.items() if not others & graph.keys())
        assert ground, f"these import each other: {sorted(graph)}"
        found.append(ground)
        graph = {name: others for name, others in graph.items() if name not in ground}
    return found


def test_only_ops_know_the_backends() -> None:
    for path in PACKAGE:
        if room(path) != "ops":
            assert not {name.split(".")[0] for name in imported(path)} & {"_C", "kernels"}, path.name
    for path in ROOT.glob("kernels/**/*.py"):
        assert not imported(path), f"{path.name}: kernels know torch and triton only"


def test_no_device_switch_outside_the_dispatcher() -> None:
    for path in PACKAGE:
        assert ".is_cuda" not in path.read_text(), path.name


def test_no_file_runs_code_and_nothing_asks_a_network() -> None:
    """The package imports nothing that reads pickles, starts programs or fetches, and evaluates no text."""
    never = set("pickle marshal shelve dill cloudpickle joblib runpy subprocess".split())
    never |= set("urllib http ssl ftplib requests httpx huggingface_hub datasets".split())
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None)
                roots = {(module or alias.name).split(".")[0] for alias in node.names}
                assert not roots & never, f"{path.name} imports {roots & never}"
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                bad = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load"}
                assert called not in bad, f"{path.name}:{node.lineno} calls {called}"
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("allow_pickle", "False") == options.get("trust_remote_code", "False") == "False"


def test_only_the_first_init_says_anything() -> None:
    """So that `import electra_fast` loads what its names need, and no more."""
    for path in (ROOT / "electra_fast").glob("*/__init__.py"):
        assert path.parent.name in ("ops", "kernels") or not path.read_text(), path


def test_import_loads_nothing_heavy() -> None:
    """`import electra_fast` loads no torch, and what trains loads neither triton nor transformers."""
    heavy = "print([m for m in ('torch', 'triton', 'transformers', 'matplotlib', 'tyro') if m in sys.modules])"
    code = f"import sys, electra_fast; {heavy}; import electra_fast.train.trainer; electra_fast.Pretrainer; {heavy}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split("\n") == ["[]", "['torch']", ""]


def test_public_names_are_where_the_package_looks_for_them() -> None:
    import electra_fast

    of_transformers = {"accelerate", "register_attention"}
    assert set(electra_fast.__all__) - {"info", "ops"} == set(electra_fast._MODULES) - of_transformers
    for name in {*electra_fast.__all__, *of_transformers}:
        assert getattr(electra_fast, name).__name__.split(".")[-1] == name


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many arguments a function takes by position, self among them."""
    return len(function.args.posonlyargs) + len(function.args.args)


def test_no_python_function_takes_many_arguments_by_position() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    many = {
        f"{path.name}: {node.name}": positional(node)
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and positional(node) > MOST_POSITIONAL
    }
    assert not many, "pass what belongs together as one argument, or options by name"


def parameters(source: str) -> list[tuple[str, int]]:
    """The parameter lists of C++ source, each with its number of parameters.

    A list in parentheses is one of parameters, not a call's arguments, if it begins with a type and a name.
    """
    code = re.sub(r"//.*", "", source)
    while (shorter := re.sub(r"<[^<>(){};]*>", "", code)) != code:  # commas in templates separate no parameters
        code = shorter
    lists = re.findall(r"[\w\]]\s*\(((?:[^()]|\([^()]*\))*)\)", code) + re.findall(r",\s*\(([^()]*)\)\)", code)
    counts = [(" ".join(found.split()), re.sub(r"\([^()]*\)", "", found).count(",") + 1) for found in lists]
    return [(text, count) for text, count in counts if re.match(r"(const )?[\w:]+[ *&]+\w+(,|$)", text)]


def test_no_core_function_takes_many_arguments() -> None:
    sources = [path for kind in ("*.h", "*.cpp", "*.inc") for path in ROOT.glob(f"csrc/**/{kind}")]
    lists = {path.name: parameters(path.read_text()) for path in sources}
    assert sum(map(len, lists.values())) > 150, "the pattern finds the declarations"
    many = {name: text for name, found in lists.items() for text, count in found if count > MOST_POSITIONAL}
    assert not many, "pass what belongs together as one struct"


def test_ops_take_options_by_name() -> None:
    """By position they take tensors, lists with an element for each tensor, pages, and the lengths of tensors."""
    from electra_fast import ops

    kinds = (
        "Tensor, Tensor | None, list[Tensor], list[float], Sequence[Sequence[Tensor]], Paged, int, int | None".split(
            ", "
        )
    )
    for name in ops.__all__:
        for parameter in inspect.signature(getattr(ops, name)).parameters.values():
            assert parameter.kind is parameter.KEYWORD_ONLY or parameter.annotation in kinds, f"{name}: {parameter}"
