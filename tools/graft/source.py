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

"""Reads fragments, and the files of Nova that they add to.

``ast`` finds what is where; the text itself stays as it is.
"""

import ast
import dataclasses
import importlib.util
import inspect
import io
import sys
import tokenize
import typing as ty

from graft import fragment as vocabulary
from graft import GraftError

VERBS = ('after', 'before', 'substitute')
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign)


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
    first_row: int = 0
    # Names that the definition or the assignments that go in bind.
    names: tuple = ()
    is_definition: bool = False

    def __str__(self):
        place = '.'.join(self.scope) or 'the module'
        if self.verb == 'append':
            return f'{", ".join(self.names)} of {place}'
        return f'{self.verb} {" or ".join(map(repr, self.anchors))} in {place}'

    def indented(self, column):
        """The body's lines, moved to another column."""
        lines = []
        for index, line in enumerate(self.body):
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


def lines_of(text):
    # Only what ast takes for the end of a line; splitlines() knows more.
    lines = [line + '\n' for line in text.split('\n')]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _column(line):
    return len(line) - len(line.lstrip())


def end_of_block(lines, node_end, column):
    """Line after a block; deeper comments below it belong to it."""
    end = node_end
    for index in range(node_end, len(lines)):
        text = lines[index].strip()
        if text.startswith('#') and _column(lines[index]) > column:
            end = index + 1
        elif text:
            break
    return end


def start_of(node):
    """Index of a statement's first line, its decorators counted in."""
    return min([node.lineno] + [decorator.lineno for decorator in
                                getattr(node, 'decorator_list', ())]) - 1


def start_of_comment(lines, start, column):
    while (start and lines[start - 1].strip().startswith('#') and
           _column(lines[start - 1]) == column):
        start -= 1
    return start


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def imports_of(node):
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


def _stored_names(node):
    return [name.id for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]


def _parse(text, path):
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise Misfit([f'{path}:{error.lineno}: {error.msg}'])


def arguments_of(call, verb):
    """What a call of the vocabulary is given, by the parameters' names."""
    return inspect.signature(getattr(vocabulary, verb)).bind(
        *map(ast.literal_eval, call.args),
        **{keyword.arg: ast.literal_eval(keyword.value)
           for keyword in call.keywords}).arguments


def marks_of(path):
    """The modules that a fragment imports from, and no new file does."""
    return vocabulary.__name__, path[:-len('.py')].replace('/', '.')


def is_fragment(text, path):
    """Whether a file of the patch is a fragment and not a new file.

    A fragment imports this tool's vocabulary, or names of the file itself.

    :param text: source of the file
    :param path: its path, for messages
    :raises Misfit: it is not valid Python
    """
    return any(isinstance(node, ast.ImportFrom) and
               node.module in marks_of(path)
               for node in _parse(text, path).body)


