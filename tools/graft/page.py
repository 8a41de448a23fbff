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

"""Weaves sentences into the pages of Nova's documentation.

A fragment stands at the path of the page. It is reStructuredText of which each
comment ``.. after: TEXT`` names a place: the one line of the page that reads
TEXT, without its indentation. What follows, up to the next such comment, goes
in below that line, as a paragraph of its own where a paragraph ends there.
What is above the first of these comments is for the reader of the fragment.
"""

import re

from graft import source

_PLACE = re.compile(r'^\.\. after: (.*)\n', re.M)


def is_fragment(text):
    """Whether a page of the patch is a fragment and not a new page."""
    return bool(_PLACE.search(text))


def weave(fragment, text, path, release):
    """Weave a fragment into a page.

    :param fragment: text of the fragment
    :param text: text of the page
    :param path: path of both, relative
    :param release: release of that Nova, for messages
    :returns: the new text of the page
    :raises source.Misfit: it does not fit; it has all problems
    """
    lines = text.split('\n')
    _, *parts = _PLACE.split(fragment)
    added, problems = {}, []
    for anchor, body in zip(parts[::2], parts[1::2]):
        found = [row for row, line in enumerate(lines)
                 if line.strip() == anchor]
        if len(found) == 1:
            added.setdefault(found[0], []).append(body.strip('\n'))
        else:
            problems.append(f'{path}: {len(found)} lines read {anchor!r}, '
                            f'not one (Nova {release})')
    if problems:
        raise source.Misfit(problems)
    woven = []
    for row, line in enumerate(lines):
        woven.append(line)
        ends_paragraph = not ''.join(lines[row + 1:row + 2]).strip()
        for body in added.get(row, ()):
            woven += [''] * ends_paragraph + [body]
    return '\n'.join(woven)
