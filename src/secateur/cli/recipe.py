"""`secateur recipe`."""

from __future__ import annotations

from secateur.cli.output import print_line


def recipe() -> None:
    """Print a recipe for `compress`: the demo's, with every setting and what it means."""
    from secateur.recipe import default_recipe

    print_line(default_recipe().rstrip())
