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
``stdin_letter`` and how often it comes in standard input (``stdin_bytes``),
``rc``, ``stdout`` and ``stderr``. ``<ctime>``, ``<date>``, ``<created>``,
``<port>`` and ``<path>`` stand for what varies, ``<usage>`` for a help text,
and ``<N bytes, SHA-256 ...>`` for output that was not kept.
"""

import difflib
import hashlib
import json
import os
import re

#: The file that record.py writes.
NAME = 'transcripts.json'

_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), NAME)


def load():
    with open(_PATH) as transcripts:
        return json.load(transcripts)


def save(cases):
    """:returns: path of the file"""
    with open(_PATH, 'w') as transcripts:
        json.dump(cases, transcripts, indent=1)
        transcripts.write('\n')
    return _PATH


def outcome(cluster, case):
    """Make a recorded call.

    :returns: exit status, standard output and standard error, as text in
        which what varies is replaced
    """
    port = 1 if case['title'].startswith('no daemon at the port') else None
    stdin = case.get('stdin_letter', '').encode() * case['stdin_bytes']
    status, output, error = cluster.run(*case['argv'], stdin=stdin,
                                        port=port)
    if len(output) > 4096:
        output = b'<%d bytes, SHA-256 %s>' % (
            len(output), hashlib.sha256(output).hexdigest().encode())
    return status, _hide(output.decode()), _hide(error.decode())


def _hide(text):
    """VDI ids are left: they follow from the names."""
    text = re.sub(r'(?m)^([=cs] .* \d+ \d+ \d+ \d+ )\d{10}(?= )',
                  r'\1<ctime>', text)
    text = re.sub(r'(?<=Cluster created at )[^\n]*', '<created>', text)
    text = re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?', '<date>', text)
    # of a disk
    text = re.sub(r'(?m)(?<=\d%[ \t])/.*$', '<path>', text)
    text = re.sub(r'\AUsage: (?s:.*)', '<usage>', text)
    return re.sub(r'(?<=127\.0\.0\.1:)\d+', '<port>', text)


def _difference(stream, case, actual):
    expected = case[stream]
    if case['argv'][0] == 'node':
        # Of disks, and of what is not spread evenly over them.
        expected, actual = (re.sub(r'(?<= )(0|\d{4,})(?= )', '<size>', text)
                            for text in (expected, actual))
    if expected == actual:
        return ''
    return ''.join(difflib.unified_diff(
        expected.splitlines(True), actual.splitlines(True),
        'recorded ' + stream, 'actual ' + stream))


def differences(cluster, case):
    """Make a recorded call again.

    :returns: text on how the outcome differs from what was recorded, '' if
        it does not
    """
    status, output, error = outcome(cluster, case)
    text = ''
    if status != case['rc']:
        text = 'exit status %d, recorded %d\n' % (status, case['rc'])
    return (text + _difference('stdout', case, output) +
            _difference('stderr', case, error))
