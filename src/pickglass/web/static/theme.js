// Before anything is drawn: the theme that the reader chose. Not a module, so that the page does not flash.
"use strict";

const chosen = localStorage.getItem("pickglass.theme");
if (chosen) document.documentElement.dataset.theme = chosen;
