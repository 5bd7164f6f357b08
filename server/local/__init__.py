"""A model in the caller's own process, asked without a server: `covervlm.load`."""

from covervlm.server.local.model import Model, load
from covervlm.server.local.results import Selection, Stream

__all__ = ["Model", "Selection", "Stream", "load"]
