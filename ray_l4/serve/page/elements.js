"use strict";
// Elements and texts. Whatever comes from the server, or from a person, becomes text and never markup.

const byId = (id) => document.getElementById(id);

/** Return a new element. Children are elements or texts; an attribute that is null is left out. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return a new element of a drawing. */
function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Show a text in an element, or hide the element if there is none. A message is told anew even if it is the same. */
function tell(id, text) {
  const place = byId(id);
  place.hidden = !text;
  place.textContent = text || "";
}

const count = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

const percent = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));

/** Return the time of "2026-01-31 12:00:00+00:00" as people write it here. */
function moment(text) {
  const time = new Date(text.replace(" ", "T"));
  return Number.isNaN(time.getTime()) ? text : time.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** Replace the children of an element only if they would differ, so that nobody loses their place. */
function replaceIfChanged(place, children) {
  const fresh = element("div", {}, ...children);
  if (fresh.innerHTML !== place.innerHTML) place.replaceChildren(...fresh.childNodes);
}
