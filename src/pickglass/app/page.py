"""Head, style and scripts of the pages; ``DARK`` in the style stands for the dark theme's colours."""

import html

__all__ = ["DARK", "LIGHT", "PLAIN_TAIL", "STYLE", "TAIL", "as_text", "head"]

LIGHT = """color-scheme:light;--page:#fff;--card:#f4f5f7;--ink:#1b1f24;--soft:#57606a;--edge:#d0d5db;--accent:#0b5cad;
--good:#0072b2;--bad:#c44a00;--right:#0b5a3c;--wrong:#a1261b"""
DARK = """color-scheme:dark;--page:#14171a;--card:#1e2226;--ink:#e8eaed;--soft:#a3abb4;--edge:#3a4149;--accent:#7fb8f0;
--good:#56b4e9;--bad:#ff9a4d;--right:#9fe3c2;--wrong:#ffb0a6"""
STYLE = """
@media screen{:root[data-theme=dark]{DARK}}
@media screen and (prefers-color-scheme:dark){:root:not([data-theme=light]){DARK}}
*{box-sizing:border-box;print-color-adjust:exact}[hidden]{display:none!important}figure{margin:0;min-width:0}
body{margin:auto;padding:16px 24px;max-width:1800px;background:var(--page);color:var(--ink);font:15px/1.4 sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.05rem;margin:0 0 6px}h3{font-size:1em;margin:0;overflow-wrap:anywhere}
small,.sub,figcaption,label,thead{color:var(--soft);font-size:.85rem}section,details,.charts{margin:20px 0}
button,select,input{font:inherit;color:var(--ink)}:focus-visible,.pics :focus-visible{outline:2px solid var(--accent)}
.top,.row{display:flex;flex-wrap:wrap;gap:4px 16px;align-items:center}.top{justify-content:space-between}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px}dt{color:var(--soft)}
.tiles div,.note,.failed,article{background:var(--card);border-radius:8px;padding:10px 12px;min-width:0}
dd{margin:0;font-size:1.7rem;line-height:1.2}dd.sub{font-size:.75rem}.note,.failed{border-left:3px solid var(--bad)}
table{border-collapse:collapse}table,dd{font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}
th,td{padding:4px 12px;text-align:right;border-bottom:1px solid var(--edge)}thead th{white-space:nowrap}
th:first-child,details td{text-align:left}details table{overflow-wrap:anywhere}summary{cursor:pointer;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:20px}
svg{width:100%;max-width:560px;display:block}svg text{fill:var(--soft);font-size:12px}svg path{fill:none}
.grid{stroke:var(--edge);stroke-width:.7}.curve{stroke:var(--accent);stroke-width:2}
.dashed{stroke:var(--soft);stroke-dasharray:4 4}.limit{stroke:var(--ink);stroke-dasharray:6 3}
svg .area{stroke:var(--kind);fill:var(--kind);fill-opacity:.25;stroke-width:1.5}i.limit{--kind:var(--ink);height:2px}
.good{--kind:var(--good)}.bad{--kind:var(--bad);stroke-dasharray:3 1.5}.unlabelled{--kind:var(--soft)}
i{display:inline-block;width:22px;height:10px;margin:0 6px 0 12px;background:var(--kind);vertical-align:middle}
i.bar{width:120px}#controls{position:sticky;top:0;background:var(--page);padding:8px 0;z-index:1}
#gallery{grid-template-columns:repeat(auto-fill,minmax(min(100%,calc(4*var(--cell,150px) + 42px)),1fr))}
#gallery,.pics{display:grid;gap:12px}.pics{grid:auto/auto-flow minmax(0,1fr);gap:6px;margin-top:6px;align-items:start}
.pics button{all:unset;cursor:zoom-in;display:block;width:100%}.pics img{display:block;width:100%;height:auto}
.badge{border:1px solid;border-radius:9px;padding:0 9px;color:var(--right)}.badge.wrong{color:var(--wrong)}
.none{display:grid;place-items:center;text-align:center;border:1px dashed var(--edge);color:var(--soft);font-size:.8rem}
.unmasked .truth,.unpredicted .predicted{display:none}.pics .closeup img{max-width:288px}
.wide{grid-column:1/-1}.wide .pics{grid:auto-flow/repeat(auto-fill,minmax(200px,1fr))}
.wide figure:not(.closeup){grid-column:1/-1}.wide .none{aspect-ratio:auto!important}
.tall img,.tall .none{width:auto!important;max-width:100%;max-height:75vh}dialog::backdrop{background:#000c}
dialog{border:0;border-radius:8px;padding:10px;background:#111;color:#eee;max-width:98vw;max-height:98vh}
.made article{margin-top:8px}dialog p{margin:0 0 6px}dialog img{width:94vw;height:84vh;object-fit:contain}
@media print{body{padding:0;font-size:11px}#controls,#theme{display:none}article,figure,tr{break-inside:avoid}
#gallery{--cell:72px}.scroll{overflow:visible}.scroll :is(th,td){padding:2px 5px;white-space:normal}}
"""
_COMMON = """one("theme").onclick = () => {
  const root = document.documentElement;
  root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
};
window.onbeforeprint = () => document.querySelectorAll("details").forEach(d => d.open = true);
one("theme").hidden = false;
"""
TAIL = """</div><dialog id="zoom" aria-label="enlarged picture"><p></p><img alt=""></dialog><script>
const one = id => document.getElementById(id), gallery = one("gallery"), worst = [...gallery.children];
const orders = {
  high: (a, b) => b.dataset.score - a.dataset.score,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true}),
};
one("sort").onchange = e => {
  const order = orders[e.target.value];
  for (const card of order ? [...worst].sort(order) : worst) gallery.append(card);
};
const filter = () => {
  const type = one("type").value, outcome = one("outcome").value, name = one("name").value.toLowerCase();
  for (const card of worst) {
    const {type: t, outcome: o, name: n} = card.dataset;
    const fits = outcome === "wrong" ? o === "missed" || o === "false alarm" : !outcome || o === outcome;
    card.hidden = !(fits && (!type || t === type) && n.toLowerCase().includes(name));
  }
  one("count").textContent = `${worst.filter(card => !card.hidden).length} of ${worst.length} images shown`;
};
one("type").oninput = one("outcome").oninput = one("name").oninput = filter;
one("size").oninput = e => gallery.style.setProperty("--cell", e.target.value + "px");
const zoom = one("zoom"), large = zoom.querySelector("img"); let picture;
const show = image => {
  if (!image) return;
  [picture, large.src, large.alt] = [image, image.src, image.alt];
  zoom.querySelector("p").textContent = `${image.alt}. Arrow keys: other pictures and images. Esc: close.`;
  if (!zoom.open) zoom.showModal();
};
document.body.onclick = e => show(e.target.closest(".pics button")?.querySelector("img"));
zoom.onclick = () => zoom.close();
zoom.onkeydown = e => {
  const across = {ArrowLeft: -1, ArrowRight: 1}[e.key], down = {ArrowUp: -1, ArrowDown: 1}[e.key];
  if (across || down) e.preventDefault(); else return;
  const card = picture.closest("article"), own = [...card.querySelectorAll("img")];
  if (across) return show(own[own.indexOf(picture) + across]);
  const cards = [...card.parentElement.children].filter(c => c.matches("article:not([hidden])"));
  const next = cards[cards.indexOf(card) + down];
  show(next?.querySelector(`.${picture.closest("figure").className} img`) || next?.querySelector("img"));
};
one("controls").hidden = false;
filter();
COMMON</script></body></html>
""".replace("COMMON", _COMMON)
PLAIN_TAIL = """<script>
const one = id => document.getElementById(id);
COMMON</script></body></html>
""".replace("COMMON", _COMMON)
"""The end of a page without a gallery."""


def head(title: str, style: str = "") -> str:
    """The start of a page up to its heading, with rules of its own after the common ones."""
    rules = f":root{{{LIGHT}}}" + (STYLE + style).replace("DARK", DARK)
    # The policy lets the browser itself refuse any request to the outside.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<title>{as_text(title)}</title><style>{rules}</style></head><body>
<header class="top"><h1>{as_text(title)}</h1><button id="theme" type="button" hidden>light / dark</button></header>"""


def as_text(value: object) -> str:
    """Anything from outside as HTML; bytes of a file name that are no UTF-8 appear as escapes."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))
