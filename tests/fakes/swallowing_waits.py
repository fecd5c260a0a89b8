"""Finds modules that wait by a function of asyncio that may lose or replace a cancellation."""

import ast

FORBIDDEN = {"wait_for", "timeout", "timeout_at"}
"""See ``guests/waiting.py``. Strings count too: getattr() would evade the search."""

_ALWAYS = {"wait_for", "timeout_at"}
"""These names mean asyncio's functions, whatever object they are taken from."""


def swallowing_waits(source: str) -> list[int]:
    """The lines on which a module names one of them, also under another name."""
    nodes = list(ast.walk(ast.parse(source)))
    asyncio = {"asyncio"}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                if "asyncio" in (alias.name.partition(".")[0], module.partition(".")[0]):
                    asyncio.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.Assign) and ast.unparse(node.value) in asyncio:
            asyncio |= {t.id for t in node.targets if isinstance(t, ast.Name)}

    def offends(node: ast.AST) -> bool:
        match node:
            case ast.Attribute(value, name):
                root = value
                while isinstance(root, ast.Attribute):
                    root = root.value
                of_asyncio = isinstance(root, ast.Name) and root.id in asyncio
                return name in _ALWAYS or (name in FORBIDDEN and of_asyncio)
            case ast.ImportFrom(module, names):
                of_asyncio = (module or "").partition(".")[0] == "asyncio"
                return any(
                    alias.name in _ALWAYS or (of_asyncio and alias.name in {*FORBIDDEN, "*"})
                    for alias in names
                )
            case ast.Constant(value):
                return value in _ALWAYS
        return False

    return sorted(node.lineno for node in nodes if offends(node))  # type: ignore[attr-defined]
