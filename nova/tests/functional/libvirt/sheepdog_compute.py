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

"""The nova-compute of one host, in a process of its own.

It is the real one. What it asks of others is asked in the process of the test,
where the rest of Nova runs, see sheepdog_bridge.
"""

# first, as it chooses between eventlet and threads
import nova.cmd.compute  # isort: skip

import contextlib
import io
import os
import re
import sys
import threading
import time
from unittest import mock

from oslo_messaging._drivers import impl_fake
from oslo_utils import uuidutils

from nova.compute import manager
import nova.conf
from nova import context as nova_context
from nova import exception
from nova.image import glance
from nova.network import neutron
import nova.privsep
from nova.scheduler.client import report
from nova import service
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.tests.functional.libvirt import sheepdog_bridge
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host

CONF = nova.conf.CONF


class Images:
    """The Glance of the test's process.

    :param remote: function that returns an object of that process
    """

    def __init__(self, remote):
        self._images = remote('images')
        self._data = remote('image_data')

    def show(self, context, image_id, **kwargs):
        return self._images.show(None, image_id, **kwargs)

    def download(self, context, image_id, data=None, dst_path=None,
                 trusted_certs=None):
        content = self._data.get(image_id, b'')
        if data:
            data.write(content)
        elif dst_path:
            with open(dst_path, 'wb') as target:
                target.write(content)

    def update(self, context, image_id, metadata, data=None,
               purge_props=False):
        if data is not None:
            data = io.BytesIO(data.read())
        return self._images.update(
            None, image_id, metadata, data, purge_props)

    def delete(self, context, image_id):
        self._images.delete(None, image_id)


class Control:
    """What a test may have a host do, beside what nova-compute is asked."""

    def __init__(self):
        self.driver = None
        self._ready = threading.Event()
        self._migrated = threading.Semaphore(0)
        self._events = []

    def wait_until_ready(self):
        """Wait until nova-compute answers."""
        self._ready.wait()

    def exit(self):
        """End without another word, as if killed."""
        os._exit(0)

    def wait_for_migration(self):
        """Wait until a live migration from here has ended, or failed.

        Each is waited for once.
        """
        self._migrated.acquire()

    def note_migration(self):
        self._migrated.release()

    def note_driver(self, driver):
        self.driver = driver

    def _domain(self, uuid):
        return self.driver._host.get_connection().lookupByUUIDString(uuid)

    def states(self):
        """Return libvirt's state of each domain, by UUID."""
        return {domain.UUIDString(): domain.state()[0] for domain in
                self.driver._host.get_connection().listAllDomains()}

    def xml(self, uuid):
        return self._domain(uuid).XMLDesc()

    def pause(self, uuid):
        self._domain(uuid).suspend()

    def is_sending(self, uuid):
        """Tell whether a guest's memory is on its way to the other host."""
        return self._domain(uuid).jobStats().get('memory_processed', 0) > 0

    def remove(self, uuid):
        """Do what an administrator does with a guest that Nova has lost."""
        domain = self._domain(uuid)
        domain.destroy()
        domain.undefine()

    def run_image_cache_pass(self):
        self.driver.manage_image_cache(nova_context.get_admin_context(), [])

    def targets(self):
        return backend.list_targets()

    def files(self, uuid):
        """Return the paths of an instance's files."""
        paths = (os.path.join(directory, name)
                 for directory, directories, names in
                 os.walk(CONF.instances_path) for name in directories + names)
        return [path for path in paths if uuid in path]

    def all_files(self):
        """Return the names of what instances have, or an import."""
        found = os.listdir(backend.get_import_directory())
        return found + list(filter(uuidutils.is_uuid_like,
                                   os.listdir(CONF.instances_path)))

    def usage(self):
        """Return what this process uses, memory in KiB."""
        with open('/proc/self/status') as status:
            memory = re.search(r'VmRSS:\s+(\d+)', status.read()).group(1)
        return {'memory': int(memory), 'threads': threading.active_count(),
                'descriptors': len(os.listdir('/proc/self/fd'))}

    def console(self, uuid):
        return backend.read_console(uuid)

    def events(self):
        """Return (time, uuid, event, detail) as libvirt has told them."""
        return self._events

    def note_event(self, *event):
        self._events.append((time.time(), *event))

    def ready(self):
        self._ready.set()

    def pause_until_migration(self, uuid):
        """Have a guest go on when libvirt is about to migrate it.

        So it is in its first pass all through the migration, however slow
        Nova is before.
        """
        self._domain(uuid).suspend()

        def resume_and_get_flags(get_flags, flags):
            patcher.stop()
            self._domain(uuid).resume()
            return get_flags(flags)

        patcher = backend.replace_step(
            'choose the flags of a migration', resume_and_get_flags)
        patcher.start()

    def lose_next_targets(self):
        """Have no target of the next guest that comes."""
        def prepare_and_lose(prepare, *args):
            patcher.stop()
            prepare(*args)
            self.lose_targets()

        patcher = backend.replace_step(
            'prepare a live migration', prepare_and_lose)
        patcher.start()

    def lose_targets(self):
        """Have no target, as if tgtd had been restarted."""
        backend.lose_targets(self.driver)

    def set_option(self, name, value, group):
        CONF.set_override(name, value, group)

    def leave_out_the_reload(self):
        """Show what happens without what is tested."""
        backend.replace_step(
            'reload a VDI', lambda reload, *args: None).start()

    def fail_to_reload(self):
        """Have the cluster away for tgtd's reload, until the process ends."""
        def fail(reload, *args):
            raise exception.TgtError(reason='left out')

        backend.replace_step('reload a VDI', fail).start()

    def fail_to_launch(self, path):
        """Have QEMU not start, if it is the first time on all hosts.

        :param path: of a file that tells them
        """
        def fail_or_launch(launch, *args, **kwargs):
            with contextlib.suppress(FileExistsError), open(path, 'x'):
                raise exception.NovaException('QEMU does not start here')
            return launch(*args, **kwargs)

        backend.replace_step('launch a guest', fail_or_launch).start()

    def exit_after(self, step):
        """Have the process end after a step, one of backend.STEPS."""
        def run_and_exit(function, *args, **kwargs):
            function(*args, **kwargs)
            self.exit()

        backend.replace_step(step, run_and_exit).start()


