// Heads as buttons; the bar behind a name is the share of its patterns.
export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const list = parentElement.querySelector("ol");
  list.setAttribute("aria-label", data.label);
  list.replaceChildren(
    ...data.rows.map(({ name, share, text }) => {
      const row = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.style.setProperty("--share", String(share));
      const head = document.createElement("span");
      head.textContent = name;
      const count = document.createElement("span");
      count.textContent = text;
      button.append(head, count);
      button.onclick = () => setTriggerValue("opened", name);
      row.append(button);
      return row;
    }),
  );
}
