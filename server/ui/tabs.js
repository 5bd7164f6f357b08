// The tabs: arrow keys, Home and End move between them, and the address remembers which one is open.

const tabs = [...document.querySelectorAll('[role="tab"]')];

// opened: functions by tab's name, called whenever it comes into view; closed: whenever it goes.
export function startTabs({ opened, closed }) {
  const nameOf = (tab) => tab.id.replace("tab-", "");

  function select(tab, { focus = false } = {}) {
    const before = tabs.find((one) => one.getAttribute("aria-selected") === "true");
    for (const one of tabs) {
      one.setAttribute("aria-selected", String(one === tab));
      one.tabIndex = one === tab ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).hidden = one !== tab;
    }
    if (focus) tab.focus();
    if (before && before !== tab) closed[nameOf(before)]?.();
    history.replaceState(null, "", nameOf(tab) === "ask" ? location.pathname : `#${nameOf(tab)}`);
    opened[nameOf(tab)]?.();
  }

  function fromAddress() {
    select(tabs.find((tab) => `#${nameOf(tab)}` === location.hash) ?? tabs[0]);
  }

  for (const [number, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: number + 1, ArrowLeft: number - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[
        event.key
      ];
      if (to === undefined) return;
      event.preventDefault();
      select(tabs[to % tabs.length], { focus: true });
    });
  }
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
}
