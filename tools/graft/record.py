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

"""Writes the changes into a Nova, all or none, and takes them back.

All that is needed to take them back is kept inside of the patched package, in
nova/.nova-sheepdog/: the pristine files, named by their SHA-256, and the
manifest. The manifest is there before the first file of Nova changes, and it
is removed after the last one is back: whatever happens in between, the
manifest says how to mend it.
"""

import base64
import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import struct

from graft import GraftError
from graft import patch

# Keeps the version control of a source tree away.
GITIGNORE = b'*\n'
APPLYING, APPLIED, REVERTING = 'applying', 'applied', 'reverting'

# What a file of the patch can be: as the patch wrote it; of Nova as it was
# before; of Nova and another one, as an update brings it; what the patch
# wrote and somebody changed; of the patch and gone; not for this user to see
PATCHED, RESTORED, UPDATED = 'patched', 'restored', 'updated'
EDITED, REMOVED, UNREADABLE = 'edited', 'removed', 'unreadable'


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _read(path):
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lines(content):
    return {_sha256(line)[:8] for line in content.splitlines()}


def _temporary(path):
    return path.with_name(f'.{path.name}.nova-sheepdog')


def _write(path, content, mode, like):
    """Write a file to the disk; its owner is that of another one."""
    with open(path, 'wb') as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), mode)
        owner, wanted = os.fstat(stream.fileno()), os.stat(like)
        if (owner.st_uid, owner.st_gid) != (wanted.st_uid, wanted.st_gid):
            os.fchown(stream.fileno(), wanted.st_uid, wanted.st_gid)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Record:
    """What was done to one Nova.

    :ivar manifest: None when nothing was
    """

    def __init__(self, nova):
        self.nova = nova
        self.directory = nova.package / '.nova-sheepdog'
        self.load()

    def load(self):
        content = _read(self.directory / 'manifest.json')
        try:
            self.manifest = json.loads(content) if content else None
        except ValueError as error:
            raise GraftError(f'{self.directory}/manifest.json: {error}. '
                             'Install this Nova again.')

    @contextlib.contextmanager
    def locked(self):
        """Keep other runs away from this Nova; wait for one to end."""
        descriptor = os.open(self.nova.package, os.O_RDONLY)
        try:
            # An update and the start of nova-compute may meet here.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.load()
            yield
        finally:
            os.close(descriptor)

    @property
    def is_interrupted(self):
        """Whether a run did not come to its end."""
        if self.manifest:
            return self.manifest['state'] != APPLIED
        return self.directory.exists()

    @property
    def is_applied(self):
        """Whether the patch is in, or was until somebody changed it."""
        return bool(self.manifest) and self.manifest['state'] == APPLIED

    @property
    def is_whole(self):
        """Whether every file is as the patch wrote it."""
        return self.is_applied and set(self.states().values()) <= {PATCHED}

    @property
    def left_elsewhere(self):
        """Paths that stayed where this Nova was copied or moved from."""
        if not self.manifest or self.manifest['root'] == str(self.nova.root):
            return []
        return [entry['path'] for entry in self.manifest['files']
                if os.path.isabs(entry['path'])]

    def _entries(self):
        elsewhere = self.left_elsewhere
        return [entry for entry in (self.manifest or {'files': ()})['files']
                if entry['path'] not in elsewhere]

    def _path(self, entry):
        # An absolute path stays one.
        return self.nova.root / entry['path']

    def owns(self, path):
        """Whether a file is one that the patch made, as it made it."""
        return any(self._path(entry) == pathlib.Path(path) and
                   entry['before'] is None and self._state(entry) == PATCHED
                   for entry in self._entries())

    def states(self):
        """What the files of the patch are: their states by their paths."""
        return {self._path(entry): self._state(entry)
                for entry in self._entries()}

    def _state(self, entry):
        try:
            content = _read(self._path(entry))
        except PermissionError:
            return UNREADABLE
        digest = None if content is None else _sha256(content)
        if digest == entry['after']:
            return PATCHED
        if entry['before'] is None:
            return REMOVED if content is None else EDITED
        if digest == entry['before']:
            return RESTORED
        # An update knows nothing of the patch; an editor leaves most of it.
        added = set(entry.get('added', ()))
        if content and 2 * len(added & _lines(content)) > len(added):
            return EDITED
        return UPDATED

    def read(self, path):
        """Pristine content of a path of Nova's source tree, or None."""
        for entry in self._entries():
            if entry['path'] == path:
                if entry['before'] is None:
                    return None
                if self._state(entry) == PATCHED:
                    return self._pristine(entry)
        return self.nova.read(path)

    def _pristine(self, entry):
        content = _read(self.directory / 'pristine' / entry['before'])
        if content is None or _sha256(content) != entry['before']:
            raise GraftError(
                f'The pristine copy of {self._path(entry)} in '
                f'{self.directory} is damaged. Install this Nova again.')
        return content

    def apply(self, changes, version, fingerprint):
        """Write changes, all or none.

        :param changes: list of patch.Change, with paths relative to the
            root of the Nova, or absolute
        :param version: version of the patch
        :param fingerprint: fingerprint of the patch
        :raises GraftError: a file is a symbolic link
        """
        self.manifest = {
            'version': version, 'fingerprint': fingerprint,
            'release': self.nova.release, 'root': str(self.nova.root),
            'files': [self._entry(change) for change in changes],
            'directories': self._missing_directories(changes)}
        try:
            self._keep(changes)
            for name in self.manifest['directories']:
                self._make_directory(self.nova.root / name)
            for change, entry in zip(changes, self.manifest['files']):
                path = self._path(entry)
                _write(_temporary(path), change.after, entry['mode'],
                       path if entry['before'] else path.parent)
            for entry in self.manifest['files']:
                os.replace(_temporary(self._path(entry)), self._path(entry))
            for directory in {self._path(entry).parent
                              for entry in self.manifest['files']}:
                _sync(directory)
            self._save(APPLIED)
        except BaseException:
            self.roll_back()
            raise

    def _entry(self, change):
        path = self.nova.root / change.path
        if path.is_symlink():
            raise GraftError(f'{path} is a symbolic link; only a Nova of '
                             'regular files can be patched.')
        entry = {'path': change.path, 'before': None,
                 'after': _sha256(change.after), 'mode': change.mode}
        if change.before is not None:
            stat = path.stat()
            entry.update(before=_sha256(change.before),
                         added=sorted(_lines(change.after) -
                                      _lines(change.before)),
                         mode=stat.st_mode & 0o7777,
                         mtime_ns=stat.st_mtime_ns)
        return entry

    def _missing_directories(self, changes):
        """The directories to make, outer ones first."""
        missing = {parent for change in changes
                   for parent in pathlib.PurePath(change.path).parents
                   if not (self.nova.root / parent).exists()}
        return sorted(map(str, missing))

    def _make_directory(self, path):
        path.mkdir()
        shutil.copymode(self.nova.package, path)

    def _keep(self, changes):
        """Make the pristine copies and the manifest."""
        self._make_directory(self.directory)
        self._make_directory(self.directory / 'pristine')
        _write(self.directory / '.gitignore', GITIGNORE, 0o644,
               self.nova.package)
        for change in changes:
            if change.before is not None:
                _write(self.directory / 'pristine' / _sha256(change.before),
                       change.before, 0o644, self.nova.package)
        _sync(self.directory / 'pristine')
        self._save(APPLYING)
        _sync(self.nova.package)

    def _save(self, state):
        self.manifest['state'] = state
        path = self.directory / 'manifest.json'
        content = json.dumps(self.manifest, indent=1) + '\n'
        _write(_temporary(path), content.encode(), 0o644, self.nova.package)
        os.replace(_temporary(path), path)
        _sync(self.directory)

    def revert(self):
        """Take an applied patch back."""
        self._save(REVERTING)
        self.roll_back()

    def roll_back(self):
        """Bring back the pristine Nova from whatever state it is in.

        What is not as the patch wrote it stays as it is.
        """
        self.load()
        for entry in self._entries():
            path = self._path(entry)
            _temporary(path).unlink(missing_ok=True)
            if self._state(entry) == PATCHED:
                if entry['before'] is None:
                    path.unlink()
                else:
                    self._restore(entry)
            _drop_stale_bytecode(path)
        for name in reversed(self.manifest['directories']
                             if self.manifest else ()):
            directory = self.nova.root / name
            for path in (directory / '__pycache__', directory):
                # Not empty: somebody put a file there, who may keep it.
                with contextlib.suppress(OSError):
                    path.rmdir()
        (self.directory / 'manifest.json').unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.manifest = None

    def _restore(self, entry):
        path = self._path(entry)
        temporary = _temporary(path)
        _write(temporary, self._pristine(entry), entry['mode'], path)
        os.utime(temporary, ns=(entry['mtime_ns'], entry['mtime_ns']))
        os.replace(temporary, path)
        _sync(path.parent)


