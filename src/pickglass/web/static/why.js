// Why an image was judged so: the explanation of POST /api/explain, written into a place of any page.
//
//   await explainInto(place, blob, {name, model, box, signal});   // box: [x, y, width, height] of a defect, or null

import {api, element, number, percent} from "./common.js";

const TYPES = ["image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp"];

// The bytes of an image with a type that the server takes; what it is, the decoder sees for itself.
export const bytesOf = blob => (TYPES.includes(blob.type) ? blob : new Blob([blob], {type: "application/octet-stream"}));

export const explainInto = async (place, blob, {name = "image", model = null, box = null, signal} = {}) => {
  place.setAttribute("aria-busy", "true");
  place.replaceChildren(element("p", {className: "sub"}, "Looking for the reasons …"));
  try {
    const query = new URLSearchParams({name});
    if (model) query.set("model", model);
    if (box) query.set("box", box.join(","));
    const told = await api(`/api/explain?${query}`, {method: "POST", body: bytesOf(blob), signal});
    place.replaceChildren(...explanation(told));
    return told;
  } catch (error) {
    place.replaceChildren();
    throw error;
  } finally {
    place.removeAttribute("aria-busy");
  }
};

// An explanation as elements.
export const explanation = told => {
  const {result} = told;
  const parts = [element("p", {className: "sentence"}, `${result.sentence}.`)];
  parts.push(...result.notes.map(note => element("p", {className: "note"}, note)));
  result.places.forEach((place, at) => parts.push(whyThere(place, told.places[at], at + 1)));
  if (result.similar) parts.push(similarImage(result.similar, told.similar));
  return parts;
};

const whyThere = (place, pictures, count) => {
  const figures = [picture(pictures.own, "this image")];
  place.nearest.forEach((near, at) => {
    const from = near.image === null ? "a good patch" : near.image.split("/").pop();
    const turned = near.turned ? `, turned by ${near.turned} degrees` : "";
    figures.push(picture(pictures.nearest[at], `${from}${turned}: distance ${number(near.distance)}`));
  });
  const shares = place.shares.map(part =>
    element("span", {className: `portion share${Math.max(1, Math.round(10 * part.share))}`}, `${part.name} `, element("b", {}, percent(part.share))));
  const layers = place.layers.map(layer => element("span", {}, `${layer.layer} `, layerBadge(layer)));
  return element("article", {className: "why"},
    element("h3", {}, place.named ? `${count}, the defect that was named` : `${count}`),
    element("p", {}, `${place.sentence}.`),
    element("div", {className: "pics flow roomy"}, ...figures),
    shares.length ? element("p", {className: "row"}, element("span", {}, "what it comes from:"), ...shares) : null,
    layers.length ? element("p", {className: "row"}, element("span", {}, "what the layers show:"), ...layers) : null);
};

const picture = (address, caption) => {
  const shown = address === null ? element("p", {className: "sub"}, "its file was not found") : element("img", {src: address, alt: caption});
  return element("figure", {}, shown, element("figcaption", {}, caption));
};

export const layerBadge = ({verdict, contrast_sd: sd}) => {
  const style = {visible: "right", lost: "wrong"}[verdict] ?? "faint";
  return element("span", {className: `badge ${style}`}, sd === null ? verdict : `${verdict} (${sd.toFixed(1)} sd)`);
};

const similarImage = (similar, address) => {
  const usual = similar.usual === null ? "" : `; half of the good images have another one within ${number(similar.usual, 2)}`;
  return element("article", {className: "why"},
    element("h3", {}, "The most similar good image"),
    element("p", {}, `${similar.image}: its features differ by ${number(similar.distance, 2)} standard deviations${usual}.`),
    address === null ? null : element("div", {className: "pics flow roomy"}, picture(address, similar.image)));
};
