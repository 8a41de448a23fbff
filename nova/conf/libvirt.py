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

This is the address of a sheep daemon: the one on this host or, if this host
runs none, another one of the cluster. It must be an IPv4 address or
``localhost``, because Sheepdog's tools accept nothing else.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_port
"""),
        cfg.PortOpt('images_sheepdog_port',
                    default=7000,
                    help="""
TCP port of the Sheepdog gateway.

With the ``iscsi`` transport it must be below 10000, because tgtd reads only
four digits of it.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_host
* images_sheepdog_transport

"""),
        cfg.StrOpt('images_sheepdog_transport',
                   default='auto',
                   choices=[
                       ('auto', 'Use ``native`` if this host\'s QEMU has the '
                        'Sheepdog driver, otherwise ``iscsi``'),
                       ('native', 'QEMU talks to the gateway with its own '
                        'Sheepdog driver, which QEMU 6.1 and later lack'),
                       ('iscsi', 'tgtd on this host serves the VDIs of its '
                        'guests on ``images_sheepdog_portal``, and QEMU\'s '
                        'user-space initiator opens them'),
                   ],
                   help="""
How a guest reaches its VDIs.

Live migration requires ``iscsi`` at both source and destination: only tgtd can
be told to read again what the source has changed.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_portal
"""),
        cfg.StrOpt('images_sheepdog_portal',
                   default='127.0.0.1:3260',
                   help="""
Portal of the tgtd that serves VDIs to the guests of this host.

This is an IPv4 address and a TCP port, as given to ``tgtd --iscsi portal=``.
Use an address of the loopback interface: whoever can open the portal can open
every disk that is exported there. Hosts may have different portals, also if
instances are live migrated between them.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_transport - not used when that is ``native``
"""),
        cfg.IntOpt('images_sheepdog_timeout',
                   default=60,
                   min=1,
                   help="""
Time limit for one call of ``dog`` or ``tgtadm``, in seconds.

Without a limit both would wait forever for a cluster that does not answer. A
call that copies image data may take one second longer for each MiB of data. If
a host that imports an image dies, other hosts wait for twice this time and 30
seconds before one of them imports the image instead.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_max_calls
"""),
        cfg.IntOpt('images_sheepdog_max_calls',
                   default=4,
                   min=1,
                   help="""
Maximum number of ``dog`` and ``tgtadm`` calls that run at once on this host.

Further calls wait for their turn; ``images_sheepdog_timeout`` does not include
that time. If sudo allows ``nova-rootwrap-daemon``, Nova runs one daemon for
each of these calls, and one for urgent calls.

Related options:

* images_type - must be set to ``sheepdog``
* images_sheepdog_timeout
* rootwrap_config - which sudo must allow the daemon to be started with
"""),
    ]


substitute('', 'ALL_OPTS = list(itertools.chain(',
           'libvirt_imagebackend_opts,\n',
           'libvirt_imagebackend_opts,\n    libvirt_sheepdog_opts,\n')
