"""Prompt ensembles: how a class name becomes the texts whose mean embedding stands for the class."""

from collections.abc import Sequence

ENSEMBLE = (
    "itap of a {}.",
    "a origami {}.",
    "a bad photo of the {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven templates that CLIP's authors found to do best together on ImageNet; InMaP and OnZeta use the same."""


def check_templates(templates: Sequence[str]) -> None:
    """Raise ValueError unless every template has exactly one `{}`, the place of the class name."""
    if not templates:
        raise ValueError("at least one template is needed")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(f"the template {template[:80]!r} must contain '{{}}' once, where the class name goes")


def check_class_names(names: Sequence[str]) -> None:
    """Raise ValueError unless there are at least two names, none blank and no two the same but for case or spaces."""
    if len(names) < 2:
        raise ValueError("at least two classes are needed")
    seen: dict[str, str] = {}
    for name in names:
        key = " ".join(name.split()).casefold()
        if not key:
            raise ValueError("a class name is empty")
        if key in seen:
            other = seen[key]
            alike = "" if other == name else f": {other[:80]!r} differs in case or spaces alone"
            raise ValueError(f"the class {name[:80]!r} is given twice{alike}")
        seen[key] = name


def prompts(names: Sequence[str], templates: Sequence[str] = ENSEMBLE) -> list[str]:
    """Every name in every template, names in the outer loop: len(names) * len(templates) texts."""
    return [template.replace("{}", name.strip()) for name in names for template in templates]
