"""The bar chart for the README: throughput relative to the null FUSE, as an SVG without any library.

It brings its own background and both palettes, so that it reads on a light and on a dark page.
"""

from xml.sax.saxutils import escape

from . import report

# The README's story: the jobs with a promise, not all of them.
JOBS = (*report.DIRECT_4K_D16, *report.DIRECT_1M, report.HOT)
COLOURS = {
    "raw": "#8b949e",
    "null": "#8b949e",
    "lab": "#8b949e",
    "lab-xts": "#8b949e",
    "wrapdisk": "#2f81f7",
    "wrapdisk-cache": "#1f9e89",
    "qemu": "#e0823d",
    "gocryptfs": "#c9a227",
    "securefs": "#b35fb8",
}
WIDTH, LEFT, RIGHT, TOP = 860, 160, 110, 78
BAR, GAP, GROUP = 13, 3, 30
AXIS_MAX = 1.25  # of the null FUSE; what is longer is cut and says its ratio

STYLE = """
.bg{fill:#ffffff;stroke:#d0d7de}.t{fill:#1f2328}.m{fill:#59636e}.g{stroke:#d0d7de}.one{stroke:#59636e}
@media (prefers-color-scheme:dark){
.bg{fill:#0d1117;stroke:#30363d}.t{fill:#e6edf3}.m{fill:#9198a1}.g{stroke:#30363d}.one{stroke:#9198a1}}
text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:11px}
.h{font-size:15px;font-weight:600}.b{font-weight:600;font-size:12px}
"""


def svg(results, meta):
    """The whole document. Jobs and contestants without a figure are left out, and so is the null itself (it is 1)."""
    groups = []
    for job in JOBS:
        bars = [(n, results.median(job, n), r.median) for n in results.titles
                if n not in ("null", "raw") and (r := results.ratio(job, n, "null"))]
        if bars:
            groups.append((job, bars))
    if not groups:
        raise ValueError("a chart needs the null FUSE and at least one other contestant in one of: " + ", ".join(JOBS))

    body, y = [], TOP
    for job, bars in groups:
        body += _group(job, bars, results, y)
        y += GROUP + len(bars) * (BAR + GAP)
    height = y + 26
    grid = [_gridline(step / 4, height - 34) for step in range(0, int(AXIS_MAX * 4) + 1)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(_title())}</title><style>{STYLE}</style>",
        f'<rect class="bg" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(20, 28, _title(), "t h"),
        _text(20, 47, f"{meta['cpus']} x {meta['cpu']}, Linux {meta['kernel']}, {meta['fs']}, rounds: "
              f"{meta['rounds']}; longer is better", "m"),
        *grid, *body, "</svg>", "",
    ])


def _title():
    return "Encrypted disk images over FUSE, relative to a bare FUSE (1.0)"


def _x(ratio):
    return LEFT + (WIDTH - LEFT - RIGHT) * min(ratio, AXIS_MAX) / AXIS_MAX


def _text(x, y, text, css, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _gridline(at, bottom):
    css = "one" if at == 1 else "g"
    line = f'<line class="{css}" x1="{_x(at):.1f}" x2="{_x(at):.1f}" y1="{TOP - 8}" y2="{bottom}"/>'
    return line + _text(_x(at), bottom + 15, f"{at:g}", "m", "middle")


def _group(job, bars, results, y):
    unit = results.unit(job)
    yield _text(20, y + 8, f"{job} ({unit})", "t b")
    y += 14
    for name, value, ratio in bars:
        width = _x(ratio) - LEFT
        yield _text(LEFT - 8, y + BAR - 3, results.titles[name], "m", "end")
        yield f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{COLOURS.get(name, "#8b949e")}"/>'
        cut = " (cut)" if ratio > AXIS_MAX else ""
        yield _text(_x(ratio) + 6, y + BAR - 3, f"{ratio:.2f} = {report.figure(value)}{cut}", "t")
        y += BAR + GAP
