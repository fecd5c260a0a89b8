"""Finds modules that read a clock which an administrator, or NTP, may set."""

import ast

WALL_CLOCKS = {
    *(f"time.{name}" for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "asctime")),
    *("time.strftime", "time.CLOCK_REALTIME", "time.CLOCK_TAI"),
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    "datetime.date.today",
}


def wall_clocks(source: str) -> set[str]:
    """The wall clocks that a module names, under whatever name it imports them."""
    nodes = list(ast.walk(ast.parse(source)))
    meaning: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            meaning |= {name.asname or name.name: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            meaning |= {
                name.asname or name.name: f"{node.module}.{name.name}" for name in node.names
            }

    def dotted(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return meaning.get(node.id, "") if isinstance(node, ast.Name) else ""

    # An imported name counts by itself: it may be used as a default argument, which no call shows.
    named = {name for name in [*map(dotted, nodes), *meaning.values()] if name in WALL_CLOCKS}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    asked = [call for call in calls if dotted(call.func).startswith("time.clock_gettime")]
    # A clock number without a name may be CLOCK_REALTIME.
    unnamed = {
        dotted(call.func)
        for call in asked
        if not any(dotted(argument).startswith("time.CLOCK_") for argument in call.args)
    }
    return named | unnamed
