"use strict";
// The thought browser of a report. Everything that comes from the run is untrusted text: it reaches the page as text
// nodes only, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const CLIP = 4000; // characters of a text that are shown at first
  const AT_ONCE = 100; // lines of the list that are shown at first
  const MARKS = {
    "pair": "became a pair",
    "no-pair": "gave no pair",
    "flipped": "the judge contradicts itself",
    "malformed": "has a malformed output",
    "won": "last model beats M₀",
    "lost": "last model loses to M₀",
    "became-right": "wrong before, right now",
    "became-wrong": "right before, wrong now",
  };
  const state = { part: "", arm: data.arms[0], mark: "", category: "", query: "", folded: false, shown: AT_ONCE };
  let found = []; // lines of the index that pass the filters
  let current = null; // the line of the prompt that is shown

  // Elements.

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  // Control characters, and those that change the direction of text, would hide or reorder what a model wrote.
  const CONTROL = /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2060\u2066-\u2069\ufeff])/;

  function named(character) {
    const code = character.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : "U+" + code.toString(16).toUpperCase().padStart(4, "0");
  }

  function visible(text) {
    const fragment = document.createDocumentFragment();
    text.replaceAll("\r\n", "\n").split(CONTROL).forEach((part, at) => {
      fragment.append(at % 2 ? make("span", { class: "control" }, named(part)) : part);
    });
    return fragment;
  }

  function text(value) {
    const box = make("div", { class: "text", dir: "auto" });
    if (value.length <= CLIP) {
      box.append(visible(value));
      return box;
    }
    const all = () => box.replaceChildren(visible(value));
    box.append(visible(value.slice(0, CLIP)), "\u2026",
      make("button", { type: "button", onclick: all }, `Show all ${value.length.toLocaleString("en")} characters`));
    return box;
  }

  const percent = (value) => `${(100 * value).toFixed(0)} %`;
  const model = (number) => "M" + [...String(number)].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("");

  // Pages: some are in this file, the others in files beside it.

  const pages = new Map(data.pages.map((entries, number) => [number, Promise.resolve(entries)]));
  const arrived = new Map();
  window.tpoLitePage = (number, entries) => arrived.set(number, entries);

  function page(number) {
    if (!pages.has(number)) {
      pages.set(number, new Promise((resolve, reject) => {
        const source = `${data.folder}/${String(number).padStart(4, "0")}.js`;
        const failed = () => {
          pages.delete(number);
          reject(new Error(`These samples are in ${source}, which is not beside this file.`));
        };
        const script = make("script", { src: source });
        script.addEventListener("load", () => (arrived.has(number) ? resolve(arrived.get(number)) : failed()));
        script.addEventListener("error", failed);
        document.head.append(script);
      }));
    }
    return pages.get(number);
  }

  async function entryOf(line) {
    const entry = (await page(line.page)).find((each) => each.id === line.id && each.part === line.part);
    if (!entry) throw new Error("The files beside this one belong to another report. Write the report again.");
    return entry;
  }

  // Search: all texts if they are in this file, otherwise the beginnings of the prompts.

  const haystacks = new Map();
  if (!data.files) {
    for (const entries of data.pages) for (const entry of entries) haystacks.set(`${entry.part}/${entry.id}`, entry);
  }

  function haystack(line) {
    const key = `${line.part}/${line.id}`;
    const entry = haystacks.get(key);
    if (entry === undefined) return line.title.toLowerCase();
    if (typeof entry !== "string") {
      const texts = [entry.text, ...entry.context.flat()];
      for (const arm of Object.values(entry.arms)) {
        for (const output of arm.samples || arm.answers) texts.push(output.thought, output.response, output.text);
      }
      haystacks.set(key, texts.filter(Boolean).join("\n").toLowerCase());
    }
    return haystacks.get(key);
  }

  function marksOf(line) {
    return line.marks[state.arm] || Object.values(line.marks)[0] || [];
  }

  function filter() {
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    found = data.index.filter((line) =>
      line.part === state.part &&
      (!state.mark || marksOf(line).includes(state.mark)) &&
      (!state.category || line.category === state.category) &&
      words.every((word) => haystack(line).includes(word)));
    state.shown = AT_ONCE;
    list();
    if (!found.includes(current)) show(found[0] || null);
    else steps();
  }

  // The list.

  const address = (line) => `#prompt/${line.part}/${encodeURIComponent(line.id)}`;

  function list() {
    const all = data.index.filter((line) => line.part === state.part).length;
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${all.toLocaleString("en")} prompts`;
    const rows = found.slice(0, state.shown).map((line) => {
      const notes = [line.category, ...marksOf(line).map((mark) => MARKS[mark])].filter(Boolean).join(" · ");
      return make("li", null, make("a", { href: address(line), "aria-current": line === current && "true" },
        make("span", { dir: "auto" }, visible(line.title)), make("span", { class: "meta" }, visible(notes))));
    });
    const more = () => { state.shown += AT_ONCE; list(); };
    const focused = byId("list").contains(document.activeElement);
    byId("list").replaceChildren(
      rows.length ? make("ol", null, ...rows) : make("p", { class: "none" }, "No prompt fits. Clear the search or a filter."),
      ...(found.length > state.shown
        ? [make("p", { class: "more" }, make("button", { type: "button", onclick: more }, `Show ${AT_ONCE} more`))] : []));
    // The line that had the focus is gone. Without it, keys would go to the page.
    if (focused) (byId("list").querySelector("[aria-current]") || byId("list")).focus({ preventScroll: true });
  }

  function steps() {
    const at = found.indexOf(current);
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at < 0 || at >= found.length - 1;
  }

  function step(by) {
    const line = found[found.indexOf(current) + by];
    if (!line) return;
    if (found.indexOf(line) >= state.shown) state.shown += AT_ONCE;
    show(line);
    history.replaceState(null, "", address(line));
  }

  // One prompt.

  async function show(line) {
    current = line;
    list();
    steps();
    const box = byId("prompt");
    const marked = byId("list").querySelector("[aria-current]");
    if (marked) {
      const area = byId("list");
      const top = marked.offsetTop - area.offsetTop;
      if (top < area.scrollTop || top + marked.offsetHeight > area.scrollTop + area.clientHeight) area.scrollTop = top;
    }
    if (!line) {
      box.replaceChildren();
      return;
    }
    try {
      const entry = await entryOf(line);
      if (line === current) box.replaceChildren(...prompt(entry));
    } catch (error) {
      if (line === current) box.replaceChildren(make("p", { class: "problem" }, error.message));
    }
  }

  function prompt(entry) {
    const notes = [entry.category, entry.answer === null ? null : `right answer: ${entry.answer}`, entry.source];
    const parts = [make("h3", { class: "hidden" }, "Prompt"), make("div", { class: "prompt" },
      entry.context.length ? context(entry.context) : null, text(entry.text),
      make("p", { class: "meta" }, visible(notes.filter(Boolean).join(" · "))))];
    if (!entry.part.startsWith("iteration-")) {
      for (const [arm, made] of Object.entries(entry.arms)) parts.push(...heldOut(arm, made));
    } else {
      const arm = entry.arms[state.arm] ? state.arm : Object.keys(entry.arms)[0];
      parts.push(...training(arm, entry.arms[arm]));
    }
    return parts;
  }

  function context(turns) {
    return make("details", { class: "context" }, make("summary", null, `Before it: ${turns.length} turn${turns.length > 1 ? "s" : ""}`),
      ...turns.flatMap(([role, content]) => [make("h4", null, visible(role)), text(content)]));
  }

  function output(made, heading, badge, facts) {
    const malformed = made.text !== undefined;
    const outcome = made.outcome === "ok" ? null : data.outcomes[made.outcome] || made.outcome;
    const kind = badge === "chosen" || badge === "rejected" ? badge : "";
    const lengths = malformed ? `${made.tokens[2]} tokens in all` : `${made.tokens[1]} tokens`;
    const right = made.right === null ? null
      : make("span", { class: `badge ${made.right ? "right" : "wrong"}` }, made.right ? "right" : "wrong");
    return make("div", { class: `card ${kind}`, role: "group", "aria-label": heading },
      make("header", null, make("h4", null, heading),
        badge ? make("span", { class: `badge ${badge}` }, badge) : null, right,
        outcome ? make("span", { class: "badge malformed" }, malformed ? `malformed: ${outcome}` : outcome) : null,
        make("p", { class: "facts" }, [...facts, lengths].filter(Boolean).join(" · "))),
      made.thought ? make("details", { class: "thought", open: !state.folded },
        make("summary", null, `Thought, ${made.tokens[0]} tokens`), text(made.thought)) : null,
      text(malformed ? made.text : made.response));
  }

  function heldOut(arm, made) {
    const cards = made.answers.map((answer) => {
      const facts = Object.entries(answer.wins).map(([number, win]) =>
        win === null ? `too long to compare with ${model(number)}` : `${percent(win)} against ${model(number)}`);
      if (answer.kept) facts.push("the model before it was kept");
      if (answer.attempts > 1) facts.push(`attempt ${answer.attempts}`);
      return output(answer, model(answer.model), "", facts);
    });
    const title = data.arms.length > 1 ? `${arm}: the answers of each model` : "The answers of each model";
    return [make("h3", null, title[0].toUpperCase() + title.slice(1)),
      make("p", { class: "small quiet" }, "Percentages are how sure the judge is that the answer is better than that of an earlier model."),
      make("div", { class: "cards" }, ...cards)];
  }

  function training(arm, made) {
    const [, chosen, rejected] = made.pair || [null, null, null];
    const rank = (sample) => (sample.k === chosen ? 1e9 : sample.score === null ? -1e9 : sample.score);
    const samples = [...made.samples].sort((a, b) => rank(b) - rank(a) || a.k - b.k);
    const cards = samples.map((sample) => {
      const badge = sample.k === chosen ? "chosen" : sample.k === rejected ? "rejected" : "";
      const rating = made.elo ? `Elo ${Math.round(sample.rating)}` : `rating ${sample.rating}`;
      const facts = sample.score === null ? []
        : [rating, `score ${sample.score >= 0 ? "+" : "−"}${Math.abs(sample.score).toFixed(2)}`];
      return output(sample, `Sample ${sample.k}`, badge, facts);
    });
    const parts = [make("h3", { class: "hidden" }, `Samples of the ${arm} arm`), make("p", { class: "verdict" }, made.why),
      make("div", { class: "cards" }, ...cards)];
    return made.comparisons.length ? [...parts, ...judged(made, samples, chosen, rejected)] : parts;
  }

  // What the judge said.

  function judged(made, samples, chosen, rejected) {
    const said = new Map(made.comparisons.map((each) => [`${each[0]}/${each[1]}`, each]));
    const asked = new Set(made.comparisons.flatMap((each) => [each[0], each[1]]));
    const ks = samples.map((sample) => sample.k).filter((k) => asked.has(k));
    const better = (a, b) => {
      const first = said.get(`${a}/${b}`), second = said.get(`${b}/${a}`);
      const known = [first && first[2], second && 1 - second[2]].filter((p) => p !== undefined);
      return known.length ? known.reduce((sum, p) => sum + p, 0) / known.length : null;
    };
    const rows = ks.map((a) => make("tr", null, make("th", { scope: "row" }, String(a)), ...ks.map((b) => {
      if (a === b) return make("td", { class: "self" }, "–");
      const p = better(a, b);
      if (p === null) return make("td", { class: "unasked" }, "·");
      const cell = make("td", null, percent(p));
      cell.style.setProperty("--p", p.toFixed(3));
      return cell;
    })));
    const table = make("table", { class: "matrix", "aria-label": "Judge's probabilities" },
      make("thead", null, make("tr", null, make("td", { class: "self" }), ...ks.map((k) => make("th", { scope: "col" }, String(k))))),
      make("tbody", null, ...rows));
    const pairs = [];
    ks.forEach((a, at) => ks.slice(at + 1).forEach((b) => {
      if (said.has(`${a}/${b}`) || said.has(`${b}/${a}`)) pairs.push([a, b]);
    }));
    const isPair = ([a, b]) => (a === chosen && b === rejected) || (a === rejected && b === chosen);
    pairs.sort((one, other) => isPair(other) - isPair(one));
    return [make("h3", null, "What the judge said"),
      make("p", { class: "small quiet" }, "How sure the judge is that the sample on the left is better than the one above, " +
        "over both orders. A dot was not asked. Samples with the same response share its comparisons."),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Judge's probabilities" }, table),
      make("div", { class: "pairs" }, ...pairs.map((pair) => comparison(pair, said, isPair(pair))))];
  }

  function comparison([a, b], said, open) {
    const orders = [said.get(`${a}/${b}`), said.get(`${b}/${a}`)].filter(Boolean);
    const ofA = (each) => (each[0] === a ? each[2] : 1 - each[2]);
    const shares = orders.map((each) => `${each[3] === "overlong" ? "too long" : percent(ofA(each))} with ${each[0]} first`);
    const verdicts = orders.map((each) => ({ A: each[0], B: each[1] })[each[3]]);
    const flips = verdicts.length === 2 && verdicts[0] !== undefined && verdicts[1] !== undefined && verdicts[0] !== verdicts[1];
    const columns = orders.map((each) => {
      const verdict = { A: `prefers ${each[0]}`, B: `prefers ${each[1]}` }[each[3]] || each[3];
      return make("div", null, make("h5", null, `${each[0]} shown first, ${each[1]} second: ${verdict}`),
        text(each[4] || "No explanation was written."));
    });
    return make("details", { open }, make("summary", null, `${a} better than ${b}: ${shares.join(", ")}`,
      flips ? make("span", { class: "badge malformed" }, " contradicts itself") : null), make("div", { class: "said" }, ...columns));
  }

  // Controls.

  function options(select, values) {
    select.replaceChildren(...values.map(([value, label]) => make("option", { value }, visible(label).textContent)));
  }

  function choose(part) {
    state.part = part;
    byId("part").value = part;
    const lines = data.index.filter((line) => line.part === part);
    const marks = new Set(lines.flatMap((line) => Object.values(line.marks).flat()));
    options(byId("mark"), [["", "all"], ...Object.entries(MARKS).filter(([mark]) => marks.has(mark))]);
    const categories = [...new Set(lines.map((line) => line.category).filter(Boolean))].sort();
    options(byId("category"), [["", "all"], ...categories.map((name) => [name, name])]);
    byId("category-label").hidden = categories.length < 2;
    byId("arm-label").hidden = data.arms.length < 2 || !part.startsWith("iteration-");
    state.mark = state.category = "";
  }

  function fold() {
    state.folded = !state.folded;
    byId("fold").setAttribute("aria-pressed", String(state.folded));
    for (const thought of document.querySelectorAll("details.thought")) thought.open = !state.folded;
  }

  function fromAddress() {
    const [, part, id] = /^#prompt\/([^/]+)\/(.+)$/.exec(location.hash) || [];
    const line = data.index.find((each) => each.part === part && encodeURIComponent(each.id) === id);
    if (!line) return false;
    if (part !== state.part) choose(part);
    if (!found.includes(line)) {
      state.query = byId("query").value = "";
      state.mark = byId("mark").value = state.category = byId("category").value = "";
      current = line;
      filter();
    }
    show(line);
    return true;
  }

  function keys(event) {
    const typing = event.target.matches("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
    const action = { j: () => step(1), k: () => step(-1), t: fold, "/": () => byId("query").focus() }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  byId("prompts").hidden = false;
  byId("search-what").textContent = data.files ? "(beginnings of prompts)" : "(prompts, thoughts and responses)";
  options(byId("part"), data.parts);
  options(byId("arm"), data.arms.map((arm) => [arm, arm]));
  byId("part").addEventListener("change", (event) => { choose(event.target.value); filter(); });
  for (const name of ["arm", "mark", "category"]) {
    byId(name).addEventListener("change", (event) => {
      state[name] = event.target.value;
      filter();
      if (name === "arm") show(current);
    });
  }
  byId("query").addEventListener("input", (event) => { state.query = event.target.value; filter(); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("fold").addEventListener("click", fold);
  byId("prompts").addEventListener("keydown", keys);
  window.addEventListener("hashchange", fromAddress);
  choose(data.parts[0][0]);
  filter();
  fromAddress();
})();
