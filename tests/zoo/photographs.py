"""Photographs, scans and micrographs that scikit-image ships: real noise, flat areas, and pages of text."""

from PIL import Image

from tests.zoo.vocabularies import shipped

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "color.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png"),
    *("logo.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)


def file(name: str) -> bytes:
    """As it is shipped: grey, RGB, RGBA or a bitmap."""
    return shipped(f"skimage/data/{name}").read_bytes()


def photograph(name: str) -> Image.Image:
    """In RGB."""
    with Image.open(shipped(f"skimage/data/{name}")) as image:
        return image.convert("RGB")
