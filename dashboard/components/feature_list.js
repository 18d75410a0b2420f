// Features as lines: one of them is in the tab order, arrow keys go to the others.
export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const root = parentElement.querySelector(".features");
  const drawn = JSON.stringify(data.rows);
  if (root.dataset.drawn !== drawn) draw(root, data.rows);
  root.dataset.drawn = drawn;
  const buttons = [...root.querySelectorAll("button")];
  const own = data.rows.findIndex((row) => row.latent === data.picked);
  if (own >= 0) show(buttons[own]);
  buttons.forEach((button, number) => {
    button.setAttribute("aria-pressed", String(number === own));
    button.tabIndex = number === Math.max(own, 0) ? 0 : -1;
    button.onclick = () => setTriggerValue("picked", data.rows[number].latent);
    button.onkeydown = (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      buttons[(number + step + buttons.length) % buttons.length].focus();
    };
  });
}

// Of a copied address the line may be far down. The page itself is not moved.
function show(button) {
  const lines = button.parentElement;
  const low = button.offsetTop + button.offsetHeight - lines.clientHeight;
  if (lines.scrollTop < low || lines.scrollTop > button.offsetTop) lines.scrollTop = low + lines.clientHeight / 2;
}

function draw(root, rows) {
  const part = (kind, text) =>
    Object.assign(document.createElement("span"), { className: kind, textContent: text });
  const header = document.createElement("div");
  header.className = "line header";
  header.append(
    part("latent", "latent"), part("density", "fires at"), part("head", "head"),
    part("said", "strongest example · speaks for"),
  );
  const lines = document.createElement("div");
  lines.className = "lines";
  lines.setAttribute("role", "group");
  lines.setAttribute("aria-label", "features");
  for (const row of rows) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "line";
    const density = part("density", row.density);
    density.style.setProperty("--share", String(row.share));
    const said = part("said", "");
    said.append(part("example", row.example), part("words", row.words));
    button.append(part("latent", String(row.latent)), density, part("head", row.head), said);
    lines.append(button);
  }
  root.replaceChildren(header, lines);
}
