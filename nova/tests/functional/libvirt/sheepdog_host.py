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
"""One compute host in a process of its own, with no Nova around it.

It runs the libvirt driver. What a nova-compute would have it do it is told at
a socket, a line of JSON each way; Nova's objects travel as Nova's RPC would
have them travel.
"""

import os
import shutil
import socketserver
import sys
import time
import traceback
from unittest import mock

from oslo_log import log as logging
from oslo_serialization import jsonutils

# first, as it chooses between eventlet and threads
import nova.tests.functional  # noqa: F401

import nova.conf
from nova.conf import neutron
from nova import config
from nova import context as nova_context
from nova.network import model as network_model
from nova import objects
from nova.objects import base as objects_base
import nova.privsep
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
STATE_PATH = '/var/lib/nova'


class ComputeHost:
    """What the socket offers: its public methods."""

    def __init__(self):
        self._context = nova_context.get_admin_context()
        self._events = []

    def start(self, name, image, options):
        """Do what nova-compute does when it starts.

        :param name: name of the host
        :param image: path of the raw image that every instance has
        :param options: dict of group to options to set
        """
        os.makedirs(STATE_PATH + '/instances', exist_ok=True)
        config.parse_args(['nova-compute'], default_config_files=[],
                          configure_db=False, init_rpc=False)
        neutron.register_dynamic_opts(CONF)
        for group, values in options.items():
            for option, value in values.items():
                CONF.set_override(
                    option, value, None if group == 'DEFAULT' else group)
        CONF.set_override('host', name)
        logging.setup(CONF, 'nova')
        objects.register_all()
        nova.privsep.sys_admin_pctxt.set_client_mode(False)

        handle = libvirt_host.Host._event_lifecycle_callback

        def note_event(connection, domain, event, detail, opaque):
            self._events.append(
                (time.time(), domain.UUIDString(), event, detail))
            handle(connection, domain, event, detail, opaque)

        def fetch_image(context, target, image_id, trusted_certs=None):
            shutil.copy(image, target)

        # There is no database and no Glance.
        for patch in (
                mock.patch.object(objects.Instance, 'save'),
                mock.patch.object(objects.Migration, 'save'),
                mock.patch.object(
                    objects.BlockDeviceMappingList, 'get_by_instance_uuid',
                    return_value=objects.BlockDeviceMappingList(objects=[])),
                mock.patch.object(
                    libvirt_driver.LibvirtDriver, '_build_device_metadata',
                    return_value=None),
                mock.patch.object(
                    libvirt_driver.LibvirtDriver,
                    '_register_all_undefined_instance_details', create=True),
                # before Nova looks at the job, which waits for its end
                mock.patch.object(
                    libvirt_host.Host, '_event_lifecycle_callback',
                    staticmethod(note_event)),
                mock.patch.object(libvirt_utils, 'fetch_image', fetch_image)):
            patch.start()
        self._driver = libvirt_driver.LibvirtDriver(fake.FakeVirtAPI())
        self._driver._network_api = mock.Mock()
        network_api = self._driver._network_api
        network_api.has_port_binding_extension.return_value = False
        self._driver.register_event_listener(lambda event: None)
        self._driver.init_host(name)

    def events(self):
        """Return (time, uuid, event, detail) as libvirt has told them."""
        return self._events

    def spawn(self, instance):
        self._driver.spawn(
            self._context, instance, objects.ImageMeta.from_dict({}), [],
            None, {}, network_model.NetworkInfo(),
            block_device_info=self._block_device_info())

    @staticmethod
    def _block_device_info():
        return {'root_device_name': '/dev/vda', 'swap': None,
                'ephemerals': [], 'image': [], 'block_device_mapping': []}

    def pause(self, instance):
        self._driver.pause(instance)

    def unpause(self, instance):
        self._driver.unpause(instance)

    def unexport(self):
        tgt.unexport(libvirt_utils.SHEEPDOG_IQN)

    def state(self, instance):
        """Return libvirt's state and reason, None if it is not here."""
        domains = {
            domain.UUIDString(): domain for domain in
            self._driver._host.get_connection().listAllDomains()}
        domain = domains.get(instance.uuid)
        return domain and domain.state()

    def xml(self, instance):
        return self._driver._host.get_guest(instance).get_xml_desc()

    def targets(self):
        return sorted(tgt._get_targets())

    def console(self, instance):
        path = os.path.join(libvirt_utils.get_instance_path(instance),
                            'console.log')
        if not os.path.exists(path):
            return ''
        with open(path, errors='replace') as log:
            return log.read().replace('\0', '')

    def exists(self, instance):
        return os.path.exists(libvirt_utils.get_instance_path(instance))

    def leave_out_the_reload(self):
        """Show what happens without what is tested."""
        mock.patch.object(tgt, 'reload').start()

    def fail_to_reload(self):
        """Have tgtd's cluster away until reload_again()."""
        self._right = CONF.libvirt.images_sheepdog_port
        CONF.set_override('images_sheepdog_port', 1, 'libvirt')

    def reload_again(self):
        CONF.set_override('images_sheepdog_port', self._right, 'libvirt')

    def exit(self):
        """End without another word, as if killed."""
        os._exit(0)

    # In the order of a live migration

    def check_can_live_migrate_destination(self, instance,
                                           block_migration=False):
        resources = {'disk_available_least': 100, 'free_disk_gb': 100,
                     'cpu_info': '{}'}
        return self._driver.check_can_live_migrate_destination(
            self._context, instance, resources, resources, block_migration,
            False)

    def check_can_live_migrate_source(self, instance, data):
        return self._driver.check_can_live_migrate_source(
            self._context, instance, data, self._block_device_info())

    def pre_live_migration(self, instance, data):
        return self._driver.pre_live_migration(
            self._context, instance, self._block_device_info(),
            network_model.NetworkInfo(), None, data)

    def live_migration(self, instance, dest, data):
        """Return 'completed' or what has become of it instead."""
        outcome = []

        def post(context, instance, dest, block_migration, migrate_data):
            outcome.append('completed')

        def recover(context, instance, dest, migrate_data,
                    migration_status='failed'):
            outcome.append(migration_status)

        try:
            self._driver.live_migration(
                self._context, instance, dest, post, recover, False, data)
        except Exception:
            if not outcome:
                raise
            traceback.print_exc()
        return outcome[0]

    def live_migration_abort(self, instance):
        self._driver.live_migration_abort(instance)

    def live_migration_force_complete(self, instance):
        self._driver.live_migration_force_complete(instance)

    def post_live_migration(self, instance, data):
        self._driver.post_live_migration(
            self._context, instance, self._block_device_info(), data)
        self._driver.post_live_migration_at_source(
            self._context, instance, network_model.NetworkInfo())
        self._driver.cleanup(
            self._context, instance, network_model.NetworkInfo(),
            destroy_disks=False, migrate_data=data, destroy_vifs=False)

    def post_live_migration_at_destination(self, instance):
        self._driver.post_live_migration_at_destination(
            self._context, instance, network_model.NetworkInfo(),
            block_device_info=self._block_device_info())

    def rollback_live_migration_at_destination(self, instance, data):
        self._driver.rollback_live_migration_at_destination(
            self._context, instance, network_model.NetworkInfo(),
            self._block_device_info(), destroy_disks=False,
            migrate_data=data)


class Handler(socketserver.StreamRequestHandler):

    def handle(self):
        serializer = objects_base.NovaObjectSerializer()
        context = nova_context.get_admin_context()
        for line in self.rfile:
            method, arguments = jsonutils.loads(line)
            try:
                result = getattr(self.server.compute_host, method)(
                    **serializer.deserialize_entity(context, arguments))
                answer = {'result': serializer.serialize_entity(
                    context, result)}
            except Exception as e:
                traceback.print_exc()
                answer = {'error': '%s: %s' % (type(e).__name__, e)}
            sys.stderr.flush()
            self.wfile.write(jsonutils.dumps(answer).encode() + b'\n')


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 16


def main(path):
    server = Server(path, Handler)
    server.compute_host = ComputeHost()
    server.serve_forever()


if __name__ == '__main__':
    main(sys.argv[1])
