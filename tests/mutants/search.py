"""Which small edits of the package, made from the syntax tree at random places, the tests that cover the file do not notice.

A line is picked uniformly among those of the packages that hold anything to change, then one change of an expression or a
statement that begins there: a comparison, an operation, a constant by one, a sign, a `not`, a term less, arguments or branches
swapped, a reduction by another, a call or a statement left out. What survives is read: it changes nothing that can be observed,
or a law is missing.

    python -m tests.mutants.search SEED COUNT [--list] [--skip N]
"""

import argparse
import ast
import contextlib
import importlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from tests.mutants.listed import ROOT
from tests.mutants.run import AHEAD, Copy

PACKAGES = (
    "core",
    "fields",
    "ode",
    "solvers",
    "run",
    "inference",
    "learn",
    "diagnostics",
    "plugins",
)
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
RENAMED = {
    "min": "max",
    "amin": "amax",
    "minimum": "maximum",
    "any": "all",
    "sum": "mean",
    "argmin": "argmax",
    "sin": "cos",
    "exp": "expm1",
    "log": "log1p",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "floor": "ceil",
}
DROPPED = frozenset(
    [
        "abs",
        "square",
        "sqrt",
        "exp",
        "log",
        "clamp",
        "clamp_min",
        "clamp_max",
        "detach",
        "clone",
        "contiguous",
        "round",
        "floor",
        "ceil",
        "mean",
        "flip",
        "mT",
        "cumsum",
        "where",
        "nan_to_num",
        "conj_physical",
        "neg",
        "sort",
        "unique",
        "requires_grad_",
        "eval",
        "sigmoid",
        "log_softmax",
        "softmax",
        "normalize",
        "strip",
        "removeprefix",
        "sorted",
        "float",
        "double",
        "to",
        "expand",
        "maximum",
        "minimum",
    ]
)
"""Calls of these are left out: their first argument, or what they are called on, stands in their place."""
RENAMED |= {new: old for old, new in RENAMED.items()}


class Edit(NamedTuple):
    """The text of a node of a file replaced by another; a `Mutant` to those who try it."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


def changed(node: ast.AST) -> Iterator[str]:
    """The texts of what may stand in the place of a node."""

    def with_(**fields: object) -> str:
        parts = {name: getattr(node, name, None) for name in node._fields} | fields
        return ast.unparse(ast.fix_missing_locations(type(node)(**parts)))

    match node:
        case ast.Compare(ops=[op]):
            yield f"({with_(ops=[COMPARED[type(op)]()])})"
        case ast.BinOp(left=left, op=op) if type(op) in COMPUTED:
            yield f"({with_(op=COMPUTED[type(op)]())})"
            yield f"({ast.unparse(left)})"
        case ast.AugAssign(op=op) if type(op) in COMPUTED:
            yield with_(op=COMPUTED[type(op)]())
            yield "pass"
        case ast.BoolOp(op=op, values=[first, *rest]):
            yield f"({with_(op=ast.Or() if isinstance(op, ast.And) else ast.And())})"
            yield f"({ast.unparse(first)})"
            yield f"({ast.unparse(rest[-1])})"
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
            if value:
                yield str(value - 1)
        case ast.Constant(value=float(value)):
            yield f"{2 * value if value else 1.0}"
        case ast.IfExp(body=body, orelse=orelse):
            yield f"({with_(body=orelse, orelse=body)})"
            yield f"({ast.unparse(body)})"
            yield f"({ast.unparse(orelse)})"
        case ast.Call(func=func, args=args):
            name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            if name in RENAMED and isinstance(func, ast.Attribute):
                yield with_(func=ast.Attribute(func.value, RENAMED[name], ast.Load()))
            elif name in ("min", "max", "any", "all"):
                yield with_(func=ast.Name(RENAMED[name], ast.Load()))
            if len(args) >= 2 and not any(
                isinstance(a, ast.Starred) or isinstance(getattr(a, "value", None), str)
                for a in args[:2]
            ):
                yield with_(args=[args[1], args[0], *args[2:]])
            module = isinstance(func, ast.Attribute) and ast.unparse(func.value) in (
                "torch",
                "np",
                "math",
            )
            if name in DROPPED and isinstance(func, ast.Attribute):
                yield ast.unparse(args[0] if module else func.value)
        case ast.Expr(value=ast.Call() | ast.Yield()) | ast.Raise() | ast.Continue() | ast.Break():
            yield "pass"


def edits(file: Path) -> list[Edit]:
    """All of a file, but for annotations, imports, decorators, what is raised and texts."""
    source = file.read_text()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw, name, found = source.encode(), str(file.relative_to(ROOT / "scoretk")), list[Edit]()

    def add(node: ast.expr | ast.stmt, new: str) -> None:
        a = starts[node.lineno - 1] + node.col_offset
        b = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        start, old = len(raw[:a].decode()), raw[a:b].decode()
        if new != old:
            found.append(Edit(name, node.lineno, start, start + len(old), old, new))

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        for new in changed(node):
            add(node, new)  # type: ignore[arg-type]
        if isinstance(node, ast.If | ast.While):
            add(node.test, "False")
            if isinstance(node, ast.If):
                add(node.test, "True")
        skipped = {"annotation", "returns", "decorator_list", "type_params"}
        for field, value in ast.iter_fields(node):
            if field in skipped or isinstance(node, ast.Raise):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child)

    walk(ast.parse(source))
    return found


def sampled(seed: int, count: int) -> list[Edit]:
    """Edits at places that are picked uniformly over the lines that have any."""
    lines: dict[tuple[str, int], list[Edit]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / "scoretk" / package).rglob("*.py")):
            for edit in edits(file):
                lines.setdefault((edit.file, edit.line), []).append(edit)
    pick = random.Random(seed)
    return [pick.choice(lines[at]) for at in pick.sample(sorted(lines), count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--list", action="store_true", help="show them, and run nothing")
    parser.add_argument("--skip", type=int, default=0, help="how many of the first not to run")
    asked = parser.parse_args()
    chosen = sampled(asked.seed, asked.count)
    for i, e in enumerate(chosen if asked.list else []):
        print(f"{i} {e.file}:{e.line}: {e.old!r} -> {e.new!r}")
    if asked.list:
        return
    torch.set_num_threads(1)
    for name in AHEAD:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder).resolve())
        for i, e in list(enumerate(chosen))[asked.skip :]:
            outcome = copy.tried(e)  # type: ignore[arg-type]
            said = outcome.killed_by or "SURVIVES"
            print(
                f"{i} {e.file}:{e.line}: {e.old!r} -> {e.new!r}: {said} ({outcome.seconds} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
