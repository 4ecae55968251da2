"""The look of the landing page, in light and dark."""

CSS = """\
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --card: #ffffff; --text: #1b1f24; --soft: #5b6470; --line: #dfe3e8;
  --link: #0b5cad; --good: #17693a; --good-back: #e2f4e8; --bad: #a3211b; --bad-back: #fdeae8;
  --warn: #7a4b00; --warn-back: #fdf1d9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #101418; --card: #181d23; --text: #e4e8ed; --soft: #9aa5b1; --line: #2c343d;
    --link: #7db7f5; --good: #7fd6a0; --good-back: #143022; --bad: #ff9f97; --bad-back: #3a1a1a;
    --warn: #f0c36a; --warn-back: #33270f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 48px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; }
h1 { margin: 0; font-size: 24px; line-height: 1.25; }
h2 { margin: 32px 0 12px; font-size: 16px; }
p { margin: 4px 0 0; }
.soft { color: var(--soft); }
.right { margin-left: auto; display: flex; gap: 8px; align-self: center; }
.pill { padding: 2px 10px; border-radius: 999px; font-size: 13px; font-weight: 600; white-space: nowrap; }
.good { color: var(--good); background: var(--good-back); }
.bad { color: var(--bad); background: var(--bad-back); }
.warn { color: var(--warn); background: var(--warn-back); }
.notice { margin: 20px 0 0; padding: 10px 16px; border-radius: 8px; overflow-wrap: anywhere; }
.notice ul { margin: 0; padding-left: 18px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 9px 14px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-size: 13px; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 110px; }
td { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.calm { color: var(--soft); background: var(--back); }
.lock { white-space: normal; overflow-wrap: anywhere; min-width: 150px; }
.why td { padding-top: 0; border-top: 0; white-space: normal; overflow-wrap: anywhere; }
.below { margin-top: 8px; }
.halves { display: grid; grid-template-columns: 1fr 1fr; gap: 0 24px; }
.halves > * { min-width: 0; }
a { color: var(--link); }
dl { margin: 0; padding: 6px 0; display: grid; grid-template-columns: max-content 1fr; }
dt, dd { margin: 0; padding: 5px 16px; }
dd { color: var(--soft); }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 1100px) {
  table, tbody, tbody th, td { display: block; }
  thead, td:empty { display: none; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); border-top: 1px solid var(--line); }
  tr.why, tr:first-child, tbody th, td { border-top: 0; }
  tbody th, .lock, .why td { grid-column: 1 / -1; }
  tbody th { padding-bottom: 0; }
  .number { text-align: left; }
  td::before { content: attr(data-label); display: block; color: var(--soft); font-size: 13px; }
}
@media (max-width: 960px) { .halves { display: block; } }
@media (max-width: 640px) { main { padding: 20px 16px 32px; } dl { display: block; } dd { padding-top: 0; } }
"""
