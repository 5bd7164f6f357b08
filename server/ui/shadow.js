// Agreement with the unpruned model, where the server answers a share of its traffic again without pruning.

import { element } from "./element.js";
import { total } from "./exposition.js";
import { count, counted, percent } from "./figures.js";
import { table } from "./table.js";

const NAME = "covervlm_shadow_";

// read: what exposition.js makes of the server's metrics; those of shadows may be absent, all or some.
export function showShadow(place, read) {
  if (!read.samples.has(`${NAME}requests_total`)) {
    const none =
      "This server compares nothing. Started with --shadow and a share, it answers that share of its pruned traffic again without pruning, while nobody waits, and shows here how often both agree.";
    return place.replaceChildren(element("p", { className: "note", textContent: none }));
  }
  const families = ["answers", "exact_answers", "agreeing_tokens", "tokens"].map((name) =>
    byBudget(read, `${NAME}${name}_total`),
  );
  const [answers, exact, agreeing, tokens] = families;
  const rows = [...answers].map(([budget, compared]) => [
    budget,
    count(compared),
    share(exact.get(budget), compared),
    share(agreeing.get(budget), tokens.get(budget)),
  ]);
  const waiting = counted(total(read, `${NAME}waiting`) ?? 0, "answer waits", "answers wait");
  place.replaceChildren(
    ...(rows.length
      ? [
          table(
            "Agreement with the unpruned model",
            ["Method, budget", "Compared", "Repeated whole", "Tokens agreed on"],
            rows,
          ),
        ]
      : []),
    element("p", {
      className: "note",
      textContent: `${rows.length ? "" : "Nothing has been compared yet. "}${waiting} for comparison.`,
    }),
  );
}

function byBudget({ samples }, name) {
  return new Map((samples.get(name) ?? []).map(({ labels, value }) => [`${labels.method}, ${labels.budget}`, value]));
}

const share = (some, all) => (some !== undefined && all ? percent(some / all, 1) : "–");
