// What people say of images, for all pages: who says it, how it is told to the server, and what to do if two disagree.
//
//   const mark = await markImage({place: "data", name}, "bad", {type: "hole", model: "bottle", score: 3.2, seen: 0});
//   const image = await keepImage(blob, "part.png");   // an image that only the browser has; then mark it
//
// `seen` is the `latest` of the image's mark that the person has looked at, 0 if they saw none; null: whatever there is.
// `shapes` are what the viewer drew, on top of the outline until now with `keepMask`.

import {api, say} from "./common.js";

const USER = "pickglass.user";

export const WORDS = {g: "good", b: "bad", u: "unsure"};

export const userName = () => localStorage.getItem(USER) || null;
export const keepUserName = name => localStorage.setItem(USER, name.trim());

export const loadMarks = () => api("/api/marks");

export const keepImage = (blob, name) =>
  api(`/api/marks/images?name=${encodeURIComponent(name)}`, {method: "POST", body: new Blob([blob], {type: "application/octet-stream"})});

// Several words for one image at once must not overtake one another.
let last = Promise.resolve();

export const markImage = (image, word, more = {}) => {
  const {type = null, note = null, seen = null, model = null, score = null, shapes = [], keepMask = false} = more;
  const isDefect = word === "bad" || word === "unsure";
  const send = async () => {
    const mark = await api("/api/marks", {
      method: "POST",
      json: {
        image: {place: image.place, name: image.name},
        mark: word || null,
        type: isDefect ? type : null,
        note,
        user: userName(),
        seen,
        model,
        score,
        shapes: isDefect ? shapes : [],
        keep_mask: isDefect && keepMask,
      },
    });
    if (mark.disputed) {
      say(`Somebody else has marked ${mark.name} differently meanwhile. Both marks are kept; it counts as unsure until one of you marks it again.`, "error");
    }
    return mark;
  };
  last = last.then(send, send);
  return last;
};

// The three buttons of an image; `choose(word)` gets null when the chosen one is taken back.
export const tickButtons = (element, name, chosen, choose) =>
  element(
    "div",
    {className: "ticks", role: "group", "aria-label": `mark ${name}`},
    ...Object.values(WORDS).map(word =>
      element(
        "button",
        {type: "button", "aria-pressed": String(word === chosen), data: {word}, onclick: () => choose(word === chosen ? null : word)},
        word,
      ),
    ),
  );
