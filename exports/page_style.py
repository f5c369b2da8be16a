"""How the HTML pages look: light and dark, narrow windows, paper."""

from __future__ import annotations

STYLE = """:root {
  color-scheme: light dark;
  --ink: #1d2125; --soft: #565e66; --paper: #ffffff; --tint: #f4f6f8; --line: #d9dde1;
  --link: #005a8f; --good: #00694e; --good-tint: #e0f3ec; --bad: #a83200; --bad-tint: #fdebe3;
  --open: #7a5200; --open-tint: #fdf3dc; --mark: #d55e00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaed; --soft: #a9b1b9; --paper: #1a1d21; --tint: #24282d; --line: #3a4047;
    --link: #7cc4f5; --good: #5fd8ae; --good-tint: #12352b; --bad: #ffa27d; --bad-tint: #43200f;
    --open: #f3c05a; --open-tint: #3a2c0c; --mark: #ff9a55;
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 82rem;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: break-word;
}
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .3rem .6rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.2; margin: 0; }
h2 {
  font-size: 1.3rem; line-height: 1.3; margin: 2.8rem 0 .8rem; padding-top: .9rem;
  border-top: 1px solid var(--line); scroll-margin-top: .5rem;
}
main > h2:first-child { margin-top: 0; padding-top: 0; border-top: 0; }
main p, main ul, .lead { max-width: 46rem; }
.lead { color: var(--soft); font-size: 1.08rem; margin: .8rem 0 1.4rem; }
.title { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; }
.badge {
  font-weight: 650; padding: .15rem .8rem .2rem; border-radius: 99px; border: 1px solid;
  text-transform: capitalize;
}
.badge.pass { color: var(--good); background: var(--good-tint); }
.badge.fail { color: var(--bad); background: var(--bad-tint); }
.badge.inconclusive { color: var(--open); background: var(--open-tint); }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 0 0 1.2rem;
}
.tiles div { background: var(--tint); border-radius: .6rem; padding: .7rem 1rem .8rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.6rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--soft); font-size: .85rem; font-weight: 400; }
.strip { margin: 0 0 2rem; }
.strip > div {
  position: relative; height: 3.4rem; border-radius: .4rem; background: var(--tint);
  overflow: hidden; -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
.strip i, .strip b { position: absolute; }
.strip b {
  bottom: .1rem; padding-left: .35rem; font-size: .8rem; font-weight: 400; color: var(--ink);
  white-space: nowrap;
}
.strip b.before { padding: 0 .35rem 0 0; transform: translateX(-100%); }
.strip .good { top: 0; bottom: 0; background: var(--good-tint); }
.strip .zero { top: 0; bottom: 0; border-left: 1px dashed var(--soft); }
.strip .bound { top: 0; bottom: 0; border-left: 2px solid var(--good); }
.strip .bar { top: 1.05rem; height: .36rem; border-radius: .2rem; background: var(--mark); }
.strip .dot {
  top: .78rem; width: .9rem; height: .9rem; margin-left: -.45rem; border-radius: 50%;
  background: var(--mark); border: 2px solid var(--paper);
}
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; max-width: 46rem; }
nav { margin-bottom: 2rem; font-size: .92rem; }
nav p { margin: 0; color: var(--soft); font-size: .85rem; font-weight: 600; }
nav ol { list-style: none; margin: .3rem 0 0; padding: 0; display: flex; flex-wrap: wrap; }
nav li { margin-right: 1.1rem; }
nav a { display: block; padding: .24rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
@media (min-width: 64rem) {
  .columns { display: grid; grid-template-columns: 12.5rem minmax(0, 1fr); gap: 2.5rem; }
  nav {
    position: sticky; top: 1.5rem; align-self: start; margin: 0;
    max-height: calc(100vh - 3rem); overflow-y: auto;
  }
  nav ol { display: block; }
}
.table, .picture { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .4rem .6rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-weight: 400;
}
th + th, td { padding-left: .6rem; }
td[style*=right] { white-space: nowrap; }
thead th { color: var(--soft); font-size: .84rem; border-bottom: 1px solid var(--soft); }
tbody th { min-width: 8rem; max-width: 26rem; overflow-wrap: anywhere; }
.picture { border-radius: .4rem; }
.picture img { display: block; width: 100%; height: auto; min-width: 36rem; max-width: 68rem; }
code, pre { font-family: ui-monospace, "Liberation Mono", Menlo, Consolas, monospace; }
code { font-size: .88em; background: var(--tint); padding: .1em .3em; border-radius: .25rem; }
td code, p code { overflow-wrap: anywhere; }
pre {
  background: var(--tint); padding: .8rem 1rem; border-radius: .5rem; overflow-x: auto;
  max-width: 58rem;
}
pre code { background: none; padding: 0; }
@media print {
  :root {
    --ink: #000; --soft: #444; --paper: #fff; --tint: #f4f4f4; --line: #ccc; --link: #000;
    --good: #00694e; --good-tint: #e0f3ec; --bad: #a83200; --bad-tint: #fdebe3;
    --open: #7a5200; --open-tint: #fdf3dc; --mark: #d55e00;
  }
  html { font-size: 9pt; }
  body { padding: 0; max-width: none; }
  nav, .skip { display: none; }
  .columns { display: block; }
  h2 { break-after: avoid; }
  .table, .picture { overflow: visible; }
  .picture img { min-width: 0; }
  td[style*=right] { white-space: normal; }
  pre { white-space: pre-wrap; }
  tr, pre, .picture, .strip, .tiles { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
