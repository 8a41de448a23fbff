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

Whatever is not at a place that the fragment names stays byte for byte.
"""

import dataclasses
import difflib
import itertools

from graft import source


@dataclasses.dataclass(order=True)
class _Edit:
    """Lines or a piece of them to change; positions are characters."""
    start: int
    end: int
    order: int
    text: str
    line: int


def _count_blank(lines):
    return sum(1 for _ in itertools.takewhile(
        lambda line: not line.strip(), lines))


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
        bound = set().union(*map(self.target.names, scopes))
        for name in hunk.names:
            if name in bound:
                return self._misfit(
                    hunk.line, f'{self.fragment.path} has '
                    f'{".".join((*hunk.scope, name))} already; it was '
                    'patched by other means')
        if hunk.verb == 'append':
            return self.target.end(scopes[-1])
        lines, found = [], []
        for scope in scopes:
            for text, place in self.target.places(scope):
                lines.append(text)
                if text in hunk.anchors:
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
            text = ''.join(self.target.lines[place.start:place.end])
            count = text.count(hunk.old)
            if count != 1:
                return self._misfit(
                    hunk.line, f'{hunk} of {self.fragment.path}, line '
                    f'{place.start + 1}: {hunk.old!r} occurs {count} times '
                    'in the statement, not once')
            start += text.index(hunk.old)
            return self._edit(start, start + len(hunk.old), hunk.new,
                              hunk.line)
        if hunk.verb in ('after', 'append'):
            self.insertions.setdefault(place.end, []).append((hunk, place))
        else:
            start = source.start_of_comment(
                self.target.lines, place.start, place.column)
            self.insertions.setdefault(start, []).append((hunk, place))

    def _insert(self, line, group):
        """Put hunks at one line, with the blank lines that Nova wants."""
        # An inner block ends where the outer one does: the inner goes first.
        group.sort(key=lambda entry: (
            entry[0].verb == 'before', -entry[1].column,
            entry[0].verb == 'append'))
        blank_below = _count_blank(self.target.lines[line:])
        blank_above = _count_blank(reversed(self.target.lines[:line]))
        hunk, place = group[0]
        left = place.previous if hunk.verb == 'before' else place.node
        left = left and isinstance(left, source.DEFINITIONS)
        text = []
        for hunk, place in group:
            want = self._blank_lines(left, hunk.is_definition, place.column)
            if hunk.verb == 'append':
                want = max(1, want)
            text += ['\n'] * (want - blank_above)
            text += hunk.indented(place.column)
            left, blank_above = hunk.is_definition, 0
        right = place.node if hunk.verb == 'before' else place.next
        right = right and isinstance(right, source.DEFINITIONS)
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
            # "import nova.conf" and "import nova.utils" go together.
            if entry.bound in names and not (same_name and all(
                    other.name is None and other.alias is None
                    for other in (entry, *same_name))):
                self._misfit(line, f'"{entry}": {self.fragment.path} has '
                             f'another {entry.bound}')
                continue
            wanted.setdefault(entry.group, {})[entry] = line
        groups = self._import_groups(present)
        for group, entries in sorted(wanted.items()):
            self._add_group(entries, groups.get(group))

    def _import_groups(self, present):
        """The blocks of imports by their group.

        A block stands between blank lines; it is of the group that most of
        it is of, and the largest block of a group stands for the group.
        """
        top = [(node, entry) for node, entry in present
               if node in self.target.tree.body]
        blocks = {}
        for node, entry in top:
            above = self.target.lines[:node.lineno - 1]
            number = sum(1 for line in above if not line.strip())
            blocks.setdefault(number, []).append((node, entry))
        groups = {}
        for block in blocks.values():
            members = [entry.group for _, entry in block]
            group = max(members, key=lambda one: (members.count(one), one))
            groups[group] = max(block, groups.get(group, []), key=len)
        return groups

    def _add_group(self, entries, block):
        for entry, line in sorted(entries.items(),
                                  key=lambda pair: pair[0].key):
            if not block:
                self._misfit(line, f'"{entry}": {self.fragment.path} has no '
                             'block of such imports')
                continue
            at = source.start_of_comment(
                self.target.lines, block[0][0].lineno - 1, 0)
            for node, other in block:
                if other.key > entry.key:
                    break
                at = node.end_lineno
            self._edit(self.offsets[at], self.offsets[at], f'{entry}\n',
                       line)

    def _edit(self, start, end, text, line):
        self.edits.append(_Edit(start, end, len(self.edits), text, line))

    def _apply(self):
        original = ''.join(self.target.lines)
        parts, at, line = [], 0, 0
        for edit in sorted(self.edits):
            if edit.start < at:
                self._misfit(edit.line, 'changes text that line '
                             f'{line} of the fragment changes too')
            parts += [original[at:edit.start], edit.text]
            at, line = edit.end, edit.line
        text = ''.join(parts) + original[at:]
        if not self.problems:
            self._check(text)
        if self.problems:
            raise source.Misfit(self.problems)
        return text

    def _check(self, text):
        try:
            names = source.Target(text).names()
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
    :raises source.Misfit: it does not fit; it has all problems
    """
    try:
        target = source.Target(text)
    except SyntaxError as error:
        raise source.Misfit([
            f'{path} of Nova {release}, line {error.lineno}: {error.msg}: '
            'this Python cannot read it'])
    return _Weaving(source.Fragment(fragment, path, target), target,
                    release).run()
