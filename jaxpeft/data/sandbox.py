"""A jinja2 sandbox in which a template can neither run for ever nor fill the memory.

Chat templates are programs that come with a model. jinja2's own sandbox keeps them away
from Python's internals, but `{{ 'a' * 10**11 }}` or two nested loops still stop a run.
Here every block, call, filter and loop costs steps, and every value costs its size; a
template that exceeds the limits raises `Exceeded`. Nothing is measured in seconds, so a
template that renders on one machine renders on all.

Source: the hooks are jinja2's own (sandbox.SandboxedEnvironment, CodeGenerator).
"""

import collections.abc
import functools
import re
import threading

import jinja2
import jinja2.compiler
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

MAX_STEPS = 1_000_000  # about one second
MAX_SIZE = 4_000_000  # characters of one value
MAX_ITEMS = 300_000  # of one value, with what it contains
MAX_WIDTH = 10_000  # of padding, indentation and numbers in formats
MAX_BITS = 100_000  # of an integer
MAX_SOURCE = 1_000_000  # characters of a template

# Filters that never turn a container into text, so that its items need no counting.
_SHALLOW = frozenset(
  "attr batch count d default dictsort first groupby items last length list map max "
  "min reject rejectattr reverse select selectattr slice sort sum unique".split()
)
_UNPREDICTABLE = ("random", "lipsum")
_CONTAINERS = (list, tuple, dict, set, frozenset)
_WIDTHS = frozenset("batch center indent round slice".split())
# Sizes of results that are products: of the filter's value and its other arguments.
_RESULTS = {
  "replace": lambda text, more: str(text).count(str(more[0])) * size_of(more[1:]),
  "join": lambda items, more: len(items) * size_of(more),
  "indent": lambda text, more: (
    text.count("\n") * max(x if isinstance(x, int) else len(str(x)) for x in more)
  ),
}
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")
_NUMBER = re.compile(r"\d+")


class Exceeded(jinja2.TemplateError):
  """A template needs more steps or memory than the limits of this file."""


def size_of(value) -> int:
  """Characters and items of a value, with what it contains, as its text would count.

  Raises:
    Exceeded: over MAX_SIZE or MAX_ITEMS; a shared item counts as often as it appears.
  """
  total, visits, left = 0, 0, [value]
  while left:
    item = left.pop()
    total += 1 + (len(item) if isinstance(item, str | bytes) else 0)
    visits += 1
    if isinstance(item, dict):
      left.extend(item.keys())
      left.extend(item.values())
    elif isinstance(item, _CONTAINERS):
      left.extend(item)
    if total > MAX_SIZE or visits + len(left) > MAX_ITEMS:
      raise Exceeded(f"a value has over {MAX_SIZE} characters or {MAX_ITEMS} items")
  return total


class _Code(jinja2.compiler.CodeGenerator):
  """Compiles templates to code that charges every block, and checks every value."""

  def blockvisit(self, nodes, frame):
    text = sum(len(x.data) for n in nodes for x in _texts(n))
    self.writeline(f"environment.charge({1 + (text >> 6)})")
    super().blockvisit(nodes, frame)

  def visit_For(self, node, frame):
    if node.test:
      charge = jinja2.nodes.EnvironmentAttribute("charge")
      call = jinja2.nodes.Call(charge, [], [], None, None)
      node.test = jinja2.nodes.And(call, node.test).set_lineno(node.lineno)
      node.test.set_environment(self.environment)
    super().visit_For(node, frame)

  def visit_Concat(self, node, frame):
    self._checked("concat((", node.nodes, frame, "))")

  def visit_List(self, node, frame):
    self._checked("made([", node.items, frame, "])")

  def visit_Tuple(self, node, frame):
    if node.ctx != "load":
      return super().visit_Tuple(node, frame)
    self._checked("made((", node.items, frame, "))")

  def visit_Dict(self, node, frame):
    self.write("environment.made(")
    super().visit_Dict(node, frame)
    self.write(")")

  def _checked(self, start, items, frame, end):
    self.write(f"environment.{start}")
    for item in items:
      self.visit(item, frame)
      self.write(", ")
    self.write(end)


def _texts(node):
  """The constant texts that a statement itself prints, without those of its blocks."""
  if isinstance(node, jinja2.nodes.Output):
    yield from (x for x in node.nodes if isinstance(x, jinja2.nodes.TemplateData))


