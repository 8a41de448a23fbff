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

from graft.fragment import after
from graft.fragment import substitute
from oslo_config import cfg

substitute('', 'libvirt_imagebackend_opts = [',
           """\
                        'default'),
               help=\"\"\"
VM Images format.
""",
           """\
                        'sheepdog', 'default'),
               help=\"\"\"
VM Images format.
""")


@after('', 'libvirt_imagebackend_opts = [')
def _():
    libvirt_sheepdog_opts = [
        cfg.StrOpt('images_sheepdog_host',
                   default='localhost',
                   help="""
Address of the Sheepdog gateway that this compute host uses.

This is the address of a sheep daemon: the one on this host, or another one of
the cluster where this host runs none. Sheepdog's tools take nothing but an
IPv4 address or ``localhost``.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_port
"""),
        cfg.PortOpt('images_sheepdog_port',
                    default=7000,
                    help="""
TCP port of the Sheepdog gateway.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_host
"""),
        cfg.StrOpt('images_sheepdog_transport',
                   default='auto',
                   choices=[
                       ('auto', 'Use ``native`` where this host\'s QEMU has '
                        'the Sheepdog driver and ``iscsi`` elsewhere'),
                       ('native', 'QEMU talks to the gateway by its own '
                        'Sheepdog driver, which QEMU 6.1 and later lack'),
                       ('iscsi', 'tgtd on this host serves the VDIs of its '
                        'guests on ``images_sheepdog_portal``, and QEMU\'s '
                        'user-space initiator opens them'),
                   ],
                   help="""
How a guest reaches its VDIs.

Live migration is refused unless source and destination use ``iscsi``: only
tgtd can be told to read again what the source has changed.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_portal
"""),
        cfg.StrOpt('images_sheepdog_portal',
                   default='127.0.0.1:3260',
                   help="""
Portal of the tgtd that serves VDIs to the guests of this host.

This is an IPv4 address and a TCP port, as given to ``tgtd --iscsi portal=``.
The address should be one of the loopback interface: who can open the portal
can open every disk that is exported there. Hosts between which instances are
migrated live need not have the same.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_transport - not used when that is ``native``
"""),
        cfg.IntOpt('images_sheepdog_timeout',
                   default=60,
                   min=1,
                   help="""
Seconds after which one call of ``dog`` or ``tgtadm`` is given up.

Both wait for ever for a cluster that does not answer. A call that copies the
data of an image may take one second longer for each MiB of data.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_max_calls
"""),
        cfg.IntOpt('images_sheepdog_max_calls',
                   default=4,
                   min=1,
                   help="""
Number of calls of ``dog`` and ``tgtadm`` that may run at once on this host.

Further ones wait until it is their turn, and ``images_sheepdog_timeout`` does
not count that. Each that runs at once has a daemon of rootwrap of its own,
where sudo allows ``nova-rootwrap-daemon``.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_timeout
* rootwrap_config - which sudo must allow the daemon to be started with
"""),
    ]


substitute('', 'ALL_OPTS = list(itertools.chain(',
           'libvirt_imagebackend_opts,\n',
           'libvirt_imagebackend_opts,\n    libvirt_sheepdog_opts,\n')
