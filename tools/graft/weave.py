# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""Weaves the text of a fragment into the text of a Nova file.

``ast`` finds the places, text goes in: whatever is not at a place stays byte
for byte.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import io
import itertools
import sys
import tokenize
import typing as ty

from graft import fragment as vocabulary
from graft import GraftError

VERBS = ('after', 'before', 'replace', 'substitute')
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Misfit(GraftError):
    """Some parts of a fragment do not fit the file, or it is no fragment.

    :ivar problems: a list of texts, one for each of the parts
    """

    def __init__(self, problems):
        super().__init__('\n'.join(problems))
        self.problems = list(problems)


@dataclasses.dataclass(frozen=True)
class Import:
    module: str
    name: ty.Optional[str] = None
    alias: ty.Optional[str] = None

    @property
    def bound(self):
        return self.alias or self.name or self.module.split('.')[0]

    @property
    def key(self):
        """What hacking's H306 orders by."""
        return '.'.join(filter(None, (self.module, self.name))).lower()

    @property
    def group(self):
        top = self.module.split('.')[0]
        if top == 'nova':
            return 2
        return 0 if _is_standard_library(top) else 1

    def __str__(self):
        text = (f'from {self.module} import {self.name}' if self.name
                else f'import {self.module}')
        return f'{text} as {self.alias}' if self.alias else text


@dataclasses.dataclass
class Hunk:
    """One change that a fragment asks for, in one place."""
    verb: str
    line: int
    scope: tuple
    anchors: tuple
    old: str = ''
    new: str = ''
    # What goes in: lines, which of them must keep their indentation since
    # they begin inside of a string, and the column that they stand at.
    body: list = dataclasses.field(default_factory=list)
    fixed: set = dataclasses.field(default_factory=set)
    column: int = 0
    is_definition: bool = False
    # Where in the body the 'if' is that can become another arm of an 'if'.
    arm: ty.Optional[int] = None

    def __str__(self):
        place = '.'.join(self.scope) or 'the module'
        return f'{self.verb} {" or ".join(map(repr, self.anchors))} in {place}'

    def indented(self, column, as_arm=False):
        """The body's lines, moved to another column."""
        lines = []
        for index, line in enumerate(self.body):
            if as_arm and index == self.arm:
                line = line.replace('if', 'elif', 1)
            if index not in self.fixed and line.strip():
                indent = max(0, _column(line) + column - self.column)
                line = ' ' * indent + line.lstrip()
            lines.append(line)
        return lines


@dataclasses.dataclass
class Place:
    """A statement of the Nova file; lines count from 0, end is exclusive."""
    node: ast.stmt
    start: int
    end: int
    column: int
    is_arm: bool
    previous: ty.Optional[ast.stmt]
    next: ty.Optional[ast.stmt]


def _is_standard_library(name):
    names = getattr(sys, 'stdlib_module_names', None)
    if names is not None:
        return name in names
    # Python 3.9 has no such list.
    spec = importlib.util.find_spec(name)
    return spec is not None and (
        spec.origin in ('built-in', 'frozen') or
        '-packages' not in (spec.origin or '-packages'))


def _lines(text):
    # Only what ast takes for the end of a line; splitlines() knows more.
    lines = [line + '\n' for line in text.split('\n')]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _column(line):
    return len(line) - len(line.lstrip())


def _end(lines, node_end, column):
    """Line after a block; deeper comments below it belong to it."""
    end = node_end
    for index in range(node_end, len(lines)):
        text = lines[index].strip()
        if text.startswith('#') and _column(lines[index]) > column:
            end = index + 1
        elif text:
            break
    return end


def _start(node):
    """Index of a statement's first line, its decorators counted in."""
    return min([node.lineno] + [decorator.lineno for decorator in
                                getattr(node, 'decorator_list', ())]) - 1


def _start_of_comment(lines, start, column):
    while (start and lines[start - 1].strip().startswith('#') and
           _column(lines[start - 1]) == column):
        start -= 1
    return start


