// Examples of a feature, one line each. Where a line can be picked it is a button; one of them is
// in the tab order, arrow keys go to the others.
export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const root = parentElement.querySelector(".firings");
  const drawn = JSON.stringify([data.groups, data.largest, data.pressable]);
  if (root.dataset.drawn !== drawn) draw(root, data);
  root.dataset.drawn = drawn;
  const buttons = [...root.querySelectorAll("button")];
  const own = buttons.findIndex((button) => button.dataset.name === data.picked);
  buttons.forEach((button, number) => {
    button.setAttribute("aria-pressed", String(number === own));
    button.tabIndex = number === Math.max(own, 0) ? 0 : -1;
    button.onclick = () => setTriggerValue("picked", button.dataset.name);
    button.onkeydown = (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      buttons[(number + step + buttons.length) % buttons.length].focus();
    };
  });
}

const part = (tag, kind, text) =>
  Object.assign(document.createElement(tag), { className: kind, textContent: text });

function draw(root, data) {
  const legend = part("div", "legend", "");
  legend.append(part("span", "", "strength 0"), part("i", "", ""), part("span", "", data.largest));
  root.replaceChildren(legend);
  for (const group of data.groups) {
    if (group.title) root.append(part("p", "group", group.title));
    const pictured = group.rows.every((row) => row.picture && row.words.length === 0);
    const list = part("div", pictured ? "rows tiles" : "rows", "");
    if (data.pressable) list.classList.add("scrolled");
    list.setAttribute("role", "group");
    list.setAttribute("aria-label", group.title || "examples");
    for (const row of group.rows) list.append(line(row, data.pressable));
    root.append(list);
  }
}

function line(row, pressable) {
  const made = part(pressable ? "button" : "div", "row", "");
  if (pressable) made.type = "button";
  made.dataset.name = row.name;
  made.append(part("span", "strength", row.strength));
  if (row.picture) made.append(picture(row.picture, `${row.id}, ${row.where}`));
  const said = part("span", "said", "");
  if (row.words.length) {
    const text = part("span", "text", "");
    for (const word of row.words) {
      if (word.spaced) text.append(" ");
      const token = part(word.here ? "mark" : "span", "token", word.text.replaceAll("\n", "⏎"));
      token.style.setProperty("--tint", String(word.share));
      if (word.about) token.title = word.about;
      text.append(token);
    }
    said.append(text);
  }
  said.append(part("span", "id", `${row.id} · ${row.where}`));
  made.append(said);
  return made;
}

function picture(given, label) {
  const frame = part("span", "picture", "");
  frame.style.width = `${given.width}px`;
  frame.style.height = `${given.height}px`;
  const image = document.createElement("img");
  image.src = given.url;
  image.alt = label;
  frame.append(image);
  for (const cell of given.cells) {
    const [left, top, right, bottom] = cell.box;
    const tint = part("span", cell.here ? "cell here" : "cell", "");
    tint.style.left = `${left * 100}%`;
    tint.style.top = `${top * 100}%`;
    tint.style.width = `${(right - left) * 100}%`;
    tint.style.height = `${(bottom - top) * 100}%`;
    tint.style.setProperty("--tint", String(cell.share));
    tint.title = cell.text;
    frame.append(tint);
  }
  return frame;
}