class Fragment:
    """A parsed fragment."""

    def __init__(self, text, path, target):
        """Parse a fragment.

        :param text: source of the fragment
        :param path: its path in the patch, like nova/virt/libvirt/driver.py
        :param target: the Target that it adds to
        :raises Misfit: it holds what no fragment may hold
        """
        self.path = path
        self.module = path[:-len('.py')].replace('/', '.')
        self.lines = lines_of(text)
        self.target = target
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
        previous = None
        for node in body:
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not scope:
                self._read_import(node)
            elif isinstance(node, DEFINITIONS):
                self._read_definition(node, scope)
            elif isinstance(node, ASSIGNMENTS):
                self._read_assignment(node, previous, scope)
            elif (isinstance(node, ast.Expr) and
                  self._verb_of(node.value) == 'substitute'):
                self.hunks.append(self._hunk(node.value, scope))
            elif not _is_docstring(node):
                self._refuse(node.lineno, 'a fragment holds imports, '
                             'definitions, assignments and substitute() only')
            previous = node

    def _read_import(self, node):
        for entry in imports_of(node):
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
            given = arguments_of(call, verb)
            where, anchors = given['where'], given['first_line']
            anchors = (anchors,) if isinstance(anchors, str) else anchors
            scope = scope + ((where,) if where else ())
            anchors = tuple(anchor.strip() for anchor in anchors)
        except (TypeError, ValueError, AttributeError) as error:
            self._refuse(call.lineno, f'{verb}(): {error}')
        return Hunk(verb, call.lineno, scope, anchors,
                    given.get('old', ''), given.get('new', ''))

    def _read_assignment(self, node, previous, scope):
        start = start_of_comment(self.lines, node.lineno - 1, node.col_offset)
        names = tuple(_stored_names(node))
        if isinstance(previous, ASSIGNMENTS):
            # They stay together, with the blank lines between them.
            hunk = self.hunks.pop()
            start, names = hunk.first_row, hunk.names + names
        else:
            hunk = Hunk('append', node.lineno, scope, ())
        hunk.names = names
        self._take(hunk, range(start, end_of_block(
            self.lines, node.end_lineno, node.col_offset)), node.col_offset)

    def _read_definition(self, node, scope):
        calls = [decorator for decorator in node.decorator_list
                 if self._verb_of(decorator) in VERBS[:2]]
        if not calls and isinstance(node, ast.ClassDef) and (
                any(isinstance(found, ast.ClassDef) for found in
                    self.target.scopes(scope + (node.name,))) or
                any(map(self._verb_of, ast.walk(node)))):
            return self._read(node.body, scope + (node.name,))
        if len(calls) > 1 or not calls and node.name == '_':
            self._refuse(node.lineno, f'{node.name} needs one of @after '
                         'and @before')
        hunk = (self._hunk(calls[0], scope) if calls else
                Hunk('append', node.lineno, scope, ()))
        end = end_of_block(self.lines, node.end_lineno, node.col_offset)
        if node.name == '_':
            start = next(row for row in self._header_ends
                         if row >= node.lineno)
            if start >= node.body[0].lineno:
                self._refuse(node.lineno, 'the statements begin on a line '
                             'of their own')
            return self._take(hunk, range(start, end),
                              node.body[0].col_offset)
        start = start_of_comment(self.lines, start_of(node), node.col_offset)
        hunk.names, hunk.is_definition = (node.name,), True
        self._take(hunk, [row for row in range(start, end) if not any(
            call.lineno <= row + 1 <= call.end_lineno for call in calls)],
            node.col_offset)

    def _take(self, hunk, rows, column):
        """Let a hunk put in these rows of the fragment."""
        hunk.first_row, hunk.column = rows[0], column
        hunk.body = [self.lines[row] for row in rows]
        hunk.body[-1] = hunk.body[-1].rstrip('\n') + '\n'
        hunk.fixed = {index for index, row in enumerate(rows)
                      if row in self._inside_string}
        self.hunks.append(hunk)


class Target:
    """A parsed file of Nova."""

    def __init__(self, text):
        self.lines = lines_of(text)
        if self.lines and not self.lines[-1].endswith('\n'):
            self.lines[-1] += '\n'
        self.tree = ast.parse(text)

    def scopes(self, names):
        """The definitions of a path of names; a property has two."""
        nodes = [self.tree]
        for name in names:
            nodes = [statement for node in nodes
                     for statement, _, _ in _statements(node, False)
                     if isinstance(statement, DEFINITIONS) and
                     statement.name == name]
        return nodes

    def places(self, scope):
        """The statements that have a first line of their own.

        :returns: an iterator over pairs of first line and Place
        """
        into_definitions = not isinstance(scope, (ast.Module, ast.ClassDef))
        for node, previous, following in _statements(scope, into_definitions):
            line = self.lines[node.lineno - 1]
            if line[:node.col_offset].strip() or line.startswith(
                    'elif', node.col_offset):
                continue
            start = start_of(node)
            yield line.strip(), Place(
                node, start, end_of_block(self.lines, node.end_lineno,
                                  node.col_offset),
                node.col_offset, previous, following)

    def end(self, scope):
        """The Place after all that a module or class holds."""
        column = scope.body[0].col_offset if scope.body else 0
        if isinstance(scope, ast.Module):
            end = len(self.lines)
            while end and not self.lines[end - 1].strip():
                end -= 1
        else:
            end = end_of_block(self.lines, scope.end_lineno, scope.col_offset)
        last = scope.body[-1] if scope.body else None
        return Place(last, end, end, column, None, None)

    def imports(self):
        """All imports at the level of the module, in their order."""
        return [(node, entry)
                for node, _, _ in _statements(self.tree, False)
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for entry in imports_of(node)]

    def names(self, scope=None):
        """All names that are bound at the level of a scope.

        :param scope: a definition; None: the module
        """
        names = set()
        for node, _, _ in _statements(scope or self.tree, False):
            if isinstance(node, DEFINITIONS):
                names.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names.update(entry.bound for entry in imports_of(node))
            else:
                names.update(_stored_names(node))
        return names
