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

import subprocess

import testtools
from testtools import content

from contract import clusters
from contract import transcripts


class TestContract(testtools.TestCase):
    """The recorded calls, on the simulator or on a real cluster.

    On a real one run it serially, so that it comes first, before the cluster
    is formatted: ``python -m unittest discover contract``.
    """

    def _get_cluster(self):
        return clusters.get()

    def test_recorded_calls(self):
        cluster = self.useFixture(self._get_cluster())
        clusters.check_unformatted(cluster)
        failed = []
        for case in transcripts.load():
            text = transcripts.differences(cluster, case)
            if text:
                failed.append(case['title'])
                self.addDetail(case['title'], content.text_content(
                    'dog %s\n%s' % (' '.join(case['argv']), text)))
        self.assertEqual([], failed)


class TestVersion(testtools.TestCase):

    def test_help_begins_with_the_version(self):
        self.assertRegex(
            subprocess.run([clusters.get().dog, '--help'], check=True,
                           text=True, stdout=subprocess.PIPE).stdout,
            r'\ASheepdog administrator utility \(version 1\.0[^)]*\)\n')


class TestModel(TestContract):
    """The recorded calls, on the simulator within this process."""

    def _get_cluster(self):
        return clusters.sheepdog.ModelFixture(copies=None)
