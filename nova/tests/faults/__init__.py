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

"""No fault of Sheepdog or tgtd puts a guest on wrong data: the proof.

``python -m nova.tests.faults`` drives the real backend through each server
action, on the model of a cluster and of tgtd that the simulator has. In each
case something goes wrong with certain calls of dog, tgtadm or qemu-img; then
the server is asked for again, rebooted hard or deleted.

world.py
    the cluster, two compute hosts, a server and one of somebody else
ways.py
    what can go wrong with a call
actions.py
    what the driver and the compute manager do with the backend
cases.py
    all cases, how each is run, and what must be so afterwards
"""
