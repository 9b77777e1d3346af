"""Runs rules that users wrote, in a sandbox; an endless one costs a time-out, not the pool."""

from pathlib import Path

from snakepit import CommandError, CommandTimeout, LuaAdapter, SnakepitExecutor

HANDLERS = Path(__file__).with_name("handlers.lua")
ORDER = {"total": 250, "country": "NL", "items": ["teapot", "cup"]}
RULES = {
    "discount": "order.total > 200 and 0.1 or 0",
    "free shipping": "order.country == 'NL' and #order.items < 5",
    "typo": "order.totl * 2",
    "curious": "os.execute('id')",
    "endless": "while true do end",
    "the next one": "math.floor(order.total / 7)",
}


def main() -> None:
    """Memory has a limit as well: see ``rlimits`` of the adapter."""
    adapter = LuaAdapter(HANDLERS, rlimits={"AS": 512 << 20})
    with SnakepitExecutor(adapter, max_workers=1, timeout=0.5) as pool:
        for name, rule in RULES.items():
            try:
                print(f"{name}: {pool.execute('judge', {'rule': rule, 'order': ORDER})}")
            except CommandTimeout:
                print(f"{name}: ended after 0.5 s")
            except CommandError as error:
                print(f"{name}: {error}")


if __name__ == "__main__":
    main()
