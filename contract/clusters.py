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

"""The cluster that the suite runs on.

The simulator, unless SHEEPDOG_DOG, the path of a real ``dog``, is set; then
the real cluster that has a sheep at SHEEPDOG_HOST (127.0.0.1) and
SHEEPDOG_PORT (7000).
"""

import os
import sys

# The fixtures are files that the patch adds to Nova; here they stand alone,
# whatever Nova is installed.
sys.path.insert(0, os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    'nova', 'tests', 'fixtures'))

import sheepdog  # noqa: E402
import tgtd  # noqa: E402,F401

#: A cluster with this VDI was formatted by this suite.
MARKER = 'made-by-the-contract-suite-which-may-wipe-this-cluster'

_REFUSAL = """\
The Sheepdog cluster at %s:%d is formatted already, and not by this suite.
The suite formats and wipes the cluster it runs on, so it left this one alone.
Give it one that was never formatted: start sheep with new, empty directories,
and set SHEEPDOG_HOST and SHEEPDOG_PORT to one of them."""

_USED = """\
The Sheepdog cluster at %s:%d is formatted; this test begins before that.
Start its sheep again with new, empty directories."""


class NotUsable(Exception):
    """The suite does not run on this cluster; the text says what to do."""


def get():
    """:returns: a fixture, the simulator or the real cluster, unformatted
    """
    dog = os.environ.get('SHEEPDOG_DOG')
    if not dog:
        return sheepdog.SheepdogFixture(copies=None)
    return sheepdog.Cluster(dog, os.environ.get('SHEEPDOG_HOST', '127.0.0.1'),
                            int(os.environ.get('SHEEPDOG_PORT', '7000')))


def _is_formatted(cluster):
    status, output, error = cluster.run('cluster', 'info')
    if status:
        raise NotUsable('No Sheepdog cluster at %s:%d: %s' % (
            cluster.host, cluster.port, os.fsdecode(error)))
    return b'Waiting for cluster to be formatted' not in output


def _is_ours(cluster):
    return bool(cluster.run('vdi', 'list', '-r', MARKER)[1])


def mark(cluster):
    """Remember in a cluster that it is the suite's own."""
    cluster.run('vdi', 'create', MARKER, '4M')


def check_unformatted(cluster):
    """:raises: NotUsable if the cluster is formatted"""
    if _is_formatted(cluster):
        raise NotUsable((_USED if _is_ours(cluster) else _REFUSAL) % (
            cluster.host, cluster.port))


def format(cluster, *options):
    """Empty the cluster.

    :param options: of dog cluster format
    :raises: NotUsable if it is an operator's
    """
    if _is_formatted(cluster) and not _is_ours(cluster):
        raise NotUsable(_REFUSAL % (cluster.host, cluster.port))
    status, _, error = cluster.run('cluster', 'format', '-f', *options)
    if status:
        raise NotUsable('cluster format: %s' % os.fsdecode(error))
    mark(cluster)
