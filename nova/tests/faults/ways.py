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

"""What can go wrong with a call of dog, tgtadm or qemu-img.

A way is a function of the World, the words of the command, and the function
that runs it. It returns exit status, standard output and standard error.
"""

from nova.tests.faults import world

TIMED_OUT = 124
KILLED = 137


def _is_delete(command):
    return 'delete' in command and 'vdi' in command


def _have_model_do(cluster, command, run, **fault):
    if 'qemu-img' in command:
        return 1, b'', b'qemu-img: error while writing: I/O error\n'
    cluster.fault(**fault)
    try:
        return run()
    finally:
        cluster.clear_faults()


def refused(of, command, run):
    """The cluster answers with an I/O error."""
    if 'tgtadm' in command:
        return 22, b'', b'tgtadm: invalid request\n'
    return _have_model_do(of.cluster, command, run, action='error')


def full(of, command, run):
    """The cluster has no room."""
    if 'tgtadm' in command:
        return 22, b'', b'tgtadm: out of memory\n'
    return _have_model_do(of.cluster, command, run, action='error',
                          result=0x15)


def unreachable(of, command, run):
    """Nobody listens where the sheep or tgtd should."""
    if 'tgtadm' in command:
        return 107, b'', (
            b'tgtadm: failed to send request hdr to tgt daemon, Transport '
            b'endpoint is not connected\n')
    return _fail(command, 2, b'failed to connect to 127.0.0.1:7000: '
                 b'Connection refused\n')


def _fail(command, status, words):
    # Whatever happens to a delete, its exit status is 0.
    return 0 if _is_delete(command) else status, b'', words


def odd(of, command, run):
    """It fails in words that nobody knows."""
    return _fail(command, 1, b'Invalid\nparameter\n')


def not_utf8(of, command, run):
    """It fails in words that are not UTF-8."""
    return _fail(command, 1, b'Failed \xff\xfe to \x80\n')


def garbage(of, command, run):
    """It prints what cannot be parsed, and is content."""
    if ('read' in command or 'map' in command or 'list' in command or
            'info' in command or 'show' in command):
        return 0, b'\xff\xfe {"\n\x01 x\n', b''
    return not_utf8(of, command, run)


def done_refused(of, command, run):
    """It does it, and fails."""
    status, out, err = run()
    if status or err:
        return status, out, err
    return _fail(command, 1, b'failed to read a response\n')


def done_odd(of, command, run):
    """It does it, and fails in words that nobody knows."""
    status, out, err = run()
    if status or err:
        return status, out, err
    return _fail(command, 1, b'Invalid parameter\n')


def killed(of, command, run):
    """It is killed before it has done anything."""
    return KILLED, b'', b''


def done_killed(of, command, run):
    """It is killed when it has done it."""
    run()
    return KILLED, b'', b''


def killed_half_way(of, command, run):
    """It is killed; a delete has emptied the VDI or snapshot by then."""
    status, out, err = hung(of, command, run)
    return (KILLED, out, err) if status == TIMED_OUT else (status, out, err)


def hung(of, command, run):
    """No answer in time; a delete has emptied the VDI or snapshot."""
    of.clock.sleep(world.TIMEOUT)
    if not _is_delete(command):
        return TIMED_OUT, b'', b''
    return _have_model_do(of.cluster, command, run, action='hang', hole=True)


def done_hung(of, command, run):
    """No answer in time, but it is done."""
    of.clock.sleep(world.TIMEOUT)
    run()
    return TIMED_OUT, b'', b''


def dies(of, command, run):
    """nova-compute is killed before the call."""
    of.die()


def done_dies(of, command, run):
    """nova-compute is killed, and the call goes on without it."""
    run()
    of.die()


ONCE = (refused, full, unreachable, odd, not_utf8, garbage, done_refused,
        done_odd, killed, done_killed, killed_half_way, hung, done_hung)
DEATHS = (dies, done_dies)
# From one call on, until the action has failed.
LASTING = (hung, unreachable, full)
# Of the first and of the second of two failures.
OF_PAIRS = (refused, hung, done_hung)
