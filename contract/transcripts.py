#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""Recorded calls of dog: how they are kept, made again and compared.

A case is a dict of ``title``, ``argv`` (without address and port),
``stdin_bytes``, ``rc``, ``stdout`` and ``stderr``. ``<vid>``, ``<ctime>``,
``<date>``, ``<created>`` and ``<port>`` stand for what varies, ``<N bytes>``
and ``<N bytes, SHA-256 ...>`` for output that was not kept.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import socket
import stat

from contract import clusters

_HERE = os.path.dirname(os.path.abspath(__file__))


def load(name):
    with open(os.path.join(_HERE, name)) as transcripts:
        return json.load(transcripts)


def save(name, cases):
    path = os.path.join(_HERE, name)
    with open(path, 'w') as transcripts:
        json.dump(cases, transcripts, indent=1)
        transcripts.write('\n')
    return path


def _stdin(case):
    # The first write of the older recording was of the letter its reads
    # show, the others of something that is not text.
    letter = case.get('stdin_letter',
                      'Z' if case['title'] == 'write 5 MiB at 0' else '\xa5')
    return letter.encode('latin-1') * case['stdin_bytes']


def _free_port():
    with socket.create_server(('127.0.0.1', 0)) as free:
        return free.getsockname()[1]


def _call(cluster, case, directory):
    """:param directory: an empty one, which users other than root may enter
    """
    title = case['title']
    if title.startswith('no daemon at the port'):
        cluster = clusters.sheepdog.Cluster(cluster.dog, '127.0.0.1',
                                            _free_port())
    options = {}
    if title.endswith('as a user that is not root') and not os.geteuid():
        options = {'user': 'nobody', 'group': 'nogroup', 'extra_groups': []}
        cluster = _dog_for_everybody(cluster, directory)
    return cluster.run(*case['argv'], stdin=_stdin(case), **options)


def _dog_for_everybody(cluster, directory):
    """The simulator's dog may lie where only root can read it."""
    if os.path.basename(os.path.dirname(cluster.dog)) != 'sheepdog':
        return cluster
    target = os.path.join(directory, 'sheepdog')
    if not os.path.exists(target):
        shutil.copytree(os.path.dirname(cluster.dog), target)
    os.chmod(directory, stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
    return clusters.sheepdog.Cluster(os.path.join(target, 'dog'),
                                     cluster.host, cluster.port)


def _as_text(data):
    return data.decode('utf-8', 'surrogateescape')


def outcome(cluster, case, directory):
    """Make a recorded call.

    :param directory: an empty one, which users other than root may enter
    :returns: exit status, standard output and standard error, as text in
        which what varies is replaced
    """
    status, output, error = _call(cluster, case, directory)
    if len(output) > 4096:
        output = b'<%d bytes, SHA-256 %s>' % (
            len(output), hashlib.sha256(output).hexdigest().encode())
    # It calls itself as it was called.
    error = error.replace(os.fsencode(cluster.dog) + b': ', b'dog: ')
    return status, _hide(_as_text(output)), _hide(_as_text(error))


def _hide(text):
    """VDI ids are left: they follow from the names."""
    text = re.sub(r'(?m)^([=cs] .* \d+ \d+ \d+ \d+ )\d{10}(?= )',
                  r'\1<ctime>', text)
    text = re.sub(r'(?<=Cluster created at )[^\n]*', '<created>', text)
    text = re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?', '<date>', text)
    # of a disk
    text = re.sub(r'(?m)(?<=\d%[ \t])/.*$', '<path>', text)
    return re.sub(r'(?<=127\.0\.0\.1:)\d+', '<port>', text)


def _differs(expected, actual):
    # The recorder of the older file left some out, and kept some others.
    size = re.fullmatch(r'<(\d+) bytes>', expected)
    if size:
        return (not actual.startswith('<%s bytes, ' % size.group(1)) and
                len(actual) != int(size.group(1)))
    expected = re.escape(_hide(expected))
    return not re.fullmatch(expected.replace('<vid>', '[0-9a-f]{1,6}'),
                            actual)


def _difference(stream, case, actual):
    expected = case[stream]
    if case['title'].startswith('node info'):
        expected, actual = (re.sub(r'\d{9,}|\d+ GB', '<size>', text)
                            for text in (expected, actual))
    if case['title'].startswith('node md'):
        # Objects are not spread evenly.
        expected, actual = (re.sub(r'\d{4,}|[0-9.]+ [KMGT]B', '<size>', text)
                            for text in (expected, actual))
    if not _differs(expected, actual):
        return ''
    return ''.join(difflib.unified_diff(
        expected.splitlines(True), actual.splitlines(True),
        'recorded ' + stream, 'actual ' + stream))


def differences(cluster, case, directory):
    """Make a recorded call again.

    :param directory: an empty one, which users other than root may enter
    :returns: text on how the outcome differs from what was recorded, '' if
        it does not
    """
    status, output, error = outcome(cluster, case, directory)
    text = ''
    if status != case['rc']:
        text = 'exit status %d, recorded %d\n' % (status, case['rc'])
    return (text + _difference('stdout', case, output) +
            _difference('stderr', case, error))