def _imports_of(node):
    if isinstance(node, ast.Import):
        return [Import(alias.name, None, alias.asname) for alias in node.names]
    return [Import('.' * node.level + (node.module or ''), alias.name,
                   alias.asname) for alias in node.names]


def _statements(node, into_definitions):
    """All statements below a node, each with its neighbours."""
    blocks = [getattr(node, field, ()) for field in
              ('body', 'orelse', 'finalbody')]
    for inner in (*getattr(node, 'handlers', ()), *getattr(node, 'cases', ())):
        blocks.append(inner.body)
    for block in blocks:
        for previous, statement, following in zip(
                (None, *block), block, (*block[1:], None)):
            yield statement, previous, following
            if into_definitions or not isinstance(statement, DEFINITIONS):
                yield from _statements(statement, into_definitions)


def _parse(text, path):
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise Misfit([f'{path}:{error.lineno}: {error.msg}'])


def is_fragment(text, path):
    """Whether a file of the patch is a fragment and not a new file.

    :param text: source of the file
    :param path: its path, for messages
    :raises Misfit: it is not valid Python
    """
    return any(isinstance(node, ast.ImportFrom) and
               node.module == vocabulary.__name__
               for node in _parse(text, path).body)


class Fragment:
    """A parsed fragment."""

    def __init__(self, text, path):
        """Parse a fragment.

        :param text: source of the fragment
        :param path: its path in the patch, like nova/virt/libvirt/driver.py
        :raises Misfit: it holds what no fragment may hold
        """
        self.path = path
        self.module = path[:-len('.py')].replace('/', '.')
        self.lines = _lines(text)
        self.hunks = []
        self.imports = []
        self.own_names = []
        self._verbs = {}
        self._inside_string, self._header_ends = self._read_tokens(text)
        self._read(_parse(text, path).body, ())

    def _refuse(self, line, message):
        raise Misfit([f'{self.path}:{line}: {message}'])

    @staticmethod
    def _read_tokens(text):
        """Which lines begin inside of a string, and where headers end."""
        inside, newlines, begins = set(), [], []
        try:
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                kind = tokenize.tok_name[token.type]
                if kind == 'STRING':
                    inside.update(range(token.start[0], token.end[0]))
                elif kind.endswith('STRING_START'):
                    begins.append(token.start[0])
                elif kind.endswith('STRING_END'):
                    inside.update(range(begins.pop(), token.end[0]))
                elif kind == 'NEWLINE':
                    newlines.append(token.start[0])
        except (tokenize.TokenError, SyntaxError):
            pass  # ast says it with the line.
        return inside, newlines

    def _read(self, body, scope):
        for node in body:
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not scope:
                self._read_import(node)
            elif isinstance(node, DEFINITIONS):
                self._read_definition(node, scope)
            elif (isinstance(node, ast.Expr) and
                  self._verb_of(node.value) == 'substitute'):
                self.hunks.append(self._hunk(node.value, scope))
            elif not (isinstance(node, ast.Expr) and
                      isinstance(node.value, ast.Constant)):
                self._refuse(node.lineno, 'a fragment holds imports, '
                             'definitions with a place and substitute() only')

    def _read_import(self, node):
        for entry in _imports_of(node):
            if entry.module == vocabulary.__name__ and entry.name in VERBS:
                self._verbs[entry.bound] = entry.name
            elif (entry.module.split('.')[0] in ('graft', '') or
                  entry.name == '*'):
                self._refuse(node.lineno, f'"{entry}" is not understood: '
                             'write "from graft.fragment import after" and '
                             'absolute imports of single names')
            elif entry.module == self.module:
                self.own_names.append((node.lineno, entry.name))
            else:
                self.imports.append((node.lineno, entry))

    def _verb_of(self, node):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._verbs.get(node.func.id)

    def _hunk(self, call, scope):
        verb = self._verb_of(call)
        try:
            given = inspect.signature(getattr(vocabulary, verb)).bind(
                *map(ast.literal_eval, call.args),
                **{keyword.arg: ast.literal_eval(keyword.value)
                   for keyword in call.keywords}).arguments
            where, anchors = given['where'], given['first_line']
            anchors = (anchors,) if isinstance(anchors, str) else anchors
            scope = scope + tuple(where.split('.') if where else ())
            anchors = tuple(anchor.strip() for anchor in anchors)
        except (TypeError, ValueError, AttributeError) as error:
            self._refuse(call.lineno, f'{verb}(): {error}')
        return Hunk(verb, call.lineno, scope, anchors,
                    given.get('old', ''), given.get('new', ''))

    def _read_definition(self, node, scope):
        calls = [decorator for decorator in node.decorator_list
                 if self._verb_of(decorator) in VERBS[:3]]
        if not calls and isinstance(node, ast.ClassDef):
            return self._read(node.body, scope + (node.name,))
        if len(calls) != 1:
            self._refuse(node.lineno, f'{node.name} needs one of @after, '
                         '@before and @replace')
        hunk = self._hunk(calls[0], scope)
        hunk.is_definition = node.name != '_'
        end = _end(self.lines, node.end_lineno, node.col_offset)
        if hunk.is_definition:
            start = _start_of_comment(self.lines, _start(node),
                                      node.col_offset)
            rows = [row for row in range(start, end) if not
                    calls[0].lineno <= row + 1 <= calls[0].end_lineno]
            hunk.column = node.col_offset
        else:
            start = next(row for row in self._header_ends
                         if row >= node.lineno)
            if start >= node.body[0].lineno:
                self._refuse(node.lineno, 'the statements begin on a line '
                             'of their own')
            rows = range(start, end)
            hunk.column = node.body[0].col_offset
            if len(node.body) == 1 and isinstance(node.body[0], ast.If):
                last = node.body[0]
                while len(last.orelse) == 1 and isinstance(
                        last.orelse[0], ast.If):
                    last = last.orelse[0]
                if not last.orelse:
                    hunk.arm = node.body[0].lineno - 1 - start
        hunk.body = [self.lines[row] for row in rows]
        hunk.body[-1] = hunk.body[-1].rstrip('\n') + '\n'
        hunk.fixed = {index for index, row in enumerate(rows)
                      if row in self._inside_string}
        self.hunks.append(hunk)


