"""Every type of Gridmill's own, by name and by number."""

from . import higgs, vptq
from .higgs import Higgs
from .vptq import Vptq

Kind = Higgs | Vptq

_HIGGS = {kind.name: kind for kind in higgs.TYPES}


def by_name(name: str) -> Kind | None:
    """The type with this name, in any case."""
    name = name.upper()
    return _HIGGS.get(name) or vptq.by_name(name)
