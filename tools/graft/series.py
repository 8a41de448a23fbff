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

"""The patch as a series of commits, for "git am" and for review.

Each file below series/, in the order of their names, is one commit: its
message, a line "---", and what it brings. That is one claim a line::

    nova/virt/libvirt/sheepdog/lease.py
    nova/tests/fixtures/sheepdog/
    nova/virt/libvirt/driver.py: LibvirtDriver.unrescue
    nova/virt/libvirt/sheepdog/host.py: SheepdogHost.keep_disks

These claim a file, all files of a directory, what goes into a function of
Nova's, and one definition; that of a class claims what is in it. The narrowest
claim counts. Each part of the patch must be claimed, and each claim, but for
those of directories, must claim something.

A file of which commits bring parts holds at each commit what was claimed so
far, and the imports that this needs. So the last commit makes what the patch
makes at once.
"""

import ast
import hashlib
import pathlib

import graft
from graft import patch
from graft import source

AUTHOR = ('the nova-sheepdog developers <maintainers@users.noreply.'
          'b-seed-c72c3067.example>')
# The same bytes every time.
DATE = 'Thu, 01 Jan 2026 00:00:00 +0000'
LETTER = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: {author}
Date: {date}
Subject: [PATCH {number}/{count}] {subject}
MIME-Version: 1.0
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: 8bit

