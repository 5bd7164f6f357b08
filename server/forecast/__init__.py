"""What traffic comes next: requests are counted by the minute, their seasons continued, and peaks told beforehand."""

from covervlm.server.forecast.decomposition import forecast

__all__ = ["forecast"]
