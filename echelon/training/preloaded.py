"""What every training worker needs, imported before they are forked, and without what no language model calls."""

from echelon.training.slim_imports import SCIENTIFIC, lean_imports

with lean_imports(SCIENTIFIC):
    import echelon.training.local  # noqa: F401
