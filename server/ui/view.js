// What somebody asked for is brought into view: on a small screen it lies below the form.

export function bringIntoView(place) {
  if (place.getBoundingClientRect().top < 0.5 * window.innerHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  place.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}
