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

"""The patch: the fragments and new files, and what they make of a Nova."""

import dataclasses
import difflib
import hashlib
import os
import pathlib
import typing as ty

import graft
from graft import page
from graft import source
from graft import weave

ROOTWRAP_DIRECTORY = 'etc/nova/rootwrap.d/'
# What the patch adds to: all that is below these, of which only the first two
# are installed.
TOPS = ('nova', 'etc', 'doc/source/admin', 'releasenotes/notes')
DOCUMENTS = ('doc/', 'releasenotes/')
TESTS = 'nova/tests/'


@dataclasses.dataclass
class Change:
    """A file of Nova to write.

    :ivar path: where it is in Nova's source tree
    :ivar before: what it holds in the pristine Nova; None: it is new
    :ivar after: what it shall hold
    :ivar mode: permissions of a new file
    """
    path: str
    before: ty.Optional[bytes]
    after: bytes
    mode: int = 0o644


def find_root():
    """Directory that has the patch's nova/ and etc/ trees.

    :raises GraftError: this installation lacks them
    """
    here = pathlib.Path(__file__).resolve().parent
    # Installed they are inside of the package, in the repository at its top.
    for root in (here / 'files', here.parents[1]):
        if (root / ROOTWRAP_DIRECTORY).is_dir() and (root / 'nova').is_dir():
            return root
    raise graft.GraftError(
        f'The patch itself is missing beside {here}: install nova-sheepdog '
        'again, or run it from a whole checkout.')


class Patch:
    """All files of the patch.

    :param with_tests: whether tests and documents count, which no server
        needs
    :ivar files: their paths on disk, by their paths in Nova's source tree
    """

    def __init__(self, root=None, with_tests=True):
        self.root = pathlib.Path(root or find_root())
        self.version = graft.__version__
        self.files = {}
        left_out = () if with_tests else (TESTS, *DOCUMENTS)
        for top in TOPS:
            for directory, names, files in os.walk(self.root / top):
                names[:] = [name for name in sorted(names)
                            if name != '__pycache__' and name[0] != '.']
                for name in sorted(files):
                    path = pathlib.Path(directory, name)
                    relative = path.relative_to(self.root).as_posix()
                    if (path.suffix != '.pyc' and name[0] != '.' and
                            not relative.startswith(left_out)):
                        self.files[relative] = path

    @property
    def releases(self):
        """The releases of Nova that it was tested with."""
        return {path.stem[len('nova-'):]
                for path in self.root.glob('locks/nova-*.txt')}

    @property
    def fingerprint(self):
        """SHA-256 over all that the patch is made of."""
        digest = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            content = path.read_bytes()
            digest.update(f'{name}\0{len(content)}\0'.encode() + content)
        return digest.hexdigest()

    def changes(self, read, release, content=None):
        """What the patch makes of a Nova.

        :param read: function that returns the pristine content of a path of
            Nova's source tree as bytes, None when there is no such file
        :param release: release of that Nova, for messages
        :param content: function that returns what a file of the patch holds,
            None to leave it out; None: all of it
        :returns: list of Change
        :raises source.Misfit: the patch does not fit; it has all problems
        """
        changes, problems = [], []
        # One that is installed has no documents to add to.
        has_documents = read('doc/source/conf.py') is not None
        for name, path in self.files.items():
            if name.startswith(DOCUMENTS) and not has_documents:
                continue
            before = read(name)
            own = content(name) if content else path.read_bytes()
            if own is None:
                continue
            try:
                after = self._after(name, own, before, release)
            except source.Misfit as misfit:
                problems += misfit.problems
                continue
            if before != after:
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                changes.append(Change(name, before, after, mode))
        if problems:
            raise source.Misfit(problems)
        return changes

    def _after(self, name, after, before, release):
        if not after:
            # quilt and dpkg-source would not make it.
            raise source.Misfit([f'{name}: an empty file'])
        try:
            text = after.decode()
        except UnicodeDecodeError as error:
            raise source.Misfit([f'{name}: not a text in UTF-8: {error}'])
        is_page = name.endswith('.rst') and page.is_fragment(text)
        if is_page or (name.endswith('.py') and
                       source.is_fragment(text, name)):
            if before is None:
                raise source.Misfit([f'{name}: Nova {release} has no such '
                                     'file'])
            into = page.weave if is_page else weave.weave
            return into(text, before.decode(), name, release).encode()
        if before not in (None, after):
            raise source.Misfit([
                f'{name}: Nova {release} has a file of this name, and the '
                'patch brings another one'])
        return after


def diff(changes, prefix=None):
    """A unified diff of all changes, as git writes it.

    :param changes: list of Change
    :param prefix: directory that Nova is installed in; the diff is then for
        "patch -p0" at the top of a file system. None: it is for Nova's
        source tree.
    """
    parts = []
    for change in changes:
        if prefix is None:
            old, new = f'a/{change.path}', f'b/{change.path}'
        else:
            top = prefix if change.path.startswith('nova/') else '/'
            old = new = os.path.join(top, change.path).lstrip('/')
        parts.append(f'diff --git {old} {new}\n')
        if change.before is None:
            parts.append(f'new file mode 100{change.mode:o}\n')
            old = '/dev/null'
        for line in difflib.unified_diff(
                _text_lines(change.before or b''), _text_lines(change.after),
                old, new):
            parts.append(line if line.endswith('\n') else
                         f'{line}\n\\ No newline at end of file\n')
    return ''.join(parts)


def _text_lines(content):
    lines = [line + '\n' for line in content.decode().split('\n')]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]