{body}
---
{diff}"""


class Commit:
    """A commit of the series.

    :ivar name: name of its file, without the suffix
    :ivar message: its message
    :ivar claims: list of (path, name of a definition or '')
    """

    def __init__(self, path):
        self.name = path.stem
        message, line, claims = path.read_text().partition('\n---\n')
        if not line:
            raise graft.GraftError(f'{path}: there is no line "---"')
        # Gerrit knows a change that is sent again by it, also in another
        # place of the series.
        digest = hashlib.sha1(
            self.name.partition('-')[2].encode()).hexdigest()
        line = '' if 'blueprint' in message.splitlines()[-1] else '\n'
        self.message = f'{message.rstrip()}\n{line}Change-Id: I{digest}\n'
        self.claims = [
            tuple(part.strip() for part in claim.partition(':')[::2])
            for claim in claims.splitlines() if claim.strip()]

    def letter(self, number, count, changes):
        """The commit as "git format-patch" writes it."""
        subject, _, body = self.message.partition('\n')
        return LETTER.format(
            author=AUTHOR, date=DATE, number=number, count=count,
            subject=subject, body=body.strip(), diff=patch.diff(changes))


class Series:
    """All commits of the series.

    :ivar commits: list of Commit, in their order
    """

    def __init__(self, the_patch):
        self.patch = the_patch
        self.commits = [Commit(path) for path in
                        sorted(the_patch.root.glob('series/*.txt'))]
        self._owners = {}
        problems = []
        for number, commit in enumerate(self.commits):
            for claim in commit.claims:
                if claim in self._owners:
                    problems.append(f'{_show(claim)} is claimed twice')
                self._owners[claim] = number
        self._used = set()
        # What every part is in at last; all must be claimed.
        for path in the_patch.files:
            try:
                self.content(path, len(self.commits))
            except source.Misfit as misfit:
                problems += misfit.problems
        problems += [
            f'{self.commits[number].name}: there is no {_show(claim)}'
            for claim, number in self._owners.items()
            if claim not in self._used and not claim[0].endswith('/')]
        if problems:
            raise source.Misfit(problems)

    def _find_owner(self, path, names=()):
        """Number of the commit that brings a part of the patch, or None."""
        names = list(names)
        claims = [(path, '.'.join(names[:end]))
                  for end in range(len(names), -1, -1)]
        claims += [(f'{parent}/', '') for parent in
                   pathlib.PurePosixPath(path).parents]
        for claim in claims:
            if claim in self._owners:
                self._used.add(claim)
                return self._owners[claim]

    def content(self, path, end):
        """What a file of the patch holds in the first commits.

        :param path: path of the file
        :param end: number of commits
        :returns: bytes, None if it is not there yet
        :raises source.Misfit: no commit brings some of it
        """
        content = self.patch.files[path].read_bytes()
        if any(claim[0] == path and claim[1] for claim in self._owners):
            return _Part(path, content, self._find_owner, end).content
        owner = self._find_owner(path)
        if owner is None:
            raise source.Misfit([f'{path}: no commit of series/ brings it'])
        return content if owner < end else None

    def steps(self, read, release):
        """What each commit changes.

        :param read: function that returns the pristine content of a path of
            Nova's source tree as bytes, None when there is no such file
        :param release: release of that Nova, for messages
        :returns: an iterator over pairs of Commit and list of patch.Change
        :raises source.Misfit: the patch does not fit
        """
        parts, done = {}, {}
        for end, commit in enumerate(self.commits, 1):
            def content(path, end=end):
                part = self.content(path, end)
                if part != parts.get(path):
                    parts[path] = part
                    self._check_imports(path, part, end, read)
                    return part

            changes = self.patch.changes(read, release, content)
            for change in changes:
                change.before = done.get(change.path, change.before)
                done[change.path] = change.after
            # There is nothing of documents where Nova has none.
            if changes:
                yield commit, changes

    def _check_imports(self, path, part, end, read):
        """Make sure that a file needs nothing that a later commit brings."""
        if not path.endswith('.py'):
            return
        for node in ast.walk(ast.parse(part)):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for entry in source.imports_of(node):
                name = '.'.join(filter(None, (entry.module, entry.name)))
                module = name.replace('.', '/') + '.py'
                if module in self.patch.files and read(module) is None and (
                        self.content(module, end) is None):
                    raise source.Misfit([
                        f'{self.commits[end - 1].name}: {path} imports '
                        f'{name}, which a later commit brings'])

    def write(self, directory, read, release):
        """Write a patch for each commit.

        :param directory: where to; it is made, or has to be empty
        :returns: their number
        """
        directory = pathlib.Path(directory)
        if directory.exists() and list(directory.iterdir()):
            raise graft.GraftError(f'{directory} is not empty; name a new '
                                   'directory.')
        steps = list(self.steps(read, release))
        directory.mkdir(parents=True, exist_ok=True)
        for number, (commit, changes) in enumerate(steps, 1):
            (directory / f'{commit.name}.patch').write_text(
                commit.letter(number, len(steps), changes))
        return len(steps)


def _show(claim):
    return ': '.join(filter(None, claim))


class _Part:
    """What the first commits bring of a file of the patch.

    :ivar content: what it holds, None if that is nothing
    """

    def __init__(self, path, content, find_owner, end):
        text = content.decode()
        self._path = path
        self._find_owner = find_owner
        self._end = end
        self._is_fragment = source.is_fragment(text, path)
        self._lines = source.lines_of(text)
        self._gone = set()
        self._problems = []
        tree = ast.parse(text)
        stays = self._walk(tree, ())
        if self._problems:
            raise source.Misfit(self._problems)
        if not stays:
            self.content = None
            return
        if self._gone:
            self._remove_imports(tree)
        self.content = ''.join(
            line for row, line in enumerate(self._lines)
            if row not in self._gone).encode()

    def _name(self, node):
        """Name of a part of a file; None: it is none by itself."""
        calls = ([node.value] if isinstance(node, ast.Expr) else
                 getattr(node, 'decorator_list', []))
        for call in calls if self._is_fragment else []:
            verb = getattr(getattr(call, 'func', None), 'id', None)
            if verb in source.VERBS and getattr(node, 'name', '_') == '_':
                given = source.arguments_of(call, verb)
                return given['where'] or ''.join(given['first_line'])
        return getattr(node, 'name', None)

    def _walk(self, scope, names):
        """Let go what is not claimed yet, and tell whether some stays."""
        stays, limit = False, 0
        for node in scope.body:
            name = self._name(node)
            if name:
                own = (*names, name)
                if isinstance(node, ast.ClassDef) and any(
                        map(self._name, node.body)):
                    is_in = self._walk(node, own)
                else:
                    is_in = self._is_in(node, own)
                if not is_in:
                    self._remove(node, limit)
                stays = stays or is_in
            limit = source.end_of_block(
                self._lines, node.end_lineno, node.col_offset)
        return stays

    def _is_in(self, node, names):
        owner = self._find_owner(self._path, names)
        if owner is None:
            self._problems.append(
                f'{self._path}:{node.lineno}: no commit of series/ brings '
                f'{".".join(names)}')
        return owner is not None and owner < self._end

    def _remove(self, node, limit=0):
        """Remove a statement, what is said of it, and the blank lines above.

        :param limit: row above which nothing goes
        """
        start = source.start_of(node)
        while start > limit and self._lines[start - 1].strip()[:1] in (
                '', '#'):
            start -= 1
        self._gone.update(range(start, source.end_of_block(
            self._lines, node.end_lineno, node.col_offset)))

    def _remove_imports(self, tree):
        """Remove imports that only what is gone has used."""
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        left = {node.id for node in used if node.lineno - 1 not in self._gone}
        gone = {node.id for node in used} - left
        for node in tree.body:
            # Without those that make it a fragment it would be none.
            if not isinstance(node, (ast.Import, ast.ImportFrom)) or not all(
                    entry.bound in gone and
                    entry.module not in source.marks_of(self._path)
                    for entry in source.imports_of(node)):
                continue
            self._gone.update(range(node.lineno - 1, node.end_lineno))
            # One blank line is enough where a block of them was.
            above = node.lineno - 2
            while above in self._gone:
                above -= 1
            if not (self._lines[above] +
                    self._lines[node.end_lineno]).strip():
                self._gone.add(above)
