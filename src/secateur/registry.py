"""One kind of registry for everything that is looked up by key: operator rules, criteria, sources, models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from secateur.errors import RegistryError

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")


class Registry(dict[K, V]):
    """Things of one kind by key. Decorators fill it at import; afterwards it is only read.

    Raises:
        RegistryError: a key is registered twice, or looked up and unknown.

    >>> shapes = Registry[str, type]("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes["square"] is Square
    True
    >>> shapes["cube"]
    Traceback (most recent call last):
    secateur.errors.RegistryError: No shape 'cube'. Known: square.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, *keys: K) -> Callable[[W], W]:
        """Return a decorator that files its argument under every key and hands it back unchanged."""

        def add(item: W) -> W:
            for key in keys:
                if key in self:
                    raise RegistryError(f"{self.kind} {key!s} is taken by {self[key]!r}. Register under another key.")
                self[key] = item  # type: ignore[assignment]
            return item

        return add

    def __missing__(self, key: K) -> V:
        raise RegistryError(f"No {self.kind} {key!r}. Known: {', '.join(sorted(map(str, self)))}.")
