"""Reads out of our own sources which names of vLLM's they import, override and reach.

What is vLLM's is followed from where its type is known: an import, an annotation, `self` of a class that derives from
vLLM's, and from there through attributes, calls, loops and assignments. Names that any tensor, string or container has
are not told apart from those.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

EVERYDAY = {name for kind in (Tensor, nn.Module, str, dict, list, int, Exception) for name in dir(kind)}
"""Attributes that do not tell whose they are."""

HANDED_ON = {"zip", "enumerate", "sorted", "list", "iter", "next", "replace"}
"""Functions whose results are vLLM's if their arguments are."""

FOREIGN = {"config", "hf_config", "get_hf_config", "get_hf_processor", "get_tokenizer", "get_prometheus_registry"}
"""Where vLLM hands out what belongs to transformers or others."""


@dataclass(frozen=True, eq=False)
class OurClass:
    """A class of ours. bases: as they are written; vllm: those that are vLLM's, by their full names."""

    node: ast.ClassDef
    bases: tuple[str, ...]
    vllm: tuple[str, ...]

    @cached_property
    def own_names(self) -> set[str]:
        """Methods and attributes that this class itself has."""
        names = {each.name for each in self.node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
        for each in ast.walk(self.node):
            match each:
                case ast.AnnAssign(target=ast.Name(id=name)) if each in self.node.body:
                    names.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    names.add(name)
        return names


class OurSources:
    """What the files of a folder take from vLLM, each with a place where it occurs.

    imports: full names. reached: attributes and keys of what is vLLM's. passed: keywords of calls of it.
    """

    def __init__(self, folder: Path) -> None:
        self._trees = {path: ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}
        # By file, the local names of what it imports from vLLM.
        self.imported = {path: dict(_imports(tree)) for path, tree in self._trees.items()}
        self.imports = {name: path.name for path, names in self.imported.items() for name in names.values()}
        self.classes = {each.name: self._class(each, path) for path, each in self._all(ast.ClassDef)}
        # Those whose `self` is vLLM's too, and the names that are nevertheless ours.
        self.derived = {name for name in self.classes if any(one.vllm for one in self._family(name))}
        self.own = {name for each in self.derived for name in self.classes[each].own_names}
        # Functions of ours that give something of vLLM's back, and attributes of ours that hold something of it.
        self.results = {
            each.name: each.returns for path, each in self._all(ast.FunctionDef) if self.names_vllm(each.returns, path)
        }
        self.holders = {
            each.target.attr if isinstance(each.target, ast.Attribute) else each.target.id
            for path, each in self._all(ast.AnnAssign)
            if isinstance(each.target, ast.Attribute | ast.Name) and self.names_vllm(each.annotation, path)
        }
        self.reached: dict[str, str] = {}
        self.passed: dict[str, str] = {}
        for _ in range(2):  # what one function leaves in an attribute, another may read
            for path, tree in self._trees.items():
                for owner, part in _parts(tree):
                    _Reader(self, path, owner, part).read()

    def overrides(self) -> Iterator[tuple[str, str]]:
        """Pairs of a class of vLLM's and a method that a class of ours may put into its place."""
        for name in self.classes:
            lineage = list(self._lineage(name))
            methods = {
                each.name
                for one in lineage
                for each in one.node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            yield from ((base, method) for one in lineage for base in one.vllm for method in methods)

    def _all(self, kind: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
        return ((path, each) for path, tree in self._trees.items() for each in ast.walk(tree) if isinstance(each, kind))

    def _class(self, node: ast.ClassDef, path: Path) -> OurClass:
        bases = tuple(ast.unparse(base) for base in node.bases)
        return OurClass(node, bases, tuple(self.imported[path][base] for base in bases if base in self.imported[path]))

    def _lineage(self, name: str) -> Iterator[OurClass]:
        """A class and its bases, as far as they are ours."""
        if name in self.classes:
            yield self.classes[name]
            for base in self.classes[name].bases:
                yield from self._lineage(base)

    def _family(self, name: str) -> Iterator[OurClass]:
        """A class, its bases, and the classes that derive from it."""
        for other in self.classes:
            lineage = list(self._lineage(other))
            if self.classes[name] in lineage:
                yield from lineage

    def names_vllm(self, annotation: ast.AST | None, path: Path) -> bool:
        """Whether an annotation mentions a type of vLLM's, or one of ours that derives from it."""
        if annotation is None:
            return False
        words = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}
        words |= {each.value for each in ast.walk(annotation) if isinstance(each, ast.Constant)}
        return bool(words & (self.imported[path].keys() | self.derived))


class _Reader:
    """Follows what is vLLM's through one statement of a module or class, mostly a function."""

    def __init__(self, sources: OurSources, path: Path, owner: str | None, part: ast.AST) -> None:
        self._sources, self._path, self._part = sources, path, part
        self._mine = set(sources.imported[path])
        if owner in sources.derived:
            self._mine |= {"self", "cls"}
        for each in ast.walk(part):
            if isinstance(each, ast.arg) and sources.names_vllm(each.annotation, path):
                self._mine.add(each.arg)

    def read(self) -> None:
        before = -1
        while before != len(self._mine):
            before = len(self._mine)
            for each in ast.walk(self._part):
                self._assign(each)
        for each in ast.walk(self._part):
            for name in self._names(each):
                self._sources.reached.setdefault(name, f"{self._path.name}:{each.lineno}")
            for name in self._keywords(each):
                self._sources.passed.setdefault(name, f"{self._path.name}:{each.lineno}")

    def _assign(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=[target], value=value) | ast.For(target=target, iter=value):
                self._bind(target, value)
            case ast.AsyncFor(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                self._bind(target, value)
            case ast.NamedExpr(target=target, value=value):
                self._bind(target, value)
            case ast.withitem(context_expr=value, optional_vars=target) if target is not None:
                self._bind(target, value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if self._sources.names_vllm(annotation, self._path):
                    self._mine.add(name)
            case ast.ExceptHandler(type=kind, name=str(name)) if kind is not None and self._is_vllm(kind):
                self._mine.add(name)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        """Where a tuple is taken apart whose parts are known, each part by itself."""
        parts = value.elts if isinstance(value, ast.Tuple) else None
        match value:
            case ast.Call(func=ast.Name(id="zip"), args=args):
                parts = args
            case ast.Call(func=ast.Name(id="enumerate"), args=[one, *_]):
                parts = [ast.Constant(0), one]
            case ast.Call(func=ast.Attribute(attr=name)) if name in self._sources.results:
                result = self._sources.results[name]
                parts = getattr(getattr(result, "slice", None), "elts", None)
        if isinstance(target, ast.Tuple) and parts and len(parts) == len(target.elts):
            for each, part in zip(target.elts, parts, strict=True):
                self._bind(each, part)
        elif self._is_vllm(value):
            if isinstance(target, ast.Attribute):
                self._sources.holders.add(target.attr)
            elif not isinstance(target, ast.Subscript):
                self._mine |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}

    def _is_vllm(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name not in FOREIGN and (name in self._mine or name in self._sources.derived)
            case ast.Attribute(attr=name) if name in self._sources.holders | FOREIGN:
                return name not in FOREIGN
            case ast.Attribute(value=value, attr=name):
                return name not in self._sources.own and self._is_vllm(value)
            case ast.Call(func=ast.Name(id="super")):
                return "self" in self._mine
            case ast.Call(func=ast.Name(id=name), args=args) if name in HANDED_ON:
                return any(map(self._is_vllm, args))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in self._sources.results:
                return True
            case ast.Call(func=func):
                return self._is_vllm(func)
            case ast.Subscript(value=value) | ast.Await(value=value) | ast.Starred(value=value):
                return self._is_vllm(value)
            case ast.GeneratorExp(elt=elt) | ast.ListComp(elt=elt):
                return self._is_vllm(elt)
            case ast.IfExp(body=body, orelse=orelse):
                return self._is_vllm(body) or self._is_vllm(orelse)
            case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return any(map(self._is_vllm, values))
        return False

    def _names(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Attribute(value=value, attr=name) if self._is_vllm(value):
                from_above = isinstance(value, ast.Call) and ast.unparse(value) == "super()"
                if name not in EVERYDAY and (from_above or name not in self._sources.own):
                    yield name
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name))) if self._is_vllm(value):
                if name != "image":  # a modality
                    yield name
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
                if self._is_vllm(value):
                    yield name
            case ast.Call(func=ast.Attribute(attr="__setattr__"), args=[value, ast.Constant(value=str(name)), _]):
                if self._is_vllm(value):
                    yield name
            case ast.Call(func=ast.Name(id="replace"), args=[value, *_], keywords=keywords) if self._is_vllm(value):
                yield from (keyword.arg for keyword in keywords)

    def _keywords(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Call) and self._is_vllm(node.func):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if called not in EVERYDAY | self._sources.own:
                yield from (keyword.arg for keyword in node.keywords if keyword.arg)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local and full names of what a module takes from vLLM, wherever in it."""
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and each.module and each.module.split(".")[0] == "vllm":
            yield from ((alias.asname or alias.name, f"{each.module}.{alias.name}") for alias in each.names)
        if isinstance(each, ast.Import):
            yield from (
                (alias.asname or alias.name, alias.name) for alias in each.names if alias.name.startswith("vllm")
            )


def _parts(tree: ast.Module) -> Iterator[tuple[str | None, ast.AST]]:
    """A module's statements, those of its classes with the class."""
    for each in tree.body:
        if isinstance(each, ast.ClassDef):
            yield from ((each.name, one) for one in [*each.body, *each.decorator_list])
        else:
            yield None, each