def patch(remote, control):
    """Take away the world around nova-compute.

    :param remote: function that returns an object of the test's process
    """
    messages = remote('messages')
    placement = remote('placement')
    images = Images(remote)
    send = impl_fake.FakeDriver.send

    def send_there(driver, target, context, message, wait_for_reply=None,
                   timeout=None, **kwargs):
        if target.server == CONF.host and not target.fanout:
            return send(driver, target, context, message, wait_for_reply,
                        timeout)
        return sheepdog_bridge.send(messages, target, context, message,
                                    wait_for_reply, timeout)

    def ask_placement(method):
        def ask(client, *args, **kwargs):
            return getattr(placement, method)(None, *args, **kwargs)
        return ask

    def handle_event(connection, domain, event, detail, opaque):
        control.note_event(domain.UUIDString(), event, detail)
        handle(connection, domain, event, detail, opaque)

    def migrate(compute, *args, **kwargs):
        try:
            return do_live_migration(compute, *args, **kwargs)
        finally:
            control.note_migration()

    def create_client(client):
        client.clear_provider_cache(init=True)

    def init_host(driver, host):
        control.note_driver(driver)
        initialize(driver, host)

    def start(nova_compute):
        begin(nova_compute)
        control.ready()

    # before Nova looks at the job, which waits for its end
    handle = libvirt_host.Host._event_lifecycle_callback
    initialize = libvirt_driver.LibvirtDriver.init_host
    do_live_migration = manager.ComputeManager._do_live_migration
    begin = service.Service.start
    client = report.SchedulerReportClient
    for patcher in (
            mock.patch.object(impl_fake.FakeDriver, 'send', send_there),
            mock.patch.object(client, '_create_client', create_client),
            *(mock.patch.object(client, method,
                                ask_placement('_fake_' + method))
              for method in ('get', 'post', 'put', 'delete')),
            mock.patch.object(glance, 'get_default_image_service',
                              lambda: images),
            mock.patch.object(neutron, 'get_client',
                              lambda context, admin=False: remote(
                                  'networks')),
            mock.patch.object(libvirt_host.Host, '_event_lifecycle_callback',
                              staticmethod(handle_event)),
            mock.patch.object(libvirt_driver.LibvirtDriver, 'init_host',
                              init_host),
            mock.patch.object(manager.ComputeManager, '_do_live_migration',
                              migrate),
            mock.patch.object(service.Service, 'start', start)):
        patcher.start()
    os.makedirs('/var/lib/nova/instances', exist_ok=True)
    nova.privsep.sys_admin_pctxt.set_client_mode(False)


def main(test_path, own_path, configuration):
    """Run nova-compute.

    :param test_path: of the socket of the test's process
    :param own_path: of the socket to make
    :param configuration: path of nova.conf
    """
    control = Control()
    sheepdog_bridge.Server(
        own_path, control=control,
        messages=sheepdog_bridge.Messages(impl_fake.FakeDriver.send))
    patch(lambda name: sheepdog_bridge.Remote(test_path, name), control)
    sys.argv = ['nova-compute', '--config-file', configuration]
    nova.cmd.compute.main()


if __name__ == '__main__':
    main(*sys.argv[1:])
