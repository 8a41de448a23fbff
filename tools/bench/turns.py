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

"""Measures several things in turn, so that the machine is the same to all."""

import collections
import time

import tell


def measure(contenders, rounds, words):
    """Measure the time that several things take.

    :param contenders: dict of label to a generator function. It prepares and
        yields, does what is to be measured and yields, and cleans up.
    :param rounds: how often each is measured; before that once for nothing
    :param words: what it is, for who waits
    :returns: dict of label to list of seconds
    """
    samples = collections.defaultdict(list)
    for number in range(rounds + 1):
        tell.progress('%s: round %d of %d' % (words, number, rounds))
        for label, contender in contenders.items():
            steps = contender()
            next(steps)
            started = time.perf_counter()
            next(steps)
            seconds = time.perf_counter() - started
            if number:
                samples[label].append(seconds)
            for _step in steps:
                raise ValueError('%s yields more than twice' % label)
    return dict(samples)