class _Formatter(jinja2.sandbox.SandboxedFormatter):
  def format_field(self, value, format_spec):
    _check_width(map(int, _NUMBER.findall(format_spec[:1000])))
    size_of(value)
    return super().format_field(value, format_spec)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """jinja2's immutable sandbox with a budget of steps and sizes for each rendering."""

  code_generator_class = _Code
  intercepted_binops = frozenset(("+", "*", "**", "%"))

  def __init__(self, **options):
    super().__init__(optimized=False, finalize=self._print, **options)
    self._spent = threading.local()
    self.start()
    self.globals["range"] = _range
    for name in _UNPREDICTABLE:
      self.filters.pop(name, None)
      self.globals.pop(name, None)
    for name, f in list(self.filters.items()):
      self.filters[name] = self._guarded(name, f)

  def start(self):
    """Starts a rendering: nothing of the budget is spent."""
    self._spent.steps = self._spent.longest = 0

  def charge(self, steps: int = 1, chars: int = 0) -> bool:
    """Spends steps, and the characters of a new value.

    Steps cost more once there is a long value, since any operation may walk it.

    Raises:
      Exceeded: the budget is spent.
    """
    spent = self._spent
    if chars > spent.longest:
      _check_size(chars)
      spent.longest = chars
    spent.steps += steps + (chars >> 6) + (spent.longest >> 13)
    if spent.steps > MAX_STEPS:
      raise Exceeded(f"it takes more than {MAX_STEPS} steps")
    return True

  def made(self, value):
    """A container that the template builds, if it is small enough."""
    self.charge(chars=size_of(value))
    return value

  def concat(self, values) -> str:
    self.charge(chars=size_of(values))
    return "".join(map(str, values))

  def _print(self, value):
    self.charge(chars=len(value) if isinstance(value, str) else size_of(value))
    return value

  def call_binop(self, context, operator, left, right):
    sized = [x for x in (left, right) if isinstance(x, str | bytes | list | tuple)]
    if operator == "%" and isinstance(left, str):
      _check_percent(left, right)
    elif operator == "+" and sized:
      self.charge(chars=sum(map(len, sized)))
    elif operator == "*" and sized:
      times = next((x for x in (left, right) if isinstance(x, int)), 0)
      self.charge(chars=size_of(sized[0]) * max(times, 0))
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
      bits, more = left.bit_length(), right.bit_length()
      if (bits * max(right, 0) if operator == "**" else bits + more) > MAX_BITS:
        raise Exceeded(f"a number has more than {MAX_BITS} bits")
    return self._counted(super().call_binop(context, operator, left, right))

  def call(self, context, obj, /, *args, **kwargs):  # pyright: ignore
    owner = getattr(obj, "__self__", None)
    if isinstance(owner, str | bytes | int | list | tuple | dict):
      args = _check_method(owner, obj.__name__, args, kwargs)
      self.charge(4, (len(owner) if isinstance(owner, str) else 0) >> 3)
      return self._counted(super().call(context, obj, *args, **kwargs))
    self.charge(4)
    macro = isinstance(obj, jinja2.runtime.Macro)
    if not macro or obj.catch_varargs or obj.catch_kwargs:
      size_of((args, kwargs))
    return super().call(context, obj, *args, **kwargs)

  def wrap_str_format(self, value):
    inner = super().wrap_str_format(value)
    if inner is None:
      return None
    text = value.__self__

    @functools.wraps(value)
    def wrapper(*args, **kwargs):
      if value.__name__ == "format_map":
        args, kwargs = (), args[0]
      _check_size(text.count("{") * size_of((args, dict(kwargs))))
      return type(text)(_Formatter(self).vformat(text, args, kwargs))

    return wrapper

  def _counted(self, value):
    if isinstance(value, str | bytes | list | tuple):
      self.charge(0, len(value) >> 2)
    return value

  def _guarded(self, name: str, f):
    """A filter that checks its arguments first."""
    skip = int(hasattr(f, "jinja_pass_arg"))

    @functools.wraps(f)
    def guarded(*args, **kwargs):
      before, (value, *rest) = args[:skip], args[skip:]
      more = [*rest, *kwargs.values()]
      if name in _WIDTHS:
        _check_width(x for x in more if isinstance(x, int | float))
      if name == "sum" and any(isinstance(x, _CONTAINERS) for x in more):
        raise Exceeded("the filter `sum` adds numbers only")
      if name == "join" and not isinstance(value, str | jinja2.Undefined):
        value = list(value)
      if name == "format":
        _check_percent(value, more)
      if name in _RESULTS and more:
        _check_size(_RESULTS[name](value, more))
      size = _length(value) if name in _SHALLOW else size_of(value)
      self.charge(1 + (0 if isinstance(value, str) else _length(value)), size >> 1)
      return self._counted(f(*before, value, *rest, **kwargs))

    return guarded


def _range(*args: int) -> range:
  values = range(*args)
  if len(values[: jinja2.sandbox.MAX_RANGE + 1]) > jinja2.sandbox.MAX_RANGE:
    raise Exceeded(f"a range has over {jinja2.sandbox.MAX_RANGE} items")
  return values


def _length(value) -> int:
  return len(value) if isinstance(value, collections.abc.Sized) else 0


def _check_size(size: int):
  if size > MAX_SIZE:
    raise Exceeded(f"a value has more than {MAX_SIZE} characters")


def _check_width(widths):
  if any(abs(width) > MAX_WIDTH for width in widths):
    raise Exceeded(f"a width or count is over {MAX_WIDTH}")


def _check_percent(text, values):
  """Refuses `text % values` if a width or the result is too large."""
  found = [x for pair in _PERCENT.findall(str(text)) for x in pair if x]
  if "*" in found:
    raise Exceeded("a format takes its width from an argument")
  _check_width(int(x[:9]) for x in found)
  _check_size(str(text).count("%") * size_of(values))


def _check_method(owner, name: str, args, kwargs):
  """The arguments of a built-in method, if its result is small enough."""
  for x in (*args, *kwargs.values()):
    if isinstance(x, int) and abs(x) > MAX_SIZE:
      raise Exceeded(f"a width or count is over {MAX_SIZE}")
  if name == "translate":
    raise Exceeded("the method `translate` is not supported")
  if isinstance(owner, str):
    if (
      name == "replace" and len(args) > 1 and all(isinstance(x, str) for x in args[:2])
    ):
      _check_size(owner.count(args[0]) * len(args[1]))
    elif name == "expandtabs":
      _check_size(owner.count("\t") * max([8, *args, *kwargs.values()]))
    elif name == "join" and args and not isinstance(args[0], str):
      args = (list(args[0]),)
      _check_size(len(owner) * len(args[0]) + size_of(args[0]))
    elif name == "join" and args:
      _check_size((len(owner) + 1) * len(args[0]))
  return args