class Target:
    """A parsed file of Nova."""

    def __init__(self, text):
        self.lines = _lines(text)
        if self.lines and not self.lines[-1].endswith('\n'):
            self.lines[-1] += '\n'
        self.tree = ast.parse(text)

    def scopes(self, names):
        """The definitions that a dotted name means."""
        nodes = [self.tree]
        for name in names:
            nodes = [statement for node in nodes
                     for statement, _, _ in _statements(node, False)
                     if isinstance(statement, DEFINITIONS) and
                     statement.name == name]
        return nodes

    def places(self, scope):
        """The statements that have a first line of their own.

        :returns: an iterator over pairs of first lines and Place
        """
        into_definitions = not isinstance(scope, (ast.Module, ast.ClassDef))
        for node, previous, following in _statements(scope, into_definitions):
            line = self.lines[node.lineno - 1]
            if line[:node.col_offset].strip():
                continue
            is_arm = isinstance(node, ast.If) and line.lstrip().startswith(
                'elif')
            last = node.body[-1] if is_arm else node
            start = _start(node)
            yield {line.strip(), self.lines[start].strip()}, Place(
                node, start, _end(self.lines, last.end_lineno,
                                  node.col_offset),
                node.col_offset, is_arm, previous, following)

    def imports(self):
        """All imports at the level of the module, in their order."""
        return [(node, entry)
                for node, _, _ in _statements(self.tree, False)
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for entry in _imports_of(node)]

    def names(self):
        """All names that are bound at the level of the module."""
        names = {entry.bound for _, entry in self.imports()}
        for node, _, _ in _statements(self.tree, False):
            if isinstance(node, DEFINITIONS):
                names.add(node.name)
            else:
                names.update(name.id for name in ast.walk(node)
                             if isinstance(name, ast.Name) and
                             isinstance(name.ctx, ast.Store))
        return names


