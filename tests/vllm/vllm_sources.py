"""Looks names up in vLLM's Python sources, which are parsed and never imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from zipfile import Path as ZipPath

Function = ast.FunctionDef | ast.AsyncFunctionDef
READ_LIKE_ATTRIBUTES = {"property", "cached_property"}


@dataclass(frozen=True, eq=False)
class Definition:
    """Where a name gets its meaning. node: a module, class, function or statement. owner: the class around it."""

    module: str
    node: ast.AST
    owner: ast.ClassDef | None = None

    @property
    def is_function(self) -> bool:
        return isinstance(self.node, Function) and not READ_LIKE_ATTRIBUTES & _decorators(self.node)


class Sources:
    """The package as it lies in a folder or in a wheel."""

    def __init__(self, root: Path | ZipPath) -> None:
        """root: what holds the folder `vllm`."""
        self._root = root
        self._module = cache(self._parse)

    def find(self, name: str) -> Definition | None:
        """The definition of a dotted name, through imports, aliases and base classes; None where there is none."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if (tree := self._module(module)) is not None:
                found: Definition | None = Definition(module, tree)
                for part in parts[length:]:
                    found = None if found is None else self._member(found, part)
                return found
        return None

    def signature(self, found: Definition) -> Signature | None:
        """What a call takes, without `self`; of a class, what makes an instance. None where nothing can be called."""
        if isinstance(found.node, ast.ClassDef):
            made = self._member(found, "__init__")
            return Signature(list(self._fields(found))) if made is None else self.signature(made)
        if not found.is_function:
            return None
        assert isinstance(found.node, Function)
        bound = found.owner is not None and "staticmethod" not in _decorators(found.node)
        return signature_of(found.node.args, bound=bound)

    def _parse(self, module: str) -> ast.Module | None:
        path = self._root.joinpath(*module.split("."))
        for file in (path / "__init__.py", path.parent / f"{path.name}.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
        return None

    def _member(self, found: Definition, name: str) -> Definition | None:
        if isinstance(found.node, ast.Module):
            return self._in_module(found, name)
        return self._in_class(found, name) if isinstance(found.node, ast.ClassDef) else None

    def _in_module(self, found: Definition, name: str) -> Definition | None:
        node = _names(found.node).get(name)
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            return self.find(f"{self._imported_from(found.module, node)}.{original}")
        if node is None:
            imports = [one for one in found.node.body if isinstance(one, ast.ImportFrom) and one.names[0].name == "*"]
            named = (self.find(f"{self._imported_from(found.module, one)}.{name}") for one in imports)
            return next((one for one in named if one is not None), None)
        value = getattr(node, "value", None)
        if isinstance(value, ast.Name) and value.id != name and (alias := self._in_module(found, value.id)):
            return alias
        return Definition(found.module, node)

    def _in_class(self, found: Definition, name: str) -> Definition | None:
        node = _names(found.node).get(name) or _own_attributes(found.node).get(name)
        if node is not None:
            return Definition(found.module, node, found.node)
        return next((member for base in self._bases(found) if (member := self._in_class(base, name))), None)

    def _bases(self, found: Definition) -> Iterator[Definition]:
        """The base classes that are vLLM's own."""
        for base in found.node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            named = self._member(Definition(found.module, self._module(found.module)), ast.unparse(base))
            if named is not None and isinstance(named.node, ast.ClassDef):
                yield named

    def _fields(self, found: Definition) -> Iterator[Parameter]:
        """Those of a dataclass or struct, the bases' first, all of them optional: defaults may come from anywhere."""
        fields = {name: None for base in self._bases(found) for name in self._annotated(base)}
        for name in fields | dict.fromkeys(self._annotated(found)):
            yield Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=...)

    def _annotated(self, found: Definition) -> list[str]:
        return [name for name, node in _names(found.node).items() if isinstance(node, ast.AnnAssign)]

    def _imported_from(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self._root.joinpath(*module.split("."), "__init__.py").is_file()
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


def signature_of(arguments: ast.arguments, *, bound: bool) -> Signature:
    """Names and kinds of parameters, and which have a default, which is `...` here."""
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    parameters = [
        Parameter(
            one.arg,
            Parameter.POSITIONAL_ONLY if i < len(arguments.posonlyargs) else Parameter.POSITIONAL_OR_KEYWORD,
            default=... if i >= required else Parameter.empty,
        )
        for i, one in enumerate(positional)
    ][bound:]
    if arguments.vararg:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(
            Parameter(one.arg, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is None else ...)
        )
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)


def _decorators(node: Function) -> set[str]:
    return {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}


@cache
def _names(node: ast.AST) -> dict[str, ast.stmt]:
    """What a module or class body defines, also under `if` and `try`; of several definitions, the last."""
    names: dict[str, ast.stmt] = {}
    for statement in _statements(node.body):
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names[name] = statement
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = statement
            case ast.Assign(targets=targets):
                names |= {target.id: statement for target in targets if isinstance(target, ast.Name)}
            case ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name: statement for alias in aliases}
    return names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            for inner in (statement.body, statement.orelse, getattr(statement, "finalbody", [])):
                yield from _statements(inner)
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


@cache
def _own_attributes(node: ast.ClassDef) -> dict[str, ast.AST]:
    """Attributes of `self` that a class's methods set."""
    return {
        each.attr: each
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }
