"""The arithmetic of greedy maximum coverage: torch in, torch out, nothing known of models."""

from covervlm.kernels.coverage_affinity import coverage_affinity
from covervlm.kernels.greedy_max_coverage import greedy_max_coverage
from covervlm.kernels.warm_up import warm_up

__all__ = ["coverage_affinity", "greedy_max_coverage", "warm_up"]
