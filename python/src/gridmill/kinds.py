"""Every type of Gridmill's own, by name and by number."""

from . import higgs, resq, vptq
from .higgs import Higgs
from .resq import Resq
from .vptq import Vptq

Kind = Higgs | Resq | Vptq

_NAMED: dict[str, Kind] = {kind.name: kind for kind in (*higgs.TYPES, resq.TYPE)}


def by_name(name: str) -> Kind | None:
    """The type with this name, in any case."""
    name = name.upper()
    return _NAMED.get(name) or vptq.by_name(name)