def _drop_stale_bytecode(path):
    """Remove what Python compiled from other content of a source file."""
    if path.suffix != '.py':
        return
    fresh = None
    if path.exists():
        stat = path.stat()
        # What a .pyc begins with, after the number of Python's version.
        fresh = struct.pack('<III', 0, int(stat.st_mtime) & 0xffffffff,
                            stat.st_size & 0xffffffff)
    for compiled in (path.parent / '__pycache__').glob(f'{path.stem}.*.pyc'):
        if compiled.read_bytes()[4:16] != fresh:
            compiled.unlink()


def installation_record_change(nova, changes):
    """The change that keeps an installed Nova's RECORD true.

    :param nova: tree.Nova
    :param changes: list of patch.Change, all others
    :returns: list of patch.Change, empty when this Nova has no RECORD
    """
    path = nova.installation_record
    if not path:
        return []
    before = path.read_bytes()
    rows = list(csv.reader(io.StringIO(before.decode(), newline='')))
    new = {change.path: _record_row(change.path, change.after)
           for change in changes if not os.path.isabs(change.path)}
    rows = [new.pop(row[0], row) if row else row for row in rows]
    rows += new.values()
    # "pip uninstall nova" shall remove our own files as well.
    kept = nova.package.relative_to(nova.root) / '.nova-sheepdog'
    rows += [[str(kept / 'manifest.json'), '', ''],
             _record_row(str(kept / '.gitignore'), GITIGNORE)]
    for content in [before] + [change.before for change in changes
                               if change.before is not None]:
        rows.append(_record_row(str(kept / 'pristine' / _sha256(content)),
                                content))
    stream = io.StringIO()
    csv.writer(stream, lineterminator='\n').writerows(rows)
    return [patch.Change(str(path.relative_to(nova.root)), before,
                         stream.getvalue().encode())]


def _record_row(path, content):
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return [path, 'sha256=' + digest.decode().rstrip('='), str(len(content))]
