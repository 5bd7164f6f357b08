"""What a budget is called in the metrics: by its name where the server's settings know it, else "other"."""

from collections.abc import Collection

from covervlm.server.core.generation import PruningPolicy

OTHER = "other"


def budget_name(policy: PruningPolicy) -> str:
    """ "64" for a count of tokens, "0.25" for a share of them."""
    if isinstance(policy.keep_tokens, int):
        return str(policy.keep_tokens)
    return OTHER if policy.keep_ratio is None else f"{policy.keep_ratio:g}"


def budget_label(policy: PruningPolicy, known: Collection[str]) -> str:
    """One of `known` or OTHER: callers name whatever budgets they like, and every label is a series that stays."""
    name = budget_name(policy)
    return name if name in known else OTHER
