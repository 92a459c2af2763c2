"""How the page looks, and the little that it does: tips, a cross-hair with the time, and zooming."""

from __future__ import annotations

from typing import Final

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}: Holdfast simulation</title><style>{style}</style></head>
<body>{body}<div id="tip" hidden></div><script>{script}</script></body></html>
"""

LEGEND: Final = (
    '<div class="tools"><span class="legend">'
    '<i class="k life"></i>lives <i class="k starting"></i>starts <i class="k draining"></i>drains '
    '<i class="k still"></i>stands still <i class="k suspected"></i>suspected <b class="k death">&#215;</b>killed '
    '<i class="k waiting"></i>waits for its first token <i class="k streaming"></i>streams '
    '<b class="k moved">|</b>moved to another replica <b class="k resumed">&#9670;</b>sent to another gateway '
    '<b class="k complete">&#9679;</b>complete <b class="k error">&#9679;</b>error '
    '<b class="k unreached">&#9679;</b>not reached <b class="k cancelled">&#9679;</b>cancelled</span>'
    '<span class="zoom"><button id="out" aria-label="narrower">&#8722;</button>'
    '<button id="fit">fit</button><button id="in" aria-label="wider">+</button></span></div>'
)

STYLE: Final = """
:root { --ground: #fff; --ink: #1c2430; --soft: #5d6b7c; --line: #d9dfe7; --panel: #f5f7fa;
  --life: #8fb3dd; --gateway: #7cc4bb; --replica: #a8c7a0; --server: #c3b6e0; --starting: #dfe8d8; --draining: #e5c46b;
  --still-a: #f1f5fb; --still-b: #7f93ad; --suspected: #d9822b; --fault: #e9a0a0; --fault-ink: #7a1f1f;
  --wait: #d3dae3; --stream: #6f9fd8; --good: #2f8f57; --bad: #c62f2f; --warn: #d9822b; --dim: #8894a3;
  --lease: #b9d3ee; --settle: #2f8f5714; --rate-d: #4b79b8; --rate-f: #b9cbe2; --label: #17212e; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --ink: #e4e9f0; --soft: #94a1b2; --line: #2b333e;
  --panel: #1a2029; --life: #3f6796; --gateway: #2f7b73; --replica: #50744a; --server: #645691; --starting: #39463a;
  --draining: #8a6d1f; --still-a: #222a35; --still-b: #8aa0bd; --suspected: #e8984a; --fault: #7d3434;
  --fault-ink: #f6caca; --wait: #3a4452; --stream: #4d83c4; --good: #4fb87c; --bad: #f06a6a; --warn: #e8984a;
  --dim: #77838f; --lease: #2f4f70; --settle: #4fb87c1c; --rate-d: #6d9bdb; --rate-f: #3c5373; --label: #eef2f7; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 20px 24px 60px; max-width: 1800px; background: var(--ground); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif }
h1 { font-size: 21px; margin: 0 0 4px } h2 { font-size: 15px; margin: 0 0 6px }
h1 span { font-size: 13px; font-weight: 600; padding: 2px 9px; border-radius: 10px; color: #fff; vertical-align: 3px;
  margin-left: 8px } .good { background: #2f8f57 } .bad { background: #c62f2f }
p { margin: 0; color: var(--soft) } code { font: 12.5px ui-monospace, monospace }
dl { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 14px 0 }
dt { font-size: 11.5px; color: var(--soft) } dd { margin: 0; font-size: 16px; font-weight: 600 }
.violations { border: 1px solid var(--bad); border-radius: 6px; padding: 10px 14px; margin: 12px 0 }
.violations ol { margin: 0; padding-left: 20px } .violations time { color: var(--soft) }
.tools { display: flex; justify-content: space-between; align-items: flex-start; gap: 16px; margin: 10px 0 6px;
  font-size: 12px; color: var(--soft) }
.legend { line-height: 1.9 }
.k { display: inline-block; margin: 0 4px 0 10px; font-style: normal }
i.k { width: 16px; height: 10px; border-radius: 2px; vertical-align: -1px } b.k { font-weight: 700 }
i.life { background: var(--life) } i.starting { background: var(--starting) } i.draining { background: var(--draining) }
i.still { background: repeating-linear-gradient(45deg, var(--still-a) 0 3px, var(--still-b) 3px 6px) }
i.suspected { height: 4px; background: var(--suspected); vertical-align: 2px } i.waiting { background: var(--wait) }
i.streaming { background: var(--stream) } b.death, b.error { color: var(--bad) }
b.moved, b.unreached { color: var(--warn) } b.resumed { color: var(--ink) } b.complete { color: var(--good) }
b.cancelled { color: var(--dim) }
.zoom { white-space: nowrap }
button { font: inherit; color: var(--ink); background: var(--panel); border: 1px solid var(--line); border-radius: 4px;
  padding: 1px 9px; margin-left: 4px; cursor: pointer }
.timeline { display: flex; border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px }
.names { flex: none; overflow: visible } .scroll { flex: 1; overflow-x: auto; position: relative; padding: 0 6px }
.lanes { display: block; overflow: visible } svg text { font: 11px system-ui, sans-serif; fill: var(--label) }
svg text.title { font-weight: 700; font-size: 12px; fill: var(--ink) } svg text.name { fill: var(--soft) }
svg text.slim { font-size: 9px }
svg text.axis { fill: var(--soft) } .rule { stroke: var(--line) }
.bar rect { fill: var(--life) } .bar.gateway rect { fill: var(--gateway) } .bar.replica rect { fill: var(--replica) }
.bar.server rect { fill: var(--server) } .bar.starting rect { fill: var(--starting); fill-opacity: .75 }
.bar.draining rect { fill: var(--draining) } .bar.starting { pointer-events: none }
.bar.frozen rect { fill: url(#still) } .still-ground { fill: var(--still-a) } .still-bars { fill: var(--still-b) }
.bar.suspected rect { fill: var(--suspected) } .bar.label { pointer-events: none } .bar.label rect { fill: none }
.bar.fault rect { fill: var(--fault) } .bar.fault text { fill: var(--fault-ink) } .bar.lease rect { fill: var(--lease) }
.bar.waiting rect { fill: var(--wait) } .bar.streaming rect { fill: var(--stream) }
.reign-0 rect { fill: #7aa6dc } .reign-1 rect { fill: #e0a458 } .reign-2 rect { fill: #86bd7e }
.reign-3 rect { fill: #c58fc9 } .reign-4 rect { fill: #d98880 }
.reign-5 rect { fill: #76bfc0 } .reign text { fill: #14202e }
.sign path, .sign circle { stroke: var(--soft); stroke-width: 1.6; fill: none }
.death path, .expiry path { stroke: var(--bad); stroke-width: 2.2 } .end path { stroke: var(--ink) }
.moved path { stroke: var(--warn); stroke-width: 2.4 }
.resumed path { fill: var(--ink); stroke: var(--ground) } .again path { fill: var(--ground); stroke: var(--ink) }
.decision path { stroke: var(--dim) } .elected path { stroke: var(--ink); stroke-width: 2.6 }
.placed path { stroke: var(--good) } .stopped path { stroke: var(--warn) }
.lost path { stroke: var(--bad); stroke-width: 2.4 }
.outcome circle { stroke: var(--ground); stroke-width: 1 } .outcome.complete circle { fill: var(--good) }
.outcome.error circle, .outcome.open circle { fill: var(--bad) } .outcome.unreached circle { fill: var(--warn) }
.outcome.cancelled circle { fill: var(--dim) }
.decisions { fill: var(--rate-d) } .facts { fill: var(--rate-f) }
.settling { fill: var(--settle) } line.reached { stroke: var(--good); stroke-width: 2 }
line.violation { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3 } .flag path { fill: var(--bad) }
#cross { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px solid var(--dim); pointer-events: none;
  display: none } #cross::after { content: attr(data-at); position: absolute; top: 0; left: 4px; font-size: 11px;
  color: var(--ink); background: var(--ground); padding: 0 4px; white-space: nowrap }
#tip { position: fixed; z-index: 2; max-width: 460px; padding: 7px 10px; border-radius: 5px; background: var(--ink);
  color: var(--ground); font-size: 12px; white-space: pre-line; pointer-events: none; overflow-wrap: anywhere }
details { margin-top: 14px } summary { cursor: pointer; font-weight: 600 }
table { border-collapse: collapse; margin-top: 6px; font-size: 12.5px }
th, td { text-align: left; padding: 2px 14px 2px 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500 }
"""

SCRIPT: Final = """
const lanes = document.getElementById("lanes"), scroll = lanes.parentElement, tip = document.getElementById("tip");
const cross = document.getElementById("cross"), span = Number(lanes.dataset.span);
let zoom = 1;
function place(event) {
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 16, above = event.clientY - tip.offsetHeight - 12;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (below + tip.offsetHeight > innerHeight - 8 ? Math.max(8, above) : below) + "px";
}
document.addEventListener("mousemove", event => {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (mark) { tip.textContent = mark.dataset.tip; place(event); }
  const box = lanes.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
  const inside = at >= 0 && at <= 1 && event.clientY >= box.top && event.clientY <= box.bottom;
  cross.style.display = inside ? "block" : "none";
  cross.style.left = (event.clientX - scroll.getBoundingClientRect().left + scroll.scrollLeft) + "px";
  cross.dataset.at = (at * span).toFixed(2) + " s";
});
function stretch(factor, clientX) {
  const box = lanes.getBoundingClientRect();
  const middle = clientX ?? scroll.getBoundingClientRect().left + scroll.clientWidth / 2;
  const part = (middle - box.left) / box.width;
  zoom = Math.min(60, Math.max(1, zoom * factor));
  lanes.setAttribute("width", zoom * 100 + "%");
  const now = lanes.getBoundingClientRect();
  scroll.scrollLeft += now.left + part * now.width - middle;
}
document.getElementById("in").onclick = () => stretch(1.6);
document.getElementById("out").onclick = () => stretch(1 / 1.6);
document.getElementById("fit").onclick = () => stretch(1 / zoom);
scroll.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  stretch(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX);
}, { passive: false });
"""