@dataclasses.dataclass(order=True)
class _Edit:
    """Lines or a piece of them to change; positions are characters."""
    start: int
    end: int
    order: int
    text: str
    line: int


class _Weaving:
    """The weaving of one fragment into one file."""

    def __init__(self, fragment, target, release):
        self.fragment = fragment
        self.target = target
        self.release = release
        self.problems = []
        self.edits = []
        self.insertions = {}
        lengths = map(len, target.lines)
        self.offsets = [0, *itertools.accumulate(lengths)]

    def _misfit(self, line, message):
        self.problems.append(f'{self.fragment.path}:{line}: {message} '
                             f'(Nova {self.release})')

    def run(self):
        self._add_imports()
        for hunk in self.fragment.hunks:
            place = self._find(hunk)
            if place:
                self._place(hunk, place)
        for line, group in sorted(self.insertions.items()):
            self._insert(line, group)
        return self._apply()

    def _find(self, hunk):
        scopes = self.target.scopes(hunk.scope)
        if not scopes:
            return self._misfit(
                hunk.line, f'{hunk}: {self.fragment.path} has no '
                f'{".".join(hunk.scope)} at its top level')
        lines, found = [], []
        for scope in scopes:
            for texts, place in self.target.places(scope):
                lines.extend(texts)
                if texts & set(hunk.anchors):
                    found.append(place)
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ', '.join(str(place.start + 1) for place in found)
            told = f'{len(found)} such statements, in lines {numbers}'
        else:
            told = 'no such statement'
            near = difflib.get_close_matches(hunk.anchors[0], lines, 1)
            if near:
                told += f'; the nearest is {near[0]!r}'
        self._misfit(hunk.line, f'{hunk} of {self.fragment.path}: {told}')

    def _place(self, hunk, place):
        if hunk.verb == 'substitute':
            start = self.offsets[place.start]
            source = ''.join(self.target.lines[place.start:place.end])
            count = source.count(hunk.old)
            if count != 1:
                return self._misfit(
                    hunk.line, f'{hunk} of {self.fragment.path}, line '
                    f'{place.start + 1}: {hunk.old!r} occurs {count} times '
                    'in the statement, not once')
            start += source.index(hunk.old)
            return self._edit(start, start + len(hunk.old), hunk.new,
                              hunk.line)
        if place.is_arm and hunk.arm is None:
            return self._misfit(
                hunk.line, f'{hunk} of {self.fragment.path}: beside this '
                'arm only one "if" statement without "else" can go')
        if hunk.verb == 'replace':
            self._edit(self.offsets[place.start], self.offsets[place.end],
                       ''.join(hunk.indented(place.column, place.is_arm)),
                       hunk.line)
        elif hunk.verb == 'after':
            self.insertions.setdefault(place.end, []).append((hunk, place))
        else:
            start = _start_of_comment(self.target.lines, place.start,
                                      place.column)
            self.insertions.setdefault(start, []).append((hunk, place))

    def _insert(self, line, group):
        """Put hunks at one line, with the blank lines that Nova wants."""
        # An inner block ends where the outer one does: the inner goes first.
        group.sort(key=lambda entry: (
            entry[0].verb == 'before', -entry[1].column))
        lines = self.target.lines
        rest = list(map(str.strip, lines[line:])) + ['end']
        blank_below = next(i for i, text in enumerate(rest) if text)
        head = ['begin'] + list(map(str.strip, lines[:line]))
        blank_above = next(i for i, text in enumerate(reversed(head)) if text)
        hunk, place = group[0]
        left = place.node if hunk.verb == 'after' else place.previous
        left = left and isinstance(left, DEFINITIONS)
        text = []
        for hunk, place in group:
            want = self._blank_lines(left, hunk.is_definition, place.column)
            text += ['\n'] * (want - blank_above)
            text += hunk.indented(place.column, place.is_arm)
            left, blank_above = hunk.is_definition, 0
        right = place.next if hunk.verb == 'after' else place.node
        right = right and isinstance(right, DEFINITIONS)
        want = self._blank_lines(left, right, place.column)
        text += ['\n'] * (want - blank_below)
        self._edit(self.offsets[line], self.offsets[line], ''.join(text),
                   hunk.line)

    @staticmethod
    def _blank_lines(left, right, column):
        """Blank lines between statements; None stands for no statement."""
        if None in (left, right) or not (left or right):
            return 0
        return 2 if column == 0 else 1

    def _add_imports(self):
        present = self.target.imports()
        names = self.target.names()
        wanted = {}
        for line, entry in self.fragment.imports:
            same_name = [other for _, other in present
                         if other.bound == entry.bound]
            if entry in same_name:
                continue
            if entry.bound in names and not (
                    same_name and entry.name is None and
                    all(other.name is None for other in same_name)):
                self._misfit(line, f'"{entry}": {self.fragment.path} has '
                             f'another {entry.bound}')
            wanted.setdefault(entry.group, {})[entry] = line
        # A name of the standard library among the third-party ones does not
        # make a group: the group is the longest run.
        top = [(node, entry) for node, entry in present
               if node in self.target.tree.body]
        runs = {}
        for group, run in itertools.groupby(top, lambda pair: pair[1].group):
            runs[group] = max(runs.get(group, []), list(run), key=len)
        for group, entries in wanted.items():
            self._add_group(group, entries, runs)

    def _add_group(self, group, entries, runs):
        entries = dict(sorted(entries.items(), key=lambda pair: pair[0].key))
        run = runs.get(group)
        if run:
            for entry, line in entries.items():
                above = list(itertools.takewhile(
                    lambda pair: pair[1].key < entry.key, run))
                if above:
                    at = above[-1][0].end_lineno
                else:
                    at = _start_of_comment(self.target.lines,
                                           run[0][0].lineno - 1, 0)
                self._edit(self.offsets[at], self.offsets[at], f'{entry}\n',
                           line)
            return
        text = ''.join(f'{entry}\n' for entry in entries)
        line = min(entries.values())
        earlier = [runs[other] for other in runs if other < group]
        later = [runs[other] for other in runs if other > group]
        if earlier:
            at = max(run[-1][0].end_lineno for run in earlier)
            text = '\n' + text
        elif later:
            first = min(run[0][0].lineno for run in later)
            at = _start_of_comment(self.target.lines, first - 1, 0)
            text += '\n'
        else:
            return self._misfit(line, f'{self.fragment.path} has no imports '
                                'beside which others could go')
        self._edit(self.offsets[at], self.offsets[at], text, line)

    def _edit(self, start, end, text, line):
        self.edits.append(_Edit(start, end, len(self.edits), text, line))

    def _apply(self):
        source = ''.join(self.target.lines)
        parts, at, line = [], 0, 0
        for edit in sorted(self.edits):
            if edit.start < at:
                self._misfit(edit.line, 'changes text that line '
                             f'{line} of the fragment changes too')
            parts += [source[at:edit.start], edit.text]
            at, line = edit.end, edit.line
        text = ''.join(parts) + source[at:]
        if not self.problems:
            self._check(text)
        if self.problems:
            raise Misfit(self.problems)
        return text

    def _check(self, text):
        try:
            names = Target(text).names()
        except SyntaxError as error:
            return self._misfit(
                1, 'the result would not be valid Python: '
                f'{error.msg}, line {error.lineno}: '
                f'{(error.text or "").strip()}')
        for line, name in self.fragment.own_names:
            if name not in names:
                self._misfit(line, f'{self.fragment.path} has no {name}')


def weave(fragment, text, path, release):
    """Weave a fragment into a file.

    :param fragment: source of the fragment
    :param text: source of the file of Nova that it adds to
    :param path: path of both, relative, like nova/virt/libvirt/driver.py
    :param release: release of that Nova, for messages
    :returns: the new source of the file
    :raises Misfit: it does not fit; it has all problems
    """
    parsed = Fragment(fragment, path)
    try:
        target = Target(text)
    except SyntaxError as error:
        raise Misfit([f'{path}: Nova {release}: line {error.lineno}: '
                      f'{error.msg}: this Python cannot read it'])
    return _Weaving(parsed, target, release).run()
