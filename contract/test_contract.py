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

import fixtures
import testtools
from testtools import content

from contract import clusters
from contract import record
from contract import transcripts


class TestContract(testtools.TestCase):
    """The recorded calls, on the simulator or on a real cluster.

    On a real one run it serially, so that the tests come in this order:
    ``python -m unittest discover contract``.
    """

    def _replay(self, cluster, cases):
        directory = self.useFixture(fixtures.TempDir()).path
        failed = []
        for case in cases:
            text = transcripts.differences(cluster, case, directory)
            if text:
                failed.append(case['title'])
                self.addDetail(case['title'], content.text_content(
                    'dog %s\n%s' % (' '.join(case['argv']), text)))
        self.assertEqual([], failed)

    def test_1_older_transcripts(self):
        cluster = self.useFixture(clusters.get())
        clusters.check_unformatted(cluster)
        self.addCleanup(clusters.mark, cluster)
        self._replay(cluster, transcripts.load('dog-transcripts.json'))

    def test_2_more_transcripts(self):
        cluster = self.useFixture(clusters.get())
        clusters.format(cluster, '-c', '2')
        self._replay(cluster, transcripts.load(record.NAME))
