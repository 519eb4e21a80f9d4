"use strict";
// The browser of samples. Texts reach the page as text alone, never as markup.
(function () {
  const section = document.getElementById("browser");
  if (!section) return;
  const data = JSON.parse(document.getElementById("browser-data").textContent);
  const veiled = section.dataset.offensive === "true";
  const field = (name) => document.getElementById("browser-" + name);
  const SHOWN = 3; // answers of a method before the rest is folded
  const mean = (answers) => answers.reduce((sum, answer) => sum + answer[1], 0) / answers.length;
  const worst = (answers) => Math.min(...answers.map((answer) => answer[1]));
  let list = [];
  let place = 0;

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  // Text of others: laid out apart from what is around it, and blurred until it is asked for where it may offend.
  function quoted(tag, text) {
    const box = element(tag);
    box.append(element("bdi", text.trim() || "(empty)"));
    if (veiled && !field("unveil").checked) {
      box.className = "veiled";
      box.tabIndex = 0;
      box.title = "show this text";
      const show = () => box.classList.remove("veiled");
      box.addEventListener("click", show);
      box.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          show();
        }
      });
    }
    return box;
  }

  function answerOf(answer) {
    const box = element("div", undefined, "answer");
    box.append(element("span", answer[1].toFixed(2), "score"));
    box.append(element("span", " seed " + data.seeds[answer[0]], "quiet"), quoted("p", answer[2]));
    return box;
  }

  function column(method, answers) {
    const box = element("div");
    const head = element("p", undefined, "who method-" + data.methods[method][0]);
    head.append(data.methods[method][1] + " ", element("span", "mean " + mean(answers).toFixed(2), "quiet"));
    const ordered = [...answers].sort((one, other) => one[1] - other[1]);
    box.append(head, ...ordered.slice(0, SHOWN).map(answerOf));
    if (ordered.length > SHOWN) {
      const rest = element("details");
      rest.append(element("summary", ordered.length - SHOWN + " more, better ones"));
      rest.append(...ordered.slice(SHOWN).map(answerOf));
      box.append(rest);
    }
    return box;
  }

  function gain(prompt) {
    const [first, second] = [Number(field("first").value), Number(field("second").value)];
    return mean(prompt.answers[first]) - mean(prompt.answers[second]);
  }

  // What a prompt is sorted by, the lowest first.
  const keys = {
    worst: (prompt) => worst(prompt.answers[Number(field("first").value)]),
    gain: (prompt) => -gain(prompt),
    loss: gain,
    prompt: (prompt) => prompt.score,
  };

  function matches(prompt, words) {
    if (field("tail").checked && !prompt.tail) return false;
    const has = (text) => text.toLowerCase().includes(words);
    return !words || has(prompt.text) || prompt.answers.some((answers) => answers.some((answer) => has(answer[2])));
  }

  function show() {
    const prompt = list[place];
    const out = field("sample");
    out.replaceChildren();
    field("place").textContent = list.length ? place + 1 + " of " + list.length : "no prompt matches";
    field("previous").disabled = place < 1;
    field("next").disabled = place >= list.length - 1;
    if (!prompt) return;
    const names = ["first", "second"].map((name) => data.methods[Number(field(name).value)][1]);
    const change = (gain(prompt) >= 0 ? "+" : "") + gain(prompt).toFixed(2);
    out.append(quoted("p", prompt.text));
    out.lastChild.classList.add("prompt");
    out.append(element("p", "Score of the prompt " + prompt.score.toFixed(2) + (prompt.tail ? ", in the prompt tail" : "") +
      ". " + names.join(" less ") + ": " + change + ", mean of the answers shown.", "quiet"));
    const columns = element("div", undefined, "answers");
    columns.append(...prompt.answers.map((answers, method) => column(method, answers)));
    out.append(columns);
  }

  function choose() {
    const words = field("words").value.trim().toLowerCase();
    const key = keys[field("sort").value];
    list = data.prompts.filter((prompt) => matches(prompt, words)).map((prompt) => [key(prompt), prompt]);
    list = list.sort((one, other) => one[0] - other[0]).map((pair) => pair[1]);
    place = 0;
    show();
  }

  function step(by) {
    place = Math.max(0, Math.min(list.length - 1, place + by));
    show();
  }

  for (const name of ["first", "second"]) {
    data.methods.forEach((method, number) => field(name).append(new Option(method[1], number)));
    field(name).value = data[name];
  }
  for (const name of ["sort", "first", "second", "tail", "words"]) field(name).addEventListener("input", choose);
  field("previous").addEventListener("click", () => step(-1));
  field("next").addEventListener("click", () => step(1));
  if (veiled) field("unveil").addEventListener("input", show);
  section.hidden = false;
  for (const link of document.querySelectorAll("a[href='#browse']")) link.parentElement.hidden = false;
  choose();
})();

// The table of contents closes when a heading is chosen.
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", () => link.closest("details").removeAttribute("open"));
}
