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

"""As much of libvirt as live migration and the watcher ask for."""

import types
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova.virt.libvirt import utils as libvirt_utils

VDI = libvirt_utils.get_sheepdog_vdi(uuids.instance, 'disk')
IQN = libvirt_utils.get_sheepdog_iqn(VDI)
XML = """
<domain>
  <uuid>%s</uuid>
  <metadata><other:thing xmlns:other='urn:other'/></metadata>
  <devices>
    <disk type='network' device='disk'>
      <source protocol='iscsi' name='%s/1'>
        <host name='127.0.0.1' port='3260'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='iscsi' name='iqn.2010-10.org.openstack:volume/1'>
        <host name='192.0.2.1' port='3260'/>
      </source>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>
""" % (uuids.instance, IQN)
NATIVE_XML = XML.replace("protocol='iscsi' name='%s/1'" % IQN,
                         "protocol='sheepdog' name='%s'" % VDI)
OTHER_XML = XML.replace(IQN, 'iqn.2010-10.org.openstack:other')


class LibvirtError(Exception):

    def __init__(self, code):
        super().__init__('error %d' % code)
        self.get_error_code = lambda: code


LIBVIRT = types.SimpleNamespace(
    libvirtError=LibvirtError,
    VIR_CONNECT_LIST_DOMAINS_ACTIVE=1, VIR_CONNECT_LIST_DOMAINS_PAUSED=32,
    VIR_DOMAIN_AFFECT_CONFIG=2, VIR_DOMAIN_AFFECT_LIVE=1,
    VIR_DOMAIN_METADATA_ELEMENT=2,
    VIR_DOMAIN_PAUSED=3, VIR_DOMAIN_PAUSED_MIGRATION=2,
    VIR_DOMAIN_PAUSED_USER=1, VIR_DOMAIN_RUNNING=1,
    VIR_ERR_NO_DOMAIN=42, VIR_ERR_NO_DOMAIN_METADATA=80,
    VIR_ERR_OPERATION_TIMEOUT=68,
    VIR_MIGRATE_AUTO_CONVERGE=8192, VIR_MIGRATE_LIVE=1,
    VIR_MIGRATE_PAUSED=32, VIR_MIGRATE_POSTCOPY=32768)


def make_domain(state=LIBVIRT.VIR_DOMAIN_PAUSED,
                reason=LIBVIRT.VIR_DOMAIN_PAUSED_USER, resume='yes',
                xml=XML):
    """Return a domain as it is at the destination.

    What setMetadata() is asked for is done.

    :param resume: as in its metadata; None: it has not come
    """
    domain = mock.Mock()
    domain.UUIDString.return_value = uuids.instance
    domain.XMLDesc.return_value = xml
    domain.state.return_value = [state, reason]

    def set_metadata(_kind, text, *args):
        domain.metadata.return_value = text
        domain.metadata.side_effect = None if text else LibvirtError(
            LIBVIRT.VIR_ERR_NO_DOMAIN_METADATA)

    set_metadata(None, resume and "<arrival resume='%s'/>" % resume)
    domain.setMetadata.side_effect = set_metadata
    return domain
