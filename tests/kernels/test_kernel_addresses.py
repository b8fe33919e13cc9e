"""Every address in the kernels is worked out in 64 bits, read from their source: where a product of two numbers known
only at run time is part of one, one factor is 64-bit. And no make_block_ptr, nor a grid that a device refuses."""

import ast
import re
from pathlib import Path

import pytest

KERNELS = sorted((Path(__file__).resolve().parents[2] / "kernels").rglob("*.py"))
# So many of the results of these are 64-bit, the others small.
WIDE_CALLS = {"span": 1, "program_of": 2, "_corner": 2, "_piece": 2}
WIDE_PARAMETERS = {
    "load_rows": ["rows"],
    "head_rows": ["start", "head"],
    "_paged_rows": ["page", "slot", "head"],
    "add_and_normalise": ["start", "end"],
    "normalise_rows_bwd": ["start"],
    "recompute_rows": ["start"],
    "add_and_normalise_bwd": ["start"],
    "_squares": ["first"],
    "_update": ["first"],
}
WIDE_PARAMETERS |= {"_weight_gradient_tile": ["program"], "_sum": ["program"]}
WIDE_PARAMETERS |= {"_at": ["first"], "_table_rows": ["offs_m"], "_summed_rows": ["offs_m"], "_dense": ["offs_m"]}
SMALL_PARAMETERS = {name: ["count"] for name in ("_piece", "_squares", "_update")}  # adamw's number of tensors


def fields(source: str) -> set[str]:
    """The fields of the groups of arguments that a file defines."""
    classes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]
    groups = [c for c in classes if any(ast.unparse(base) == "NamedTuple" for base in c.bases)]
    return {ast.unparse(n.target) for c in groups for n in c.body if isinstance(n, ast.AnnAssign)}


FIELDS = {field for path in KERNELS for field in fields(path.read_text())}


