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

"""What a measurement says: results to standard output, the rest beside it."""

import json
import sys
import time

# Seconds between two lines that say how far it is
INTERVAL = 5

_told = 0.


def progress(words, at_once=False):
    """Tell who waits how far it is, now and then.

    :param words: what it is at
    :param at_once: whether to tell in any case
    """
    global _told
    if at_once or time.monotonic() - _told >= INTERVAL:
        _told = time.monotonic()
        print('      ' + words, file=sys.stderr, flush=True)


def result(row, value, **more):
    """Tell what was measured.

    :param row: name of the row, see figures.FIGURES
    :param value: number, in the unit of the row
    :param more: what else shall be kept, such as 'samples', a dict of label
        to list of seconds
    """
    _write(row=row, value=value, **more)


def missing(row, reason):
    """Tell that something could not be measured for lack of something.

    :param row: name of the row
    :param reason: what is lacking
    """
    _write(row=row, reason=reason)


def _write(**fields):
    print(json.dumps(fields), flush=True)
