"""How the pictures look: colors, plain numbers on axes, and one way to write a file.

Colors are those of Okabe and Ito, which color-blind people tell apart. Every picture
also distinguishes its parts by markers or dashes, so that it survives a grey printer.
Matplotlib is imported when a picture is drawn, because its import takes a while.
"""

import contextlib
import textwrap
import warnings
from typing import Any

DPI = 150
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
YELLOW, PINK, BLACK, GREY = "#E69F00", "#CC79A7", "#000000", "#8A8A8A"

_STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 9,
  "grid.color": "0.9",
  "grid.linewidth": 0.8,
  "legend.frameon": False,
  "lines.linewidth": 1.6,
}


@contextlib.contextmanager
def picture(path, width: float, height: float):
  """Yields an empty figure of a size in inches; at the end it is written to `path`."""
  import matplotlib
  from matplotlib import figure  # not pyplot, which would look for a display

  # The default style: a user's matplotlibrc must not change what a file shows.
  style: Any = {**matplotlib.rcParamsDefault, **_STYLE}
  style.pop("backend")
  with matplotlib.rc_context(style), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    fig = figure.Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    yield fig
    fig.savefig(path)


def header(fig, title: str, handles=(), labels=(), ncols: int = 3, columns: int = 80):
  """Writes a title, in lines of at most `columns`, and below it the legend.

  Both stand above the axes, so that they never cover a point.
  """
  legend = fig.legend(
    handles, labels, loc="outside upper left", ncols=ncols, fontsize=8,
    title="\n".join(textwrap.wrap(title, columns)), title_fontsize=10,
    alignment="left", handlelength=1.8,
  )  # fmt: skip
  legend.get_title().set_parse_math(False)


def number(x: float) -> str:
  """A number without exponent where that is readable: 0.05, 1, 20, 12,000."""
  whole = 1e3 <= abs(x) < 1e9 and abs(x - round(x)) < 1e-6 * abs(x)
  return f"{x:,.0f}" if whole else f"{x:.6g}"


def short(x: float) -> str:
  """A number with a unit prefix: 500, 10 k, 2.5 M."""
  for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
    if abs(x) >= size:
      return f"{x / size:.3g}{unit}"
  return f"{x:.3g}"


def log_scale(axis, write=number, low: float = 1.0, high: float = 10.0):
  """Makes an axis logarithmic, with plain numbers at 1, 2 and 5, or at powers of 10.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    write: the text of a number.
    low, high: the limits of the axis; both are positive.
  """
  from matplotlib import ticker

  axis.axes.set(
    **{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)}
  )
  subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
  axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: write(x)))
  axis.set_minor_locator(ticker.NullLocator())


def linear_scale(axis, write=number, whole: bool = False):
  """Puts plain numbers, without offset or exponent, on a linear axis.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    write: the text of a number.
    whole: whether only whole numbers are marked.
  """
  from matplotlib import ticker

  locator = ticker.MaxNLocator(
    8, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1
  )
  axis.set_major_locator(locator)
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: write(x)))
