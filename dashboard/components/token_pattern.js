// Tokens that light up: hovering one shows what it reads, or who reads it; a click keeps it.
export default function (component) {
  const { parentElement, data, setStateValue } = component;
  const root = parentElement.querySelector(".tokens");
  const pattern = patternOf(data.pattern);
  const sinks = new Set(data.sinks);
  let direction = root.dataset.direction || "reads";
  let kept = data.query;
  let over = null;

  const head = document.createElement("div");
  head.className = "head";
  const buttons = { reads: "what it reads", readers: "who reads it" };
  for (const [name, words] of Object.entries(buttons)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.dataset.direction = name;
    button.onclick = () => {
      direction = root.dataset.direction = name;
      paint(true);
    };
    head.append(button);
  }
  const says = document.createElement("div");
  says.className = "says";
  says.setAttribute("aria-live", "polite");

  const lists = data.same ? [data.tokens] : [data.tokens, data.keys];
  const titles = data.same ? [""] : [data.names[0], data.names[1]];
  const spans = lists.map((tokens, list) => {
    const box = document.createElement("div");
    box.className = "list";
    box.tabIndex = 0;
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-label", data.label + " " + titles[list]);
    const made = tokens.map(([text, role], position) => {
      const span = document.createElement("span");
      span.className = role === "image" ? "patch" : "token " + role;
      if (role !== "image") span.textContent = text || "·";
      span.dataset.position = position;
      span.setAttribute("role", "option");
      return span;
    });
    let group = null;
    made.forEach((span, position) => {
      if (span.className !== "patch") {
        group = null;
        box.append(span);
        return;
      }
      if (group === null) {
        group = document.createElement("span");
        group.className = "patches";
        box.append(group);
      }
      group.append(span);
      span.title = tokens[position][0];
    });
    const at = (event) => {
      const span = event.target.closest("[data-position]");
      return span ? Number(span.dataset.position) : null;
    };
    box.onmouseover = (event) => {
      const position = at(event);
      if (position === null || position === over?.position) return;
      over = { list, position };
      paint(true);
    };
    box.onmouseleave = () => {
      over = null;
      paint(true);
    };
    box.onclick = (event) => {
      const position = at(event);
      if (position !== null && (data.same || list === 0)) keep(position);
    };
    box.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
      const last = tokens.length - 1;
      const here = over?.list === list ? over.position : list === 0 ? kept : 0;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        if (list === 0) keep(here);
      } else if (step || event.key === "Home" || event.key === "End") {
        event.preventDefault();
        const to = event.key === "Home" ? 0 : event.key === "End" ? last : here + step;
        over = { list, position: Math.max(0, Math.min(last, to)) };
        paint(true);
      } else if (event.key === "Escape") {
        over = null;
        paint(true);
      }
    };
    return { box, made, tokens, title: titles[list] };
  });

  const parts = spans.flatMap(({ box, title }) => {
    if (!title) return [box];
    const name = document.createElement("div");
    name.className = "name";
    name.textContent = title;
    return [name, box];
  });
  root.replaceChildren(head, says, ...parts);

  function keep(position) {
    if (position === kept) return;
    kept = position;
    paint(true);
    setStateValue("query", position);
  }

  function paint(aloud) {
    // In two lists a token of the second one is a key: who reads it is all there is to ask.
    const list = over ? over.list : 0;
    const position = over ? over.position : kept;
    const way = !data.same && list === 1 ? "readers" : direction;
    const weights = way === "reads" ? pattern.reads(position) : pattern.readers(position);
    const lit = data.same ? 0 : way === "reads" ? 1 : 0;
    // A sink's key would leave no colour to the others; as readers all count alike.
    const counts = (i) => way === "readers" || !sinks.has(i);
    const top = fullColour(weights, counts);
    spans.forEach(({ made }, number) =>
      made.forEach((span, i) => {
        const share = number === lit ? Math.min(1, weights[i] / top) : 0;
        span.style.setProperty("--share", share.toFixed(3));
        span.classList.toggle("strong", share > 0.5);
        const asked = number === list && i === position;
        span.classList.toggle("asked", asked);
        span.setAttribute("aria-selected", asked ? "true" : "false");
      }),
    );
    for (const button of head.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(button.dataset.direction === way));
    says.textContent = sentence(list, position, way, weights, lit, top);
    if (aloud) tell(data.group, { from: "tokens", list, position, direction: way, kept });
  }

  function named(list, position) {
    const [text, role] = spans[list].tokens[position];
    return role === "image" ? text : `‘${text}’`;
  }

  function sentence(list, position, way, weights, lit, top) {
    const order = Array.from(weights.keys()).filter((i) => weights[i] > 0);
    order.sort((a, b) => weights[b] - weights[a]);
    const best = order.slice(0, 4).map((i) => `${named(lit, i)} ${shown(weights[i])}`);
    const who = `${named(list, position)} at ${position}`;
    if (way === "reads" && !pattern.has(position)) return `${who} reads nothing here.`;
    const missing = way === "reads" ? data.missing[String(position)] : 0;
    const rest = missing ? `; ${shown(missing)} on keys that are not kept` : "";
    const verb = way === "reads" ? "reads" : "is read by";
    return `${who} ${verb} ${best.join(", ") || "nothing"}${rest}. Full colour: ${shown(top)} or more.`;
  }

  const deaf = hear(data.group, "tokens", (seen) => {
    kept = seen.kept;
    over = seen.position === null ? null : { list: seen.list, position: seen.position };
    paint(false);
  });
  paint(true);
  return deaf;
}