class Ungrouped(ast.NodeTransformer):
    """x.row, a field of a group, as the name x_row."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.attr in FIELDS:
            return ast.Name(f"{node.value.id}_{node.attr}", node.ctx)
        return node


def jitted(source: str) -> list[ast.FunctionDef]:
    tree = Ungrouped().visit(ast.parse(source))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any("jit" in ast.unparse(d) for d in f.decorator_list)]


def names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


class Widths:
    """Which names of a function are 64-bit, and which are small however large the tensors."""

    def __init__(self, function: ast.FunctionDef) -> None:
        arguments = function.args.args
        self.small = {a.arg for a in arguments if a.annotation is not None and "constexpr" in ast.unparse(a.annotation)}
        self.small |= set(SMALL_PARAMETERS.get(function.name, []))
        self.wide = set(WIDE_PARAMETERS.get(function.name, []))
        before = -1
        while before != (before := len(self.wide) + len(self.small)):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    self.assign(node.targets[0], node.value)
                elif isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
                    if all(self.is_small(a) for a in node.iter.args):
                        self.small |= names(node.target)
                    elif any(self.is_wide(a) for a in node.iter.args):
                        self.wide |= names(node.target)

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.assign(one, its)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Call):
            if (count := WIDE_CALLS.get(ast.unparse(value.func), 0)) > 0:
                self.wide |= {n for t in target.elts[:count] for n in names(t)}
                self.small |= {n for t in target.elts[count:] for n in names(t)}
        elif isinstance(target, ast.Name):
            if self.is_wide(value):
                self.wide.add(target.id)
            if self.is_small(value):
                self.small.add(target.id)

    def is_wide(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "tl.cast":
                return "int64" in ast.unparse(node.args[1])
            if called.endswith(".to"):
                return "int64" in ast.unparse(node.args[0]) or (
                    "int" not in ast.unparse(node) and self.is_wide(node.func)
                )
            return called in ("tl.minimum", "tl.maximum", "tl.where") and any(self.is_wide(a) for a in node.args)
        if isinstance(node, ast.Compare | ast.BoolOp):
            return False
        return any(self.is_wide(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)) or (
            isinstance(node, ast.Name) and node.id in self.wide
        )

    def is_small(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            return called in ("tl.arange", "tl.cdiv") and all(self.is_small(a) for a in node.args)
        if isinstance(node, ast.Name):
            return node.id in self.small or node.id.isupper()
        if isinstance(node, ast.Subscript):
            return self.is_small(node.value)
        if isinstance(node, ast.BinOp):
            return self.is_small(node.left) and self.is_small(node.right)
        return isinstance(node, ast.Constant)


def addresses(function: ast.FunctionDef) -> list[ast.expr]:
    """Expressions that are an address or an offset: of loads, stores, what is named so, and of their arguments."""
    used = [n for n in ast.walk(function) if isinstance(n, ast.Call) and n.args]
    found = [n.args[0] for n in used if ast.unparse(n.func) in ("tl.load", "tl.store")]
    others = [a for n in used if not ast.unparse(n.func).startswith("tl.") for a in n.args]
    others = [a for a in others if not any(isinstance(n, ast.Call | ast.Attribute) for n in ast.walk(a))]
    found += [a for a in others if any(x.endswith("ptr") for x in names(a))]
    offsets = {x for a in found for x in names(a)}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if names(target) & offsets or any(x.endswith(("ptr", "ptrs", "places")) for x in names(target)):
                found.append(node.value)
    return found


def narrow(source: str) -> list[str]:
    """Products in addresses that may pass 31 bits."""
    found = []
    for function in jitted(source):
        widths = Widths(function)
        for expression in addresses(function):
            for node in ast.walk(expression):
                if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
                    continue
                one, other = node.left, node.right
                if not (
                    widths.is_wide(one) or widths.is_wide(other) or (widths.is_small(one) and widths.is_small(other))
                ):
                    found.append(f"{function.name}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_every_product_in_an_address_is_64_bit(path: Path) -> None:
    assert not narrow(path.read_text())


INT64 = re.compile(r"^tl\.load\((index|order)_ptr\b")  # ids of words and of tokens
JITTED = [function for path in KERNELS for function in jitted(path.read_text())]


def results(function: ast.FunctionDef) -> list[ast.expr]:
    """The values that a function returns, one by one."""
    values = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
    return [part for value in values for part in (value.elts if isinstance(value, ast.Tuple) else [value])]


def test_what_the_lint_takes_for_wide_is_wide() -> None:
    """What the functions of WIDE_CALLS return, and what every caller passes for the arguments of WIDE_PARAMETERS.
    Left out is _piece, whose numbers come from a table of int64."""
    for name in WIDE_CALLS.keys() - {"_piece"}:
        for function in (f for f in JITTED if f.name == name):
            widths = Widths(function)
            for value in results(function)[: WIDE_CALLS[name]]:
                assert widths.is_wide(value), f"{name}: {ast.unparse(value)}"
    seen = set()
    for name, parameters in WIDE_PARAMETERS.items():
        order = [argument.arg for argument in next(f for f in JITTED if f.name == name).args.args]
        for caller in JITTED:
            widths = Widths(caller)
            widths.wide |= {
                ast.unparse(n.targets[0])
                for n in ast.walk(caller)
                if isinstance(n, ast.Assign) and INT64.search(ast.unparse(n.value))
            }
            for call in (n for n in ast.walk(caller) if isinstance(n, ast.Call) and ast.unparse(n.func) == name):
                given = dict(zip(order, call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
                seen.add(name)
                for parameter in parameters:
                    value = given[parameter]
                    assert widths.is_wide(value), f"{caller.name}: {name}({parameter}={ast.unparse(value)})"
    assert seen == set(WIDE_PARAMETERS)


KERNEL = """
@triton.jit
def kernel(x_ptr, stride, rows, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + OFFSET, 0.0)
"""


@pytest.mark.parametrize("offset", ["offs * stride", "offs[:, None] * rows + 3", "(pid * BLOCK + 1) * stride"])
def test_a_narrow_product_is_found(offset: str) -> None:
    assert narrow(KERNEL.replace("OFFSET", offset))
    assert not narrow(KERNEL.replace("OFFSET", offset).replace("program_id(0)", "program_id(0).to(tl.int64)"))


@pytest.mark.parametrize("offset", ["x_ptr + pid * x_row", "x.ptr + pid * x.row"])
def test_a_narrow_product_is_found_where_arguments_are_groups(offset: str) -> None:
    source = KERNEL.replace("x_ptr + OFFSET", offset)
    assert narrow(source) and not narrow(source.replace("program_id(0)", "program_id(0).to(tl.int64)"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_no_block_pointers(path: Path) -> None:
    assert "make_block_ptr" not in path.read_text()


BOUNDED = {"shares", 'triton.cdiv(width, chosen["BLOCK_E"])'}  # by PROGRAMS or SHARES, by tiles of a row


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_grids_grow_along_x_alone(path: Path) -> None:
    """A device takes 65,535 along y and z."""
    for node in ast.walk(ast.parse(path.read_text())):
        launched = isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("_kernel")
        named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "grid"
        grid = node.slice if launched else node.value if named else None
        if isinstance(grid, ast.Tuple):
            assert {ast.unparse(part).replace("'", '"') for part in grid.elts[1:]} <= BOUNDED
