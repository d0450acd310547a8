// Why an image was judged so, as POST /api/explain tells it: its hottest places beside the nearest good patches.

import {element, number, percent} from "./common.js";

const picture = (source, name, caption) =>
  element(
    "figure",
    {},
    source ? element("img", {src: source, alt: name, loading: "lazy"}) : element("p", {className: "none"}, "its file was not found"),
    element("figcaption", {}, caption),
  );

const layerBadge = ({layer, verdict, contrast_sd: sd}) => {
  const style = {lost: "wrong", visible: "", faint: "unsure", unclear: "faint"}[verdict];
  return element("span", {className: `badge ${style}`, title: sd === null ? "" : `stands out by ${number(sd, 3)} standard deviations`}, `${layer}: ${verdict}`);
};

// `go(x, y, box)` brings a place into view.
export const becauseOf = ({result, places, similar}, go) => {
  const blocks = result.places.map((place, index) => {
    const pictures = [picture(places[index].own, `place ${index + 1}`, "this place")];
    place.nearest.forEach((near, at) => {
      if (near.image === null) return;
      pictures.push(picture(places[index].nearest[at], `good patch of ${near.image}`, `good: ${near.image.split("/").at(-1)}`));
    });
    const shares = place.shares.length < 2 ? null : element(
      "p",
      {className: "sub"},
      "Comes from ",
      place.shares.map(({name, share}) => `${name} ${percent(share)}`).join(", "),
    );
    return element(
      "article",
      {},
      element("button", {type: "button", onclick: () => go(place)}, `Place ${index + 1}: x ${place.x}, y ${place.y}`),
      element("div", {className: "patches"}, ...pictures),
      element("p", {}, `${place.sentence[0].toUpperCase()}${place.sentence.slice(1)}.`),
      shares,
      place.layers.length === 0 ? null : element("p", {className: "row"}, ...place.layers.map(layerBadge)),
    );
  });
  const other = result.similar && element(
    "article",
    {},
    element("h3", {}, "The most similar good image"),
    element("div", {className: "patches"}, picture(similar, result.similar.image, result.similar.image.split("/").at(-1))),
  );
  const notes = result.notes.length === 0 ? null : element("ul", {className: "sub"}, ...result.notes.map(note => element("li", {}, note)));
  return [...blocks, other, notes].filter(Boolean);
};
